"""Recorded requests run again: the same under the same rules, and set side by side where something differs."""

from __future__ import annotations

from typing import Any

import pytest

from gpuboss.config import PolicyConfig, ServiceConfig
from gpuboss.core.state import State
from gpuboss.fields import HeadStart
from gpuboss.log import Entry as LogEntry
from gpuboss.simulation.recorded import Recording
from gpuboss.simulation.schedule import Job, Schedule
from gpuboss.simulation.what_if import Comparison, RequestChange, compare, run_again
from tests.core.scenario import START_MS, Scenario, device_lost, padded, policy
from tests.simulation.traces import asks, became, drawn, facts_of, outcome_of, simulated

Devices = list[tuple[int, int]]
DEVICES = [(0, 24_576), (1, 24_576), (2, 8_192)]


def recording_of(entries: Any) -> Recording:
    recording = Recording(State())
    recording.collect([LogEntry(*entry) for entry in entries], frozenset())
    return recording


def again(log: Scenario, devices: Devices | None = None, rules: PolicyConfig | None = None) -> Schedule:
    """The requests of a story run again."""
    found = recording_of(log.entries)
    return run_again(found.schedule(), found.facts, devices, rules)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("devices", "rules"), [(DEVICES, PolicyConfig()), (DEVICES, None), (None, PolicyConfig()), (None, None)]
)
def test_the_same_devices_and_rules_give_the_recorded_schedule(
    seed: int, devices: Devices | None, rules: PolicyConfig | None
) -> None:
    log: list[Any] = []
    schedule = simulated(drawn(seed), *(mib for _, mib in DEVICES), log=log)
    assert sum(wait > 0 for wait in waits(schedule)) > 10
    found = recording_of(log)
    recorded = found.schedule()
    what_if = run_again(recorded, found.facts, devices, rules)
    assert what_if.outcomes == recorded.outcomes
    comparison = compare(recorded, what_if)
    assert comparison.recorded == comparison.what_if
    assert (comparison.saved_ms, comparison.sooner, comparison.later) == (0, 0, 0)
    assert (comparison.newly_granted, comparison.no_longer_granted, comparison.helped_most) == (0, 0, [])


def waits(schedule: Schedule) -> list[int]:
    pairs = zip(schedule.jobs, schedule.outcomes, strict=True)
    return [out.granted_at_ms - job.submit_ms for job, out in pairs if out.granted_at_ms is not None]


JOBS: list[Job] = [
    asks("a", 0, 100, 10),
    asks("b", 0, 100, 10, service="ollama"),
    asks("c", 1, 100, 10, service="whisper", priority="low"),
    asks("d", 2, 100, 10, service="ollama", wait_ms=4),
    asks("huge", 3, 150, 10, service="whisper"),
]


def both(*sizes_mib: int) -> Comparison:
    """The jobs above on one device, and then on these."""
    recorded = simulated(JOBS, 100)
    return compare(recorded, run_again(recorded, facts_of(JOBS, 100), list(enumerate(sizes_mib)), PolicyConfig()))


def test_a_second_device_helps_and_one_sees_whom() -> None:
    found = both(100, 100)
    assert (found.saved_ms, found.sooner, found.later, found.same) == (20, 2, 0, 1)
    assert (found.newly_granted, found.no_longer_granted, found.assumed_holds) == (0, 0, 0)
    assert [(each.service, each.saved_ms) for each in found.services] == [
        ("ollama", 10),
        ("whisper", 10),
        ("imajin", 0),
    ]
    assert found.helped_most == [
        RequestChange(padded("b"), "ollama", "normal", 100, recorded_wait_ms=10, what_if_wait_ms=0, saved_ms=10),
        RequestChange(padded("c"), "whisper", "low", 100, recorded_wait_ms=19, what_if_wait_ms=9, saved_ms=10),
    ]


def test_who_is_granted_in_one_alone_is_counted_apart() -> None:
    found = both(100, 100, 100, 200)
    assert (found.newly_granted, found.no_longer_granted, found.assumed_holds) == (2, 0, 2)
    assert [(each.service, each.newly_granted) for each in found.services] == [
        ("whisper", 1),
        ("ollama", 1),
        ("imajin", 0),
    ]
    worse = both(50)
    assert (worse.newly_granted, worse.no_longer_granted, worse.saved_ms) == (0, 3, 0)
    assert [each.no_longer_granted for each in worse.services] == [1, 1, 1]
    assert worse.services[0].what_if.requests == 0


def test_who_is_granted_after_the_recordings_end_is_no_gain() -> None:
    log = Scenario(100)
    log.request("a", 100)
    log.now_ms += 10
    log.release("a")
    log.request("huge", 150)
    log.request("vast", 150)
    found = recording_of(log.entries)
    recorded = found.schedule()
    what_if = run_again(recorded, found.facts, [(0, 150)], None)
    assert [outcome.granted_at_ms for outcome in what_if.outcomes] == [START_MS, START_MS + 10, START_MS + 20]
    comparison = compare(recorded, what_if)
    assert (comparison.newly_granted, comparison.assumed_holds) == (1, 2)


def test_other_rules_alone_leave_the_devices_as_they_were_recorded() -> None:
    log = Scenario(100)
    log.request("a", 100)
    log.request("low", 100, priority="low")
    log.now_ms += 5
    log.request("high", 100, priority="high")
    log.now_ms += 5
    log.release("a")
    log.release("high")
    log.release("low")
    assert [granted for granted, _, _ in became(again(log)).values()] == [START_MS, START_MS + 10, START_MS + 10]
    level = PolicyConfig(head_start_ms=HeadStart(low=0, normal=0, high=0))
    assert outcome_of(again(log, rules=level), "low").granted_at_ms == START_MS + 10
    assert outcome_of(again(log, rules=level), "high").granted_at_ms == START_MS + 10
    assert became(again(log, rules=PolicyConfig(margin_mib=1)))["a"] == (None, START_MS, "impossible")


def test_a_limit_would_have_made_its_service_wait_and_nobody_else() -> None:
    log = Scenario(24_576)
    for name, service in (("one", "imajin"), ("two", "imajin"), ("other", "ollama")):
        log.request(name, 8_192, service=service)
    log.now_ms += 60_000
    for name, service in (("one", "imajin"), ("two", "imajin"), ("other", "ollama")):
        log.release(name, service)
    limited = again(log, rules=PolicyConfig(services={"imajin": ServiceConfig(limit_mib=8_192)}))
    granted = {job.request.lease_id: outcome_of(limited, job.request.lease_id).granted_at_ms for job in limited.jobs}
    assert granted == {padded("one"): START_MS, padded("two"): START_MS + 60_000, padded("other"): START_MS}


def test_devices_come_and_go_as_they_did() -> None:
    log = Scenario(100)
    log.request("a", 100)
    log.now_ms += 10
    log.happens(device_lost(0))
    log.request("b", 100, ttl_ms=10)
    log.request("c", 100)
    log.now_ms += 10
    log.device(3, 100, simulated=False)
    log.now_ms += 10
    log.tick()
    assert log.state.ledger.leases[padded("b")].state == "reclaiming"
    assert became(again(log)) == {
        "a": (START_MS, START_MS + 10, "device_lost"),
        "b": (START_MS + 20, START_MS + 30, "expired"),
        "c": (START_MS + 30, START_MS + 40, "released"),
    }
    assert became(again(log, [(0, 100)]))["a"] == (START_MS, START_MS + 10, "released")


def test_rules_change_when_they_did_and_no_memory_lingers() -> None:
    log = Scenario(100, lock_delay_ms=60_000)
    log.happens(policy(lock_delay_ms=60_000, low=9_000_000))
    log.request("a", 100, ttl_ms=10)
    log.request("normal", 100)
    log.now_ms += 5
    log.request("low", 100, priority="low")
    log.tick(after_ms=5)
    granted = {name: at_ms for name, (at_ms, _, _) in became(again(log)).items()}
    assert (granted["low"], granted["normal"]) == (START_MS + 10, START_MS + 20)


def test_other_devices_are_one_node_that_all_may_use() -> None:
    log = Scenario()
    log.device(0, 100, node="alpha", uuid="GPU-first")
    log.device(0, 100, node="beta", uuid="GPU-other")
    log.request("a", 100, node="beta")
    log.request("b", 100, device="GPU-first")
    log.request("c", 100, device="GPU-other")
    for name in ("a", "b", "c"):
        log.release(name)
    reasons = {name: reason for name, (_, _, reason) in became(again(log, [(0, 100)])).items()}
    assert reasons == {"a": "released", "b": "released", "c": "impossible"}
