"""Among the requests of one service that has a limit: a small one passes a large one, but not for ever."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gpuboss.fields import ServiceRules
from tests.core.auditor import audit
from tests.core.limiting import CARD_MIB, LONG_MS, limited, relimit, why
from tests.core.reserving import kept
from tests.core.scenario import jumped, policy


def test_what_a_grant_parks_leaves_its_reservation_to_the_next():
    scenario = limited(CARD_MIB, CARD_MIB, limit_mib=16_384, rules={"reservations": 1})
    scenario.request("forever", 16_384, service="ollama", device="cuda:0")
    scenario.request("bounded", 16_384, service="ollama", device="cuda:1", ttl_ms=LONG_MS)
    scenario.request("large", 12_288, device="cuda:0")
    scenario.request("next", 16_384, service="ollama", device="cuda:1")
    assert scenario.request("small", 6_000, device="cuda:0") == ["granted small on cuda:0"]
    assert kept(scenario) == {"next": ("cuda:1", LONG_MS)}


def test_a_small_request_passes_a_large_one_that_is_above():
    scenario = limited(CARD_MIB, rules={"starve_ms": 1_000})
    scenario.request("a", 4_096)
    scenario.request("large", 8_192)
    assert scenario.request("small", 4_096) == ["granted small on cuda:0"]


def test_but_not_for_ever():
    scenario = limited(CARD_MIB, rules={"starve_ms": 1_000})
    scenario.request("a", 4_096)
    scenario.request("large", 8_192)
    assert scenario.tick(1_000) == []
    assert scenario.request("small", 4_096) == []
    assert why(scenario, "small") == ("reserved_for", ["large"])
    assert scenario.request("other", 4_096, service="ollama") == ["granted other on cuda:0"]
    assert scenario.release("a") == ["ended a: released, freed", "granted large on cuda:0"]
    assert scenario.release("large") == ["ended large: released, freed", "granted small on cuda:0"]


def test_who_comes_before_one_who_starves_is_not_held_up_by_it():
    scenario = limited(CARD_MIB, rules={"starve_ms": 1_000})
    scenario.request("a", 4_096)
    scenario.request("large", 8_192)
    scenario.tick(1_000)
    assert scenario.request("urgent", 4_096, priority="high") == ["granted urgent on cuda:0"]


@pytest.mark.parametrize("ends", ["release", "timeout"])
def test_who_starves_and_gives_up_holds_up_nobody(ends: str):
    scenario = limited(CARD_MIB, rules={"starve_ms": 1_000})
    scenario.request("a", 4_096)
    scenario.request("large", 8_192, wait_ms=2_000)
    scenario.tick(1_000)
    scenario.request("small", 4_096)
    if ends == "release":
        assert scenario.release("large") == ["denied large: cancelled", "granted small on cuda:0"]
    else:
        assert scenario.tick(1_000) == ["denied large: timeout", "granted small on cuda:0"]


@pytest.mark.parametrize("way", ["a restart", "another limit"])
def test_what_starves_keeps_its_due(way: str):
    scenario = limited(CARD_MIB, rules={"starve_ms": 1_000})
    scenario.request("a", 4_096)
    scenario.request("other", 13_000, service="ollama")
    scenario.request("large", 8_192)
    scenario.tick(1_000)
    if way == "a restart":
        scenario.restart()
    else:
        assert relimit(scenario, None) == relimit(scenario, 8_192) == []
    assert scenario.request("small", 1) == []


def test_who_starves_and_has_a_reservation_counts_once():
    scenario = limited(CARD_MIB, CARD_MIB, limit_mib=16_384, rules={"starve_ms": 1_000})
    scenario.request("holder", CARD_MIB, service="ollama", device="cuda:0", ttl_ms=2_000)
    scenario.request("large", 12_288, device="cuda:0")
    scenario.tick(1_000)
    assert kept(scenario) == {"large": ("cuda:0", 1_000)}
    assert scenario.request("small", 4_096, device="cuda:1") == ["granted small on cuda:1"]


def test_a_jump_of_the_clock_starves_nobody():
    scenario = limited(CARD_MIB, rules={"starve_ms": 1_000})
    scenario.request("a", 4_096)
    scenario.request("large", 8_192)
    scenario.now_ms += 500 + LONG_MS
    scenario.happens(jumped(scenario.now_ms, LONG_MS))
    assert scenario.tick(499) == []
    assert scenario.request("small", 1_000) == ["granted small on cuda:0"]
    assert scenario.tick(1) == []
    assert scenario.request("other", 1_000) == []


def test_a_service_that_gets_a_limit_has_what_waits_starve_in_time():
    scenario = limited(CARD_MIB, limit_mib=None, rules={"starve_ms": 1_000})
    scenario.request("a", CARD_MIB - 8_192)
    scenario.request("large", 16_384)
    scenario.happens(replace(policy(services={"imajin": ServiceRules(limit_mib=CARD_MIB)}), starve_ms=1_000))
    assert scenario.tick(1_000) == []
    assert scenario.request("small", 4_096) == []


def test_nobody_of_the_same_service_takes_what_a_promise_counts_on():
    scenario = limited(CARD_MIB, CARD_MIB, limit_mib=24_576)
    scenario.request("holder", CARD_MIB, service="ollama", device="cuda:0", ttl_ms=500)
    scenario.request("promised", 16_384, device="cuda:0")
    assert kept(scenario) == {"promised": ("cuda:0", 500)}
    assert scenario.request("beside", 8_192) == ["granted beside on cuda:1"]
    assert scenario.request("above", 1) == []
    assert why(scenario, "above") == ("reserved_for", ["promised"])
    assert scenario.tick(500) == ["ended holder: expired, freed", "granted promised on cuda:0"]


# ---------------------------------------------------------------- a quota turned over


def test_a_service_at_its_limit_that_turns_its_leases_over_starves_none_of_its_own():
    """It acquires and releases small leases for ever; its large request starts within `starve_ms` and their life."""
    scenario = limited(CARD_MIB, rules={"starve_ms": 1_000})
    scenario.request("turn-0", 4_096)
    scenario.request("turn-1", 4_096)
    scenario.request("large", 8_192)
    started_ms, began_ms = None, scenario.now_ms
    running = ["turn-0", "turn-1"]
    for number in range(2, 60):
        scenario.now_ms += 50
        told = scenario.request(f"turn-{number}", 4_096)
        told += scenario.tick()
        told += scenario.release(running.pop(0)) if running else []
        running += [each.split()[1] for each in told if each.startswith("granted turn")]
        if "granted large on cuda:0" in told:
            started_ms = scenario.now_ms
            break
    assert started_ms is not None
    assert started_ms - began_ms <= 1_000 + 2 * 50 + 50
    assert audit(scenario.entries) == []


def test_a_service_that_turns_its_quota_over_never_holds_another_up():
    scenario = limited(CARD_MIB)
    for number in range(40):
        scenario.request(f"turn-{number}", 8_192)
        assert scenario.request(f"other-{number}", 16_384, service="ollama") == [f"granted other-{number} on cuda:0"]
        scenario.release(f"other-{number}", service="ollama")
        scenario.release(f"turn-{number}")
