"""Pre-emption: a higher class may have leases of lower ones asked back, in time, and never in circles."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from gpuboss.core.policy import RANK
from gpuboss.core.timers import TimerKind
from gpuboss.events import ClockTicked, LeaseGranted, LeaseReleased, YieldRequested
from gpuboss.fields import PreemptAfter, ServiceRules
from tests.core.scenario import START_MS, Scenario, device_lost, idled, jumped, padded, policy, resumed

RULES: dict[str, Any] = {
    "preemption": "lower",
    "preempt_after_ms": PreemptAfter(normal=2_000, high=500),
    "min_run_ms": 1_000,
    "grace_ms": 300,
}


def lower(*sizes_mib: int, **rules: Any) -> Scenario:
    """Devices, and rules by which held leases are asked back."""
    scenario = Scenario(*sizes_mib)
    scenario.happens(replace(policy(), **(RULES | rules)))
    return scenario


def due(scenario: Scenario) -> int | None:
    """In how many ms the scheduler will write a tick; None: not before somebody starves, if nothing else happens."""
    timer = scenario.state.next_timer()
    return None if timer is None or timer.kind is TimerKind.STARVATION else timer.deadline_ms - scenario.state.now_ms


# ---------------------------------------------------------------- who, and when


@pytest.mark.parametrize(
    ("asks", "holds", "after_ms"),
    [
        ("high", "normal", 500),
        ("high", "low", 500),
        ("normal", "low", 2_000),
        *((one, other, None) for one in RANK for other in RANK if RANK[one] <= RANK[other]),
    ],
)
def test_a_class_may_have_lower_ones_asked_back_once_it_waited(asks, holds, after_ms):
    given = lower(24_576)
    given.request("held", 20_000, priority=holds)
    given.tick(after_ms=5_000)
    assert given.request("b", 8_192, priority=asks) == []
    assert due(given) == after_ms
    if after_ms is None:
        assert given.tick(after_ms=3_600_000) == []
    else:
        assert given.tick(after_ms=after_ms - 1) == []
        assert given.tick(after_ms=1) == ["asked back held within 300 ms for b"]


def test_a_lease_runs_for_a_while_before_it_is_asked_back():
    given = lower(24_576)
    given.request("b-0", 20_000, priority="low")
    given.request("b", 8_192, priority="high")
    assert given.tick(after_ms=500) == []
    assert due(given) == 500
    assert given.tick(after_ms=499) == []
    assert given.tick(after_ms=1) == ["asked back b-0 within 300 ms for b"]


def test_only_a_tick_gives_the_right():
    given = lower(24_576)
    given.request("held", 20_000, priority="low")
    given.request("b", 8_192, priority="high")
    given.now_ms += 10_000
    assert given.request("c", 24_576) == []
    assert given.says(LeaseReleased(padded("c"), "imajin")) == ["denied c: cancelled"]
    assert given.tick() == ["asked back held within 300 ms for b"]


def test_nothing_is_written_where_time_alone_changes_nothing():
    given = lower(24_576, services={"imajin": ServiceRules(guarantee_mib=20_000)})
    given.request("held", 20_000, priority="low", preemptible=False)
    given.request("b", 8_192, priority="high")
    given.tick(after_ms=500)
    assert due(given) is None


def test_a_lease_that_begins_later_is_asked_back_in_its_time():
    given = lower(24_576)
    given.request("held", 20_000, priority="high")
    given.request("b", 24_576, priority="high", device="cuda:0")
    given.tick(after_ms=5_000)
    given.request("late", 4_000, priority="low")
    assert due(given) == 1_000
    assert given.tick(after_ms=1_000) == [], "without the other it would not help"
    given.release("held")
    assert given.state.ledger.leases[padded("late")].state == "yielding"


def test_age_orders_and_never_evicts():
    given = lower(24_576)
    given.request("held", 20_000, priority="normal")
    given.request("old", 8_192, priority="normal")
    assert given.tick(after_ms=30 * 24 * 3_600_000) == []


@pytest.mark.parametrize("reservations", [0, 4])
def test_the_next_of_a_size_has_the_chances_of_who_is_gone(reservations):
    given = lower(24_576, reservations=reservations)
    given.request("held", 20_000, priority="low")
    given.request("a", 8_192, priority="high")
    given.request("b", 8_192, priority="high")
    given.tick(after_ms=600)
    given.release("a")
    assert due(given) == 400
    assert given.tick(after_ms=400) == ["asked back held within 300 ms for b"]


@pytest.mark.parametrize(("ran_ms", "after_ms"), [(0, 1_000), (5_000, 500)])
def test_a_jump_of_the_clock_gives_no_right(ran_ms, after_ms):
    given = lower(24_576)
    given.request("held", 20_000, priority="low")
    given.tick(after_ms=ran_ms)
    given.request("b", 8_192, priority="high")
    given.now_ms += 3_600_000
    given.happens(jumped(given.now_ms, 3_600_000))
    assert given.tick() == []
    assert given.tick(after_ms=after_ms - 1) == []
    assert given.tick(after_ms=1) == ["asked back held within 300 ms for b"]


def test_idle_leases_are_enough_where_they_are():
    given = lower(24_576, 24_576)
    given.request("held", 24_576, priority="low", device="cuda:0")
    given.request("warm", 24_576, priority="high", device="cuda:1", reclaimable=True)
    given.says(idled("warm"))
    given.tick(after_ms=5_000)
    assert given.request("b", 8_192, priority="high") == ["asked back warm within 300 ms for b"]


# ---------------------------------------------------------------- which


def test_the_lowest_class_first_in_it_the_idle_then_the_youngest_and_no_more_than_is_needed():
    given = lower(24_576)
    for name, vram_mib, priority in (
        ("normal", 4_000, "normal"),
        ("low-old", 6_000, "low"),
        ("low-idle", 3_000, "low"),
        ("low-new", 5_000, "low"),
        ("high", 4_000, "high"),
    ):
        given.request(name, vram_mib, priority=priority, reclaimable=True)
        given.now_ms += 10
    given.says(idled("low-idle"))
    given.request("b", 6_000, priority="high")
    assert given.state.ledger.leases[padded("low-idle")].state == "idle", "it is not enough alone"
    given.tick(after_ms=2_000)
    asked = [each.decision.lease_id.rstrip("_") for each in given.heard if isinstance(each.decision, YieldRequested)]
    assert asked == ["low-new"], "2,576 MiB are free: the idle one is not needed beside it"


def test_what_is_protected_is_not_asked_back():
    given = lower(24_576, services={"imajin": ServiceRules(guarantee_mib=8_192)})
    given.request("safe", 8_192, priority="low", preemptible=False)
    given.request("held", 8_192, priority="normal")
    given.request("b", 12_000, priority="high")
    assert given.tick(after_ms=2_000) == ["asked back held within 300 ms for b"]


def test_the_lower_of_two_devices():
    given = lower(24_576, 24_576)
    given.request("normal", 20_000, device="cuda:0")
    given.request("low", 24_576, priority="low", device="cuda:1")
    given.tick(after_ms=5_000)
    given.request("b", 8_192, priority="high")
    assert given.tick(after_ms=500) == ["asked back low within 300 ms for b"]


# ---------------------------------------------------------------- whole plans


def test_no_plan_is_begun_that_leaves_a_part_of_a_gang_blocked():
    given = lower(24_576, 24_576)
    given.request("low", 20_000, priority="low", device="cuda:0")
    given.request("other", 20_000, priority="high", device="cuda:1")
    given.request("gang", 8_192, gpus=2, priority="high")
    assert given.tick(after_ms=5_000) == []
    assert given.release("other") == ["ended other: released, freed", "asked back low within 300 ms for gang"]
    assert given.request("b", 16_385, priority="high") == [], "the gang's part of the free device is held"
    assert given.tick(after_ms=300) == ["ended low: revoked, freed", "granted gang on cuda:0+cuda:1"]


def test_two_gangs_that_each_need_more_than_half_come_one_after_the_other():
    given = lower(*[24_576] * 3)
    for number in range(3):
        given.request(f"low-{number}", 24_576, priority="low", device=f"cuda:{number}")
    given.tick(after_ms=5_000)
    given.request("gang-0", 24_576, gpus=2, priority="high")
    given.request("gang-1", 24_576, gpus=2, priority="high")
    assert given.tick(after_ms=500) == [
        "asked back low-1 within 300 ms for gang-0",
        "asked back low-0 within 300 ms for gang-0",
    ]
    assert given.tick(after_ms=300)[-1] == "granted gang-0 on cuda:0+cuda:1"
    assert given.tick(after_ms=60_000) == [], "the other would have to take from its own class"
    assert given.release("gang-0")[-1] == "granted gang-1 on cuda:0+cuda:1"
    assert given.state.ledger.leases[padded("low-2")].state == "held"


def test_who_is_gone_in_the_middle_leaves_the_room_to_all():
    given = lower(24_576)
    given.request("low-0", 12_000, priority="low")
    given.request("low-1", 12_000, priority="low")
    given.tick(after_ms=5_000)
    given.request("b", 24_000, priority="high")
    given.tick(after_ms=500)
    given.release("low-0")
    given.request("waits", 12_000, priority="low")
    assert given.release("b") == ["denied b: cancelled", "granted waits on cuda:0"]
    assert given.release("low-1") == ["ended low-1: yielded, freed"]


def test_a_device_that_is_lost_in_the_middle_leaves_nothing_held():
    given = lower(24_576, 24_576)
    given.request("low-0", 24_576, priority="low", device="cuda:0")
    given.request("low-1", 24_576, priority="low", device="cuda:1")
    given.tick(after_ms=5_000)
    given.request("gang", 1_000, gpus=2, priority="high")
    given.tick(after_ms=500)
    assert given.happens(device_lost(1)) == ["ended low-1: device_lost, freed", "denied gang: impossible"]
    given.restart()
    assert given.release("low-0") == ["ended low-0: yielded, freed"]
    assert given.request("b", 24_576, priority="low") == ["granted b on cuda:0"]


# ---------------------------------------------------------------- nothing goes in circles


def test_a_flood_of_a_higher_class_takes_each_lease_once_and_then_waits():
    """Whoever loses its lease asks again at once, as a service would."""
    given = lower(*[24_576] * 2)
    for number in range(6):
        given.request(f"low-{number}", 8_192, priority="low")
    given.tick(after_ms=5_000)
    for number in range(20):
        given.request(f"high-{number:02}", 8_192, priority="high")
    asked_again = 0
    while (in_ms := due(given)) is not None:
        heard = len(given.heard)
        given.now_ms += max(0, in_ms)
        given.happens(ClockTicked(given.now_ms))
        for told in given.heard[heard:]:
            if isinstance(told.decision, YieldRequested):
                given.release(told.decision.lease_id.rstrip("_"))
                given.request(f"again-{asked_again}", 8_192, priority="low")
                asked_again += 1
    asked = [each.decision for each in given.heard if isinstance(each.decision, YieldRequested)]
    assert len(asked) == 6
    assert len({each.lease_id for each in asked}) == 6
    held = [lease.request.priority for lease in given.state.ledger.leases.values()]
    assert held == ["high"] * 6


def test_a_lease_that_is_granted_is_not_asked_back_with_the_grant():
    given = lower(24_576, min_run_ms=0, preempt_after_ms=PreemptAfter(normal=0, high=0))
    given.request("other", 16_000, priority="high")
    given.tick()
    assert given.request("b", 16_000, priority="high") == []
    assert given.request("low", 8_000, priority="low") == ["granted low on cuda:0"]
    grants = [each.decision for each in given.heard if isinstance(each.decision, LeaseGranted)]
    assert grants[-1].granted_at_ms == START_MS
    assert due(given) == 1


def test_a_lease_that_was_idle_and_is_used_again_is_held():
    given = lower(24_576)
    given.request("normal", 20_000, reclaimable=True)
    given.says(idled("normal"))
    given.says(resumed("normal"))
    given.tick(after_ms=5_000)
    assert given.request("b", 8_192) == []
    assert given.request("c", 8_192, priority="high") == []
    assert given.tick(after_ms=500) == ["asked back normal within 300 ms for c"]
