"""Who wrote it: facts and decisions count only with the reign and the number that the scheduler's next entry has."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuboss import events
from gpuboss.core.machine import entry_ms
from gpuboss.events import (
    ClockJumped,
    ClockTicked,
    LeaseGranted,
    LeaseObserved,
    LeaseReasserted,
    LeaseRevoked,
    SchedulerElected,
    SnapshotTaken,
)
from tests.core.scenario import (
    START_MS,
    Log,
    Scenario,
    device_lost,
    fold,
    jumped,
    observed,
    padded,
    policy,
    reclaimed,
    session_lost,
)

GRANT = LeaseGranted(
    cause=f"{START_MS}-0",
    lease_id=padded("a"),
    service="imajin",
    node="alpha",
    device="cuda:0",
    devices=("cuda:0",),
    uuids=("GPU-alpha-0",),
    vram_mib=1,
    granted_at_ms=START_MS,
    expires_at_ms=None,
    waited_ms=0,
    fence=99,
)
FACTS = [
    SchedulerElected("me", "0", 1, "mine"),
    policy(),
    observed(7, 99_999),
    session_lost("s"),
    ClockTicked(2**53 - 1),
    GRANT,
]


WRONG_STAMPS = [(0, 0), (1, 0), (0, 1), (1, 3), (1, 5), (0, 4), (2, 3), (2, 5), (7, 1)]


@pytest.mark.parametrize("event", FACTS, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize(("epoch", "seq"), WRONG_STAMPS)
def test_what_does_not_follow_is_forged_and_changes_nothing(event, epoch, seq):
    scenario = Scenario(24_576)  # three facts: the next entry of the scheduler is its fourth, in epoch 1
    state = scenario.state
    before = (state.epoch, state.seq, state.now_ms, state.policy, len(state.ledger.devices), state.fence)

    assert scenario.forges(event, epoch, seq) == ["rejected: forged"]

    now = (state.epoch, state.seq - 1, state.now_ms, state.policy, len(state.ledger.devices), state.fence)
    assert now == before, "but for the rejection itself, which is counted"
    assert scenario.heard[-1].address is None
    assert scenario.tick() == []
    assert scenario.request("a", 1, session="s") == ["granted a on cuda:0"]


@pytest.mark.parametrize("event", FACTS, ids=lambda event: type(event).__name__)
def test_a_right_stamp_is_a_right_stamp_for_its_kind_alone(event):
    elected = isinstance(event, SchedulerElected)
    for epoch, follows in ((1, not elected), (2, elected), (9, elected)):
        scenario = Scenario(24_576)
        lines = scenario.forges(event, epoch, 4)
        assert ("rejected: forged" not in lines) == follows


def test_the_detail_says_what_was_claimed_and_what_was_expected():
    scenario = Scenario(24_576)
    scenario.writes(b"ClockTicked", b'{"now_ms":5,"epoch":4,"seq":17}')
    detail = scenario.last.detail
    for words in ("ClockTicked", "epoch 4", "seq 17", "expected 1 and 4"):
        assert words in detail


def test_before_any_scheduler_was_elected_nothing_has_a_right_stamp_but_an_election():
    for epoch, right in ((0, []), (1, ["SchedulerElected"])):
        accepted = []
        for event in FACTS:
            log = Log()
            log.write_stamped(event, epoch, 1)
            if not log.read():
                accepted.append(type(event).__name__)
        assert accepted == right


def test_a_recorded_decision_changes_nothing_but_the_count():
    scenario = Scenario(24_576)
    scenario.stamp(GRANT)
    assert scenario.settle() == []
    assert scenario.state.ledger.leases == {}
    assert scenario.state.fence == 0
    assert scenario.state.seq == scenario.seq
    assert scenario.state.last_id == scenario.entries[-1].id


def test_a_new_reign_counts_on_and_the_old_one_is_over():
    scenario = Scenario(24_576)
    scenario.happens(SchedulerElected("second", "0", 1, "log-1"))
    assert scenario.state.epoch == 2
    tick = ClockTicked(START_MS + 5)
    assert scenario.forges(tick, 1, 4) == ["rejected: forged"], "the deposed one wakes up, and writes on"
    assert scenario.forges(tick, 1, scenario.seq + 1) == ["rejected: forged"]
    assert scenario.happens(tick) == []


def test_epochs_may_be_skipped_and_incarnations_are_taken_over():
    scenario = Scenario(24_576)
    scenario.epoch += 41
    assert scenario.happens(SchedulerElected("second", "0", 1, "log-2")) == []
    assert (scenario.state.epoch, scenario.state.incarnation) == (43, "log-2")


def test_a_revocation_that_the_scheduler_wrote_is_counted():
    scenario = Scenario(24_576)
    scenario.request("a", 1)
    event = LeaseRevoked(padded("a"), "its row was deleted", "operator")
    assert scenario.happens(event) == ["ended a: revoked, freed"]
    assert scenario.tick() == [], "the next number still fits"
    scenario.request("b", 1)
    data = b'{"lease_id":"b_______","reason":"maintenance","by":"root","epoch":1,"seq":999}'
    assert scenario.writes(b"LeaseRevoked", data) == ["ended b: revoked, freed"], "anybody may revoke"
    assert scenario.tick() == []


def test_a_fact_with_a_right_stamp_that_cannot_be_read_is_counted_and_rejected():
    scenario = Scenario(24_576)
    scenario.seq += 1
    data = b'{"node":"alpha","device":"nonsense","epoch":1,"seq":%d}' % scenario.seq
    assert scenario.writes(b"DeviceObserved", data) == ["rejected: invalid"]
    assert scenario.tick() == []


GOOD_FACTS = (
    *(SchedulerElected("me", "0", 1, "log-1"), policy(), observed(0, 24_576), device_lost(0), session_lost("s")),
    *(LeaseObserved(padded("a"), "cuda:0", 5), ClockTicked(START_MS), jumped(START_MS, 5), reclaimed("a")),
    SnapshotTaken("1-1", "0" * 64, "f" * 64),
)
TRUE: dict[str, Any] = {name: value for fact in GOOD_FACTS for name, value in msgspec.to_builtins(fact).items()}
ODD: list[Any] = [None, 0, 1, -1, 2**53, "", "abc", "cuda:1", "beta", "1-1", [], {}, True, 1.5, {"low": 0}]
odd = st.sampled_from(ODD)
names = st.sampled_from(sorted(set(TRUE) - {"from_id"}))


def test_the_good_facts_are_all_there_are():
    assert {type(fact).__name__ for fact in GOOD_FACTS} == set(events.FACTS)


@given(st.lists(st.tuples(st.sampled_from(sorted(events.FACTS)), st.dictionaries(names, odd, max_size=2)), max_size=8))
@settings(max_examples=60)
def test_no_fact_whatever_breaks_the_scheduler(facts):
    scenario = Scenario(24_576)
    scenario.request("a", 8_192, session="s", ttl_ms=100)
    for type_name, lies in facts:
        scenario.epoch += type_name == "SchedulerElected"
        scenario.seq += 1
        stamp = {"epoch": scenario.epoch, "seq": scenario.seq}
        lines = scenario.writes(type_name.encode(), json.dumps(TRUE | lies | stamp).encode())
        assert "rejected: forged" not in lines
        scenario.restart()


@pytest.mark.parametrize("from_id", ["", "abc", "-", "²-0"])
def test_a_jump_from_nowhere_is_rejected(from_id):
    scenario = Scenario(24_576)
    assert scenario.happens(ClockJumped(from_id, 5)) == ["rejected: invalid"]


def test_a_fact_of_which_these_rules_know_nothing_is_rejected_and_stops_nothing():
    scenario = Scenario(24_576)
    scenario.request("a", 1)
    assert scenario.happens(LeaseObserved(padded("a"), "cuda:0", 7)) == ["rejected: unknown_type"]
    assert scenario.release("a") == ["ended a: released, freed"]


def test_the_policy_and_the_devices_are_taken_as_they_are_recorded():
    scenario = Scenario()
    assert scenario.state.policy_recorded
    assert scenario.state.policy == policy()
    device = observed(3, 10_000, reserved_mib=1_000, margin_mib=500, foreign_mib=100)
    scenario.happens(device)
    [known] = scenario.state.ledger.devices.values()
    assert (known.observed, known.capacity_mib, known.free_mib) == (device, 8_500, 8_400)


def test_before_any_policy_the_defaults_hold():
    state = Log().state
    assert not state.policy_recorded
    assert state.policy == policy(60_000, 10_000, low=0, normal=900_000, high=3_600_000)


def reasserted(name: str, service: str = "imajin") -> LeaseReasserted:
    """A holder repeats its lease."""
    return LeaseReasserted(padded(name), service, "alpha", "cuda:0", ["cuda:0"], 8_192, "normal", "held", START_MS, 1)


def test_a_lease_reasserted_is_known_or_it_is_not():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192)
    assert scenario.says(reasserted("a")) == []
    assert scenario.says(reasserted("a", "other")) == ["rejected a: not_owner"]
    assert scenario.says(reasserted("b")) == ["rejected b: unknown_lease"]
    scenario.release("a")
    assert scenario.says(reasserted("a")) == ["rejected a: unknown_lease"]
    assert scenario.state.ledger.leases == {}


def test_the_state_knows_how_far_it_has_come():
    scenario = Scenario(24_576)
    scenario.request("a", 1)
    state = fold(scenario.entries)
    assert state.last_id == scenario.entries[-1].id
    assert entry_ms(state.last_id) == START_MS
    assert (state.epoch, state.seq) == (scenario.epoch, scenario.seq)
