"""What a service may hold, always: what is above waits, and is in nobody's way; what can never be within is denied."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gpuboss.core import snapshot
from gpuboss.core.explain import explain, explain_first
from gpuboss.events import LeaseReasserted, LogLost, SchedulerElected
from gpuboss.fields import ServiceRules
from tests.core.auditor import audit
from tests.core.limiting import CARD_MIB, LONG_MS, limited, relimit, why
from tests.core.reserving import kept
from tests.core.scenario import NODE, Log, device_lost, padded, policy, reclaimed, renewed, session_lost
from tests.core.traffic import Traffic

# ---------------------------------------------------------------- the limit, always


def test_what_would_go_above_waits_though_there_is_room():
    scenario = limited(CARD_MIB)
    assert scenario.request("a", 6_000) == ["granted a on cuda:0"]
    assert scenario.request("b", 2_193) == []
    assert scenario.request("c", 2_192) == ["granted c on cuda:0"]
    assert audit(scenario.entries) == []


def test_it_is_granted_once_its_service_holds_less():
    scenario = limited(CARD_MIB)
    scenario.request("a", 8_192)
    scenario.request("b", 8_192)
    assert scenario.release("a") == ["ended a: released, freed", "granted b on cuda:0"]


def test_others_are_neither_blocked_nor_counted():
    scenario = limited(CARD_MIB)
    scenario.request("a", 8_192)
    scenario.request("b", 8_192)
    assert scenario.request("c", 16_384, service="ollama") == ["granted c on cuda:0"]
    assert kept(scenario) == {}


def test_nothing_is_reserved_for_what_is_above():
    scenario = limited(CARD_MIB)
    scenario.request("a", 8_192, ttl_ms=500)
    scenario.request("holder", 16_384, service="ollama", ttl_ms=LONG_MS)
    assert scenario.request("b", 8_192) == scenario.request("c", 8_192, service="ollama") == []
    assert kept(scenario) == {"c": ("cuda:0", 500)}


def test_what_is_within_its_limit_again_comes_where_its_key_is_and_whoever_has_to_wait_longer_is_told():
    scenario = limited(CARD_MIB)
    scenario.request("a", 8_192, ttl_ms=500)
    scenario.request("holder", 16_384, service="ollama", ttl_ms=LONG_MS)
    scenario.request("b", 8_192)
    scenario.request("c", 8_192, service="ollama")
    told = ["ended a: expired, freed", "granted b on cuda:0", f"promised c a start in {LONG_MS - 500} ms"]
    assert scenario.tick(500) == told


def test_gangs_count_on_all_their_devices():
    scenario = limited(CARD_MIB, CARD_MIB)
    assert scenario.request("a", 4_097, gpus=2) == ["denied a: quota"]
    assert scenario.request("b", 4_096, gpus=2) == ["granted b on cuda:0+cuda:1"]
    assert scenario.request("c", 1) == []


@pytest.mark.parametrize("ends", ["release", "expire", "lose_session", "lose_device"])
def test_a_lease_counts_as_long_as_it_is_charged(ends: str):
    scenario = limited(CARD_MIB, CARD_MIB, rules={"lock_delay_ms": 5_000})
    scenario.request("a", 8_192, device="cuda:0", ttl_ms=500, session="s", reclaimable=True)
    scenario.request("b", 8_192, device="cuda:1")
    match ends:
        case "release":
            assert scenario.release("a")[1:] == ["granted b on cuda:1"]
        case "expire":
            assert scenario.tick(500) == ["ended a: expired, reclaiming"]
            assert why(scenario, "b") == ("quota", ["a"])
            assert scenario.happens(reclaimed("a")) == ["granted b on cuda:1"]
        case "lose_session":
            assert scenario.happens(session_lost("s")) == ["ended a: session_lost, reclaiming"]
            assert scenario.happens(reclaimed("a")) == ["granted b on cuda:1"]
        case "lose_device":
            scenario.happens(replace(policy(services={"imajin": ServiceRules(limit_mib=8_192)}), lock_delay_ms=0))
            assert scenario.happens(device_lost(0))[-1] == "granted b on cuda:1"


def test_a_gang_that_lost_a_device_counts_on_what_is_left():
    scenario = limited(CARD_MIB, CARD_MIB, CARD_MIB, rules={"lock_delay_ms": 5_000})
    scenario.request("gang", 4_096, gpus=2)
    scenario.request("b", 4_096, device="cuda:2")
    assert why(scenario, "b") == ("quota", ["gang"])
    assert scenario.happens(device_lost(0))[-1] == "granted b on cuda:2"
    assert scenario.state.ledger.holdings.mib("imajin") == 8_192


# ---------------------------------------------------------------- never


def test_what_alone_is_above_is_denied_with_the_numbers():
    scenario = limited(CARD_MIB)
    assert scenario.request("a", 8_193) == ["denied a: quota"]
    assert scenario.last.detail.startswith("asked for 8193 MiB; imajin may hold 8192 MiB on all devices together")
    assert scenario.request("b", 8_192) == ["granted b on cuda:0"]


def test_a_service_may_be_given_nothing():
    scenario = limited(CARD_MIB, limit_mib=0)
    assert scenario.request("a", 1) == ["denied a: quota"]


def test_nobody_is_denied_while_a_lost_log_recovers_but_at_its_end():
    scenario = limited(CARD_MIB)
    scenario.happens(SchedulerElected("second", "0", 1, "log-2", LogLost(scenario.entries[-1].id, 7)))
    assert scenario.request("a", 8_193) == scenario.request("b", 8_192) == []
    assert scenario.tick(15_000) == ["denied a: quota", "granted b on cuda:0"]
    assert audit(scenario.entries) == []


# ---------------------------------------------------------------- other limits


def test_a_raised_limit_unparks_in_the_order_of_the_queue():
    scenario = limited(CARD_MIB)
    scenario.request("a", 8_192)
    for name, priority in (("low", "low"), ("first", "normal"), ("second", "normal"), ("high", "high")):
        scenario.request(name, 4_096, priority=priority)
    assert relimit(scenario, 16_384) == ["granted high on cuda:0", "granted first on cuda:0"]
    assert relimit(scenario, None) == ["granted second on cuda:0", "granted low on cuda:0"]


def test_who_has_no_limit_any_more_comes_before_those_for_whom_something_is_kept():
    scenario = limited(16_384, CARD_MIB)
    scenario.request("holder", 8_192, service="ollama", device="cuda:0", ttl_ms=LONG_MS)
    scenario.request("a", 4_000, device="cuda:1")
    assert scenario.request("parked", 8_000) == []
    assert scenario.request("later", 16_384, service="ollama", device="cuda:0") == []
    told = ["granted parked on cuda:0", "promised later nothing any more"]
    assert scenario.happens(policy()) == told, "where it fits best"


def test_a_lowered_limit_parks_and_takes_nothing_away():
    scenario = limited(CARD_MIB, limit_mib=CARD_MIB)
    scenario.request("a", 16_384)
    scenario.request("b", 8_192)
    scenario.request("c", 8_192)
    assert relimit(scenario, 8_192) == []
    assert scenario.release("b") == ["ended b: released, freed"]
    assert why(scenario, "c") == ("quota", ["a"])
    assert scenario.release("a") == ["ended a: released, freed", "granted c on cuda:0"]


def test_who_is_above_a_lowered_limit_for_ever_is_told():
    scenario = limited(CARD_MIB, limit_mib=None)
    scenario.request("a", CARD_MIB)
    scenario.request("b", 16_384)
    scenario.request("c", 8_192)
    assert relimit(scenario, 8_192) == ["denied b: quota"]
    assert audit(scenario.entries) == []


def test_a_limit_takes_a_reservation_and_says_so():
    scenario = limited(CARD_MIB, limit_mib=None)
    scenario.request("a", 16_384, ttl_ms=500)
    scenario.request("b", 16_384)
    assert kept(scenario) == {"b": ("cuda:0", 500)}
    assert relimit(scenario, 16_384) == ["promised b nothing any more"]
    assert scenario.tick(500)[1:] == ["granted b on cuda:0"]


# ---------------------------------------------------------------- what those who wait are told


def test_by_when_it_is_within_its_limit_is_part_of_the_guess():
    scenario = limited(CARD_MIB, limit_mib=16_384)
    scenario.request("a", 8_192, ttl_ms=500)
    scenario.request("b", 8_192, ttl_ms=900)
    scenario.request("c", 16_384)
    waiting = scenario.state.waitlist.by_id[padded("c")]
    assert explain(scenario.state, waiting).starts_by_ms == scenario.now_ms + 900
    assert explain(scenario.state, waiting).is_promise is False
    scenario.says(renewed("b", 2_000))
    assert explain(scenario.state, waiting).starts_by_ms == scenario.now_ms + 2_000
    scenario.request("d", 8_192)  # without an end
    scenario.tick(500)
    assert why(scenario, "c") == ("quota", ["b", "d"])
    assert explain(scenario.state, waiting).starts_by_ms is None


def test_why_names_the_service_s_own_leases_and_the_numbers():
    scenario = limited(CARD_MIB)
    scenario.request("a", 8_192)
    scenario.request("b", 8_192, service="ollama")
    scenario.request("c", 1)
    assert why(scenario, "c") == ("quota", ["a"])
    detail = explain_first(scenario.state)[padded("c")].detail
    assert detail == "imajin may hold 8192 MiB and holds 8192 MiB; this needs 1 MiB"


# ---------------------------------------------------------------- a lost log


def test_what_is_reasserted_may_be_above_and_then_nothing_more_is_granted():
    scenario = limited(CARD_MIB)
    scenario.happens(SchedulerElected("second", "0", 1, "log-2", LogLost(scenario.entries[-1].id, 7)))
    for name in ("a", "b"):
        held = LeaseReasserted(
            padded(name), "imajin", NODE, "cuda:0", ["cuda:0"], 8_192, "normal", "held", scenario.now_ms, 1
        )
        scenario.says(held)
    scenario.request("c", 1)
    assert scenario.tick(15_000) == []
    assert why(scenario, "c") == ("quota", ["a", "b"])
    assert scenario.release("a") == ["ended a: released, freed"]
    assert scenario.release("b")[1:] == ["granted c on cuda:0"]
    assert audit(scenario.entries) == []


# ---------------------------------------------------------------- restore at any event


@given(seed=st.integers(0, 2**32))
@settings(max_examples=8)
def test_a_restart_at_any_entry_decides_the_same(seed: int) -> None:
    """Two schedulers read one day with limits: one never stops, the other restarts before each entry."""
    log, other = Log(), Log()
    Traffic(log, seed).run(120)
    for entry in log.entries:
        other.entries.append(entry)
        other.restart()
        other.read()
    assert snapshot.dump(other.state) == snapshot.dump(log.state)
