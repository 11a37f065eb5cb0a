"""Plans against brute force: there is one if any leases could make room, none can be spared, and what is held stays."""

from __future__ import annotations

from itertools import chain, combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gpuboss.core.ledger import Device, Lease
from gpuboss.core.plans import Plan
from gpuboss.core.waitlist import Waiting
from gpuboss.events import LeaseDenied, LeaseGranted, LeaseReleased, YieldRequested
from tests.core.test_promises import Day

CLASSES = ("low", "normal", "high")
seeds = st.integers(0, 2**32)


def without_reservations(seed: int) -> Day:
    """A day on which nothing is reserved, so that only what is held is in anybody's way."""
    day = Day(seed, bounded=False, asks_back=True)
    rules: dict[str, Any] = {"reservations": 0, "starve_ms": 10**9, "backfill_order": "key"}
    day.stamp(replace(day.state.policy, **rules))
    day.settle()
    return day


def goes(day: Day, lease: Lease) -> bool:
    """Whether it was asked back before, for nobody who waits now."""
    assert lease.yield_by_ms is not None or lease.state != "yielding"
    return lease.state == "yielding" and all(lease not in plan.leases for plan in plans(day).values())


def may_be_asked(day: Day, waiting: Waiting, lease: Lease) -> bool:
    """Whether the rules allow that a lease is asked back for a request."""
    rules, state = day.state.policy, day.state
    asker, holder = (CLASSES.index(each.request.priority) for each in (waiting, lease))
    if lease.state == "idle":
        return holder <= asker
    if lease.state != "held" or rules.preemption != "lower" or holder >= asker:
        return False
    after_ms = rules.preempt_after_ms.high if asker == 2 else rules.preempt_after_ms.normal
    waited_ms, ran_ms = state.ticked_ms - waiting.requested_at_ms, state.ticked_ms - lease.granted.granted_at_ms
    return waited_ms >= after_ms and ran_ms >= max(1, rules.min_run_ms)


def has_room(waiting: Waiting, device: Device, gone: list[Lease]) -> bool:
    """Whether one part of a request fits on a device once these leases are gone."""
    there = [lease.request for lease in device.leases.values() if lease not in gone]
    alone = waiting.request.exclusive
    if any(request.exclusive for request in there) or (alone and there):
        return False
    used_mib = sum(request.vram_mib for request in there) + device.observed.foreign_mib
    return device.healthy and device.capacity_mib - used_mib >= waiting.request.vram_mib


def could_begin(day: Day, waiting: Waiting) -> bool:
    """By brute force: whether there are devices, and leases that may be asked back, which would make room; and no such
    devices where nothing would have to be asked."""
    shape, found = waiting.shape, False
    # Idle leases come first; where what goes already is enough for such a plan, there is none of the other kind.
    for states in (("idle",), ("idle", "held")):
        able = [device for device in day.state.candidates(shape) if device.plan is None]
        for devices in combinations(able, shape.gpus):
            if len({device.observed.node for device in devices}) > 1:
                continue
            there = list(chain.from_iterable(device.leases.values() for device in devices))
            going = [lease for lease in there if goes(day, lease)]
            if all(has_room(waiting, device, going) for device in devices):
                return False
            asked = [lease for lease in there if lease.state in states and may_be_asked(day, waiting, lease)]
            found = found or all(has_room(waiting, device, going + asked) for device in devices)
        if found:
            return True
    return False


def plans(day: Day) -> dict[str, Plan]:
    """All plans, by the lease_id for which they are."""
    return {i: waiting.plan for i, waiting in day.state.waitlist.by_id.items() if waiting.plan is not None}


class Watched:
    """What was asked back and is held, from entry to entry."""

    def __init__(self, day: Day) -> None:
        self.day = day
        self.asked: dict[str, None] = {}  # leases that were asked back
        self.held_mib: dict[tuple[str, str], int] = {}  # by request and device
        self.begun = self.used = self.dissolved = 0

    def cancel_some(self) -> None:
        """Now and then somebody does not want any more what was asked back for it."""
        waiting = plans(self.day)
        if waiting and self.day.random.random() < 0.15:
            self.day.write(LeaseReleased(self.day.random.choice(sorted(waiting)), "imajin"))

    def check(self) -> None:
        """Decide the entry. Raises AssertionError."""
        before = plans(self.day)
        told = [each.decision for each in self.day.settle()]
        after = plans(self.day)
        for decision in told:
            if isinstance(decision, YieldRequested):
                assert decision.lease_id not in self.asked, "it is asked once"
                self.asked[decision.lease_id] = None
            elif isinstance(decision, LeaseGranted | LeaseDenied) and decision.lease_id in before:
                self.used += isinstance(decision, LeaseGranted)
                self.dissolved += isinstance(decision, LeaseDenied)
        for lease_id, lease in self.day.state.ledger.leases.items():
            assert lease_id not in self.asked or lease.state in ("yielding", "reclaiming"), "it was revived"
        self._check_holds(after)
        if not any(isinstance(decision, LeaseGranted) for decision in told):
            for lease_id, plan in after.items():
                if before.get(lease_id) is not plan:
                    self.begun += 1
                    self._check_least(plan)
        self._check_all_have_one()

    def _check_holds(self, after: dict[str, Plan]) -> None:
        held_mib = {(i, device.key): device.hold_mib for i, plan in after.items() for device in plan.devices}
        for key, mib in held_mib.items():
            assert mib >= self.held_mib.get(key, 0), "what was held is gone"
        self.held_mib = held_mib
        for device in self.day.state.ledger.devices.values():
            assert device.free_mib >= 0
        for plan in after.values():
            gone = plan.leases
            assert all(has_room(plan.waiting, device, gone) for device in plan.devices), "it will not do"
            assert len(plan.devices) == plan.waiting.request.gpus

    def _check_least(self, plan: Plan) -> None:
        for lease in plan.leases:
            others = [each for each in plan.leases if each is not lease]
            assert not all(has_room(plan.waiting, device, others) for device in plan.devices), "it could be spared"
        assert any(lease.yield_set_ms == self.day.state.now_ms for lease in plan.leases), "nobody had to be asked"

    def _check_all_have_one(self) -> None:
        shapes = []
        for waiting in self.day.state.waitlist.in_order():
            if waiting.plan is None and waiting.shape not in shapes:
                shapes.append(waiting.shape)
                assert not could_begin(self.day, waiting), "it waits, and leases could be asked back for it"


def test_there_is_a_plan_wherever_brute_force_finds_one_and_nobody_in_it_can_be_spared() -> None:
    begun = used = dissolved = 0
    for seed in range(80):
        day = without_reservations(seed)
        watched = Watched(day)
        for _ in day.events(60):
            watched.cancel_some()
            watched.check()
        begun, used, dissolved = begun + watched.begun, used + watched.used, dissolved + watched.dissolved
    assert min(begun, used, dissolved) > 20, (begun, used, dissolved)


@given(seed=seeds)
@settings(max_examples=15)
def test_plans_of_any_seed(seed: int) -> None:
    day = without_reservations(seed)
    watched = Watched(day)
    for _ in day.events(60):
        watched.cancel_some()
        watched.check()


@pytest.mark.parametrize("seed", range(12))
def test_plans_survive_a_restart_at_any_entry(seed: int) -> None:
    """The same log with and without restarts: the same decisions, entry by entry."""
    plain, restarted = (Day(seed, bounded=False, asks_back=True) for _ in range(2))
    for one, other in zip(plain.events(60), restarted.events(60), strict=True):
        assert one == other
        restarted.restart()
        assert plain.settle() == restarted.settle()
    assert plain.entries == restarted.entries
