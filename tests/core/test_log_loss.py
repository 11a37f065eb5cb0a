"""Entries of the log are gone: until holders had time to say what they hold, nobody is granted or denied for good."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gpuboss.core.explain import explain
from gpuboss.core.timers import Timer, TimerKind
from gpuboss.events import (
    LogLost,
)
from tests.core.lossy import (
    LOST_FENCE,
    RECOVERY_MS,
    Lossy,
    elected,
    recovering,
)
from tests.core.scenario import (
    NODE,
    START_MS,
    device_lost,
    jumped,
    padded,
    policy,
    session_lost,
)

# ---------------------------------------------------------------- waiting


def test_who_would_have_room_waits_until_the_recovery_ends():
    scenario = recovering()
    assert scenario.request("a", 8_192) == []
    assert scenario.tick(RECOVERY_MS - 1) == []
    assert scenario.tick(1) == ["granted a on cuda:0"]
    assert scenario.last.waited_ms == RECOVERY_MS


def test_who_waited_before_the_loss_waits_on_in_its_place():
    scenario = Lossy(24_576)
    scenario.request("holder", 24_576)
    scenario.request("first", 20_000)
    scenario.request("second", 20_000, priority="low")
    scenario.loses()
    assert scenario.release("holder") == ["ended holder: released, freed"], "and nobody is granted what it had"
    assert scenario.request("third", 20_000) == []
    assert scenario.tick(RECOVERY_MS) == ["granted first on cuda:0"]
    assert scenario.release("first") == ["ended first: released, freed", "granted third on cuda:0"]


@pytest.mark.parametrize(
    "wish",
    [
        {"exclusive": True},
        {"gpus": 2},
        {"device": "cuda:1"},
        {"device": "GPU-alpha-1"},
        {"node": NODE},
        {"priority": "high"},
        {"session": "process", "instance": "one"},
        {"gpus": 2, "exclusive": True, "node": NODE},
    ],
    ids=str,
)
def test_whatever_is_asked_for_waits_and_is_granted_at_the_end(wish):
    scenario = recovering(24_576, 24_576)
    assert scenario.request("a", 8_192, **wish) == []
    assert scenario.release("nobody") == ["rejected nobody: unknown_lease"]
    assert scenario.device(2, 100) == [], "a device that shows up gives nobody a place"
    [granted] = scenario.tick(RECOVERY_MS)
    assert granted.startswith("granted a on ")


@pytest.mark.parametrize(
    "wish",
    [
        {"vram_mib": 24_577},
        {"gpus": 2},
        {"gpus": 2, "exclusive": True},
        {"device": "cuda:7"},
        {"device": "GPU-nowhere"},
        {"node": "beta"},
        {"vram_mib": 30_000, "exclusive": True},
    ],
    ids=str,
)
def test_what_is_impossible_is_denied_at_the_end_and_not_before(wish):
    scenario = recovering()
    assert scenario.request("a", wish.get("vram_mib", 8_192), **{k: wish[k] for k in wish if k != "vram_mib"}) == []
    assert scenario.device(0, 24_000) == [], "another look at the devices denies nobody either"
    assert scenario.device(3, 100) == []
    assert scenario.happens(device_lost(3)) == []
    assert scenario.tick(RECOVERY_MS - 1) == []
    assert scenario.tick(1) == ["denied a: impossible"]
    assert scenario.last.detail


def test_what_only_a_device_that_comes_back_can_hold_is_granted_at_the_end():
    scenario = recovering()
    scenario.request("a", 40_000)
    scenario.device(1, 49_152)
    assert scenario.tick(RECOVERY_MS) == ["granted a on cuda:1"]


def test_while_no_device_is_known_nothing_is_impossible_at_the_end_either():
    scenario = Lossy()
    scenario.loses()
    scenario.request("a", 8_192)
    assert scenario.tick(RECOVERY_MS) == []
    assert scenario.device(0, 24_576) == ["granted a on cuda:0"]


def test_no_wait_is_over_before_the_end():
    scenario = recovering()
    scenario.request("a", 20_000, wait_ms=1_000)
    scenario.request("b", 20_000, wait_ms=2_000)
    assert scenario.tick(RECOVERY_MS - 1) == []
    assert scenario.tick(1) == ["granted a on cuda:0"]
    assert scenario.tick(1) == ["denied b: timeout"]


def test_a_wait_that_ends_when_the_recovery_does_is_not_over():
    scenario = recovering()
    scenario.request("a", 8_192, wait_ms=RECOVERY_MS)
    assert scenario.tick(RECOVERY_MS) == ["granted a on cuda:0"]


def test_who_waits_may_take_it_back_or_be_lost():
    scenario = recovering()
    for name in ("a", "c"):
        scenario.request(name, 8_192, session=f"of-{name}")
    assert scenario.release("a") == ["denied a: cancelled"]
    assert scenario.happens(session_lost("of-c")) == ["denied c: session_lost"]
    assert scenario.request("d", 8_192, session="of-c") == ["denied d: session_lost"]
    assert scenario.tick(RECOVERY_MS) == []


def test_who_waits_may_hold_what_it_asked_for_and_is_not_revoked():
    scenario = recovering()
    for name in ("a", "b"):
        scenario.request(name, 8_192)
        assert scenario.revoke(name) == [f"rejected {name}: unknown_lease"]
    assert scenario.reasserts("a") == ["again granted a on cuda:0"]
    assert scenario.revoke("a") == ["ended a: revoked, freed"]
    assert scenario.tick(RECOVERY_MS) == ["granted b on cuda:0"]


def test_a_request_that_is_repeated_waits_on():
    scenario = recovering()
    scenario.request("a", 8_192)
    assert scenario.request("a", 8_192) == []
    assert scenario.request("a", 4_096) == ["rejected a: duplicate"]
    assert scenario.tick(RECOVERY_MS) == ["granted a on cuda:0"]


def test_why_one_waits_is_said():
    scenario = recovering()
    for name, vram_mib in (("a", 8_192), ("impossible", 99_999)):
        scenario.request(name, vram_mib)
    for number, waiting in enumerate(scenario.state.waitlist.in_order(), start=1):
        found = explain(scenario.state, waiting)
        assert (found.place, found.reason, found.blocked_by) == (number, "recovering", [])
        assert "lost" in found.detail
    scenario.reasserts("b", vram_mib=20_000)
    scenario.tick(RECOVERY_MS)
    assert explain(scenario.state, scenario.state.waitlist.by_id[padded("a")]).reason == "no_room"


# ---------------------------------------------------------------- fences


def test_fences_go_on_above_all_that_were_lost():
    scenario = recovering()
    scenario.request("a", 1)
    scenario.tick(RECOVERY_MS)
    assert scenario.last.fence == LOST_FENCE + 1


def test_fences_go_on_above_all_that_are_said():
    scenario = recovering()
    scenario.reasserts("a", fence=LOST_FENCE + 50)
    scenario.reasserts("b", fence=5)
    scenario.request("c", 1)
    scenario.tick(RECOVERY_MS)
    assert scenario.last.fence == LOST_FENCE + 51


def test_fences_never_go_back():
    scenario = Lossy(24_576)
    for name in ("a", "b", "c"):
        scenario.request(name, 1)
    scenario.loses(fence=1)
    scenario.reasserts("d", fence=2)
    scenario.request("e", 1)
    scenario.tick(RECOVERY_MS)
    assert scenario.last.fence == 4


# ---------------------------------------------------------------- the end


def test_only_a_tick_ends_it():
    scenario = recovering()
    scenario.now_ms += 10 * RECOVERY_MS
    assert scenario.request("a", 8_192) == []
    assert scenario.reasserts("b") == ["again granted b on cuda:0"], "who is late by the ids is still believed"
    assert scenario.device(1, 24_576) == []
    assert scenario.happens(elected()) == []
    assert scenario.happens(policy()) == []
    assert scenario.state.recovering_since_ms is not None
    assert scenario.tick(RECOVERY_MS) == ["granted a on cuda:0"]
    assert scenario.state.recovering_since_ms is None
    assert scenario.request("c", 8_192) == ["granted c on cuda:0"]


def test_its_end_is_the_next_deadline_when_it_is():
    scenario = recovering()
    assert scenario.state.recovering_until_ms == START_MS + RECOVERY_MS
    assert scenario.state.next_timer() == Timer(START_MS + RECOVERY_MS, TimerKind.RECOVERY_END, "")
    scenario.tick(RECOVERY_MS)
    assert scenario.state.recovering_until_ms is None
    assert scenario.state.next_timer() is None


def test_it_takes_a_session_ttl_and_the_lock_delay():
    scenario = recovering(lock_delay_ms=60_000)
    scenario.request("a", 8_192)
    assert scenario.tick(RECOVERY_MS + 59_999) == []
    assert scenario.tick(1) == ["granted a on cuda:0"]


def test_at_its_end_leases_end_before_anybody_is_denied_or_granted():
    scenario = recovering()
    scenario.reasserts("a", vram_mib=20_000, expires_at_ms=START_MS + RECOVERY_MS)
    scenario.request("impossible", 99_999)
    scenario.request("b", 20_000)
    assert scenario.tick(RECOVERY_MS) == [
        "ended a: expired, freed",
        "denied impossible: impossible",
        "granted b on cuda:0",
    ]


def test_what_is_due_after_the_end_comes_after_what_the_end_denies():
    scenario = recovering()
    scenario.request("impossible", 99_999, wait_ms=RECOVERY_MS + 5)
    scenario.request("late", 8_192, wait_ms=RECOVERY_MS + 5)
    assert scenario.tick(RECOVERY_MS + 10) == ["denied impossible: impossible", "denied late: timeout"]


@pytest.mark.parametrize("delta_ms", [3_600_000, -10_000])
def test_a_jump_of_the_clock_moves_the_end(delta_ms):
    scenario = recovering()
    scenario.request("a", 8_192)
    scenario.now_ms += 1
    scenario.happens(jumped(scenario.now_ms, delta_ms))
    left_ms = RECOVERY_MS + delta_ms - 1
    assert scenario.tick(left_ms - 1) == []
    assert scenario.tick(1) == ["granted a on cuda:0"]


def test_a_jump_before_the_loss_moves_nothing():
    scenario = recovering()
    scenario.request("a", 8_192)
    scenario.happens(jumped(START_MS, 3_600_000))
    assert scenario.tick(RECOVERY_MS) == ["granted a on cuda:0"]


def test_a_jump_without_a_loss_begins_no_recovery():
    scenario = Lossy(24_576)
    scenario.now_ms += 1
    scenario.happens(jumped(scenario.now_ms, 5))
    assert scenario.state.recovering_since_ms is None
    assert scenario.state.next_timer() is None


def test_rules_with_a_longer_lock_delay_move_the_end_away():
    scenario = recovering()
    scenario.request("a", 8_192)
    scenario.happens(policy(lock_delay_ms=5_000))
    assert scenario.tick(RECOVERY_MS + 4_999) == []
    assert scenario.tick(1) == ["granted a on cuda:0"]


@pytest.mark.parametrize("shorter", [policy(), replace(policy(60_000), session_ttl_ms=1_000)])
def test_shorter_rules_do_not_bring_the_end_nearer(shorter):
    """Those who hold what was lost beat, and trust what they hold, by the rules that they heard of."""
    scenario = recovering(lock_delay_ms=60_000)
    scenario.request("a", 8_192)
    assert scenario.happens(shorter) == []
    assert scenario.tick(RECOVERY_MS + 59_999) == []
    assert scenario.tick(1) == ["granted a on cuda:0"]


def test_nor_does_a_second_loss_under_shorter_rules():
    scenario = recovering(lock_delay_ms=60_000)
    scenario.request("a", 8_192)
    scenario.happens(policy())
    scenario.loses(fence=2 * LOST_FENCE)
    assert scenario.tick(RECOVERY_MS + 59_999) == []
    assert scenario.tick(1) == ["granted a on cuda:0"]


def test_the_next_recovery_goes_by_the_rules_of_its_own_time():
    scenario = recovering(lock_delay_ms=60_000)
    scenario.tick(RECOVERY_MS + 60_000)
    scenario.happens(policy())
    scenario.loses(fence=2 * LOST_FENCE)
    scenario.request("a", 8_192)
    assert scenario.tick(RECOVERY_MS) == ["granted a on cuda:0"]


def test_who_is_elected_late_in_it_leaves_a_session_ttl_to_those_who_look_for_a_leader():
    """Nobody may have led since the loss, and nobody have reasserted anything."""
    scenario = recovering(lock_delay_ms=1_000)
    scenario.request("a", 24_576)
    scenario.now_ms += RECOVERY_MS + 999
    scenario.happens(elected())
    assert scenario.tick(RECOVERY_MS - 1) == []
    assert scenario.reasserts("b") == ["again granted b on cuda:0"]
    assert scenario.tick(1) == []
    assert scenario.release("b") == ["ended b: released, freed", "granted a on cuda:0"]


def test_a_jump_that_the_election_found_counts_once():
    scenario = recovering(lock_delay_ms=1_000)
    scenario.request("a", 8_192)
    scenario.now_ms += 3_600_000 + 500  # half a second went by, and the server's clock was put an hour ahead
    scenario.happens(elected())
    scenario.happens(jumped(scenario.now_ms, 3_600_000))
    assert scenario.tick(RECOVERY_MS + 499) == []
    assert scenario.tick(1) == ["granted a on cuda:0"]


def test_a_jump_moves_what_an_election_before_it_left():
    scenario = recovering()
    scenario.request("a", 8_192)
    scenario.tick(RECOVERY_MS - 1)
    scenario.happens(elected())
    scenario.now_ms += 3_600_001
    scenario.happens(jumped(scenario.now_ms, 3_600_000))
    assert scenario.tick(RECOVERY_MS - 2) == []
    assert scenario.tick(1) == ["granted a on cuda:0"]


def test_an_election_that_lost_nothing_neither_ends_nor_restarts_it():
    scenario = recovering()
    scenario.request("a", 8_192)
    assert scenario.happens(elected()) == []
    assert scenario.reasserts("b") == ["again granted b on cuda:0"]
    assert scenario.tick(RECOVERY_MS - 1) == []
    assert scenario.tick(1) == ["granted a on cuda:0"]


def test_a_second_loss_begins_it_again():
    scenario = recovering()
    scenario.request("a", 8_192)
    scenario.tick(5_000)
    assert scenario.loses(fence=2 * LOST_FENCE) == []
    assert scenario.tick(RECOVERY_MS - 1) == []
    assert scenario.tick(1) == ["granted a on cuda:0"]
    assert scenario.last.fence == 2 * LOST_FENCE + 1


def test_a_loss_after_a_recovery_is_recovered_from_too():
    scenario = recovering()
    scenario.tick(RECOVERY_MS)
    scenario.loses()
    assert scenario.reasserts("a") == ["again granted a on cuda:0"]
    assert scenario.request("b", 1) == []
    assert scenario.tick(RECOVERY_MS) == ["granted b on cuda:0"]


def test_a_forged_loss_begins_nothing():
    scenario = Lossy(24_576)
    assert scenario.forges(elected(LogLost("1-1", 9_999)), 1, 99) == ["rejected: forged"]
    assert scenario.state.recovering_since_ms is None
    assert scenario.request("a", 1) == ["granted a on cuda:0"]
    assert scenario.last.fence == 1


@pytest.mark.parametrize(("said_ms", "ends_ms"), [(90_000, 90_000), (10_000, 60_000), (None, 60_000)])
def test_a_renewal_that_was_lost_holds_if_it_is_the_longer_one(said_ms, ends_ms):
    scenario = Lossy(24_576)
    scenario.request("a", 8_192, ttl_ms=60_000)
    scenario.loses()
    scenario.reasserts("a", expires_at_ms=None if said_ms is None else START_MS + said_ms)
    assert scenario.tick(ends_ms - 1 - (scenario.now_ms - START_MS)) == []
    assert scenario.tick(1) == ["ended a: expired, freed"]


def test_no_renewal_is_made_up_where_nothing_was_lost():
    scenario = Lossy(24_576)
    scenario.request("a", 8_192, ttl_ms=60_000)
    scenario.reasserts("a", expires_at_ms=START_MS + 90_000)
    assert scenario.tick(60_000) == ["ended a: expired, freed"]
