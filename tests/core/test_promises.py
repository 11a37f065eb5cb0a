"""What holds whatever comes: nobody who waits has a place, nobody who passes delays a start that was reserved, and the
first promise is kept, or its holder is told that it moved."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gpuboss.core.ledger import Device, Lease
from gpuboss.core.placement import place
from gpuboss.core.reservations import Reservation, Reservations
from gpuboss.core.waitlist import Shape, Waiting
from gpuboss.events import (
    ClockTicked,
    Event,
    EventRejected,
    LeaseDenied,
    LeaseGranted,
    LeaseIdled,
    LeaseReleased,
    LeaseRenewed,
    LeaseRequested,
    PolicySet,
    PromiseMoved,
    SchedulerElected,
    VramReclaimed,
)
from gpuboss.fields import PreemptAfter
from tests.core.scenario import Log, observed, policy

SIZES_MIB = (1_000, 2_000, 4_096, 8_192, 8_192, 12_288, 16_384, 24_576)
HIGH_MS = 300  # the largest head start
Key = tuple[int, int]
seeds = st.integers(0, 2**32)


class Day(Log):
    """Requests, releases and renewals drawn from a seed, with a tick at every deadline, and nothing from outside. In a
    `bounded` one every lease has a TTL. Where it `asks_back`, leases are kept idle and used again, and are asked back
    by the rules."""

    def __init__(self, seed: int, *, bounded: bool, asks_back: bool = False) -> None:
        super().__init__()
        self.random = Random(seed)
        self.bounded = bounded
        self.asks_back = asks_back
        self.asked: list[LeaseRequested] = []
        self.asked_at: list[tuple[int, int]] = []  # when, and as of when it counts
        draw = self.random.choice
        self.stamp(SchedulerElected("first", "0", 1, "log-1"))
        rules: dict[str, Any] = {
            "reservations": draw((1, 2, 4)),
            "backfill_order": draw(("key", "short")),
            "starve_ms": draw((100, 1_000)),
        }
        if asks_back:
            rules |= {
                "preemption": draw(("idle", "lower")),
                "preempt_after_ms": PreemptAfter(normal=draw((0, 40)), high=draw((0, 10))),
                "min_run_ms": draw((0, 30)),
                "grace_ms": draw((0, 20, 100)),
            }
        self.stamp(replace(policy(draw((0, 0, 50)), low=0, normal=100, high=HIGH_MS), **rules))
        for node, devices in (("alpha", self.random.randint(1, 3)), ("beta", self.random.randint(0, 1))):
            for number in range(devices):
                self.stamp(observed(number, draw((16_384, 24_576)), node))
        self.settle()

    def events(self, count: int) -> Iterator[Event]:
        """So many events, each written into the log before it is yielded, and the ticks that are due before it."""
        for _ in range(count):
            until_ms = self.now_ms + self.random.choice((0, 1, 5, 20, 60))
            while (due := self._due()) is not None and due[0] <= until_ms:
                self.now_ms = max(self.now_ms, due[0])
                self.stamp(due[1])
                yield due[1]
            self.now_ms = until_ms
            event = self._drawn()
            self.write(event)
            yield event

    def _due(self) -> tuple[int, Event] | None:
        """What the scheduler writes next, and when: a tick, or that memory is back."""
        lingering = [each for each in self.state.ledger.leases.values() if each.state == "reclaiming"]
        ends = [(end_of(each, self.state.policy) or 0, each.request.lease_id) for each in lingering]
        timer = self.state.next_timer()
        if ends and (timer is None or min(ends)[0] <= timer.deadline_ms):
            return min(ends)[0], VramReclaimed(min(ends)[1], "lock_delay")
        return None if timer is None else (timer.deadline_ms, ClockTicked(max(self.now_ms, timer.deadline_ms)))

    def _drawn(self) -> Event:
        draw = self.random.choice
        held = [lease for lease in self.state.ledger.leases.values() if lease.state != "reclaiming"]
        kind = draw(("ask", "ask", "ask", "release", "renew", "renew", *(["idle", "idle"] if self.asks_back else [])))
        if kind == "ask" or not held:
            ttl_ms = draw((10, 50, 200, 500)) if self.bounded or draw((True, False)) else None
            request = LeaseRequested(
                f"lease-{len(self.asked):05}",
                "imajin",
                draw(SIZES_MIB),
                draw(("low", "normal", "normal", "high")),
                gpus=draw((1, 1, 1, 1, 2)),
                exclusive=draw((False,) * 7 + (True,)),
                device=draw((None, None, None, None, "cuda:0")),
                ttl_ms=ttl_ms,
                wait_ms=draw((None, None, 400)),
                reclaimable=self.asks_back,
            )
            self.asked.append(request)
            head_start_ms: int = getattr(self.state.policy.head_start_ms, request.priority)
            self.asked_at.append((self.now_ms, self.now_ms - head_start_ms))
            return request
        lease = draw(held)
        if kind == "idle":
            return LeaseIdled(lease.request.lease_id, "imajin", draw((0, 5, 50)))
        if kind == "release":
            return LeaseReleased(lease.request.lease_id, "imajin")
        return LeaseRenewed(lease.request.lease_id, "imajin", draw((10, 50, 200, 500, 5_000)))

    def keys(self) -> dict[str, Key]:
        """Everyone who waits, with its place in the queue."""
        return {i: (each.key, each.arrival) for i, each in self.state.waitlist.by_id.items()}

    def key_of_new(self) -> Key:
        """The place in the queue of what was asked last, now."""
        return self.asked_at[-1][1], self.state.arrivals


def end_of(lease: Lease, rules: PolicySet) -> int | None:
    """When its memory is back, going by what it was granted, and by when it was asked back; None: never by itself."""
    if lease.reclaiming_since_ms is not None:
        settles_ms = rules.settle_ms if lease.settles else rules.lock_delay_ms
        return lease.reclaiming_since_ms + min(settles_ms, rules.lock_delay_ms)
    ends = [ms for ms in (lease.expires_at_ms, lease.yield_by_ms) if ms is not None]
    return min(ends) + rules.lock_delay_ms if ends else None


def fits(waiting: Waiting, device: Device, at_ms: int, rules: PolicySet) -> bool:
    """Whether one part of a request fits beside the leases that are still there at that time."""
    there = []
    for lease in device.leases.values():
        end_ms = end_of(lease, rules)
        if end_ms is None or end_ms > at_ms:
            there.append(lease.request)
    if any(request.exclusive for request in there) or (waiting.shape.exclusive and there):
        return False
    used_mib = sum(request.vram_mib for request in there) + device.observed.foreign_mib
    return device.healthy and used_mib + waiting.shape.vram_mib <= device.capacity_mib


# ---------------------------------------------------------------- nobody who waits has a place


@given(seed=seeds, bounded=st.booleans(), asks_back=st.booleans())
@settings(max_examples=15)
def test_after_a_pass_nobody_who_waits_has_an_admitted_place(seed: int, bounded: bool, asks_back: bool) -> None:
    day = Day(seed, bounded=bounded, asks_back=asks_back)
    for _ in day.events(80):
        day.settle()
        state = day.state
        for waiting in state.waitlist.in_order():
            before = Reservations()
            for each in state.reservations.in_order:
                if (each.waiting.key, each.waiting.arrival) < (waiting.key, waiting.arrival):
                    before.add(each)
            able = [
                device
                for device in state.candidates(waiting.shape)
                if before.admit(waiting.shape, device, state.now_ms, state.policy)
            ]
            assert place(waiting.shape, able) is None, waiting.request


# ---------------------------------------------------------------- who passes delays nobody


class Passing:
    """What was reserved before an entry, and whether it still holds after it."""

    def __init__(self, day: Day) -> None:
        self.day = day
        self.keys = day.keys()
        self.asked = len(day.asked)
        self.reserved = [each for each in day.state.reservations.in_order if each.start_ms is not None]
        self.in_time = self.beside = self.refused = 0

    def check(self) -> None:
        """Decide the entry. Raises AssertionError where a start is delayed by anybody but who comes before."""
        granted = []
        for told in self.day.settle():
            self.refused += isinstance(told.decision, EventRejected) and told.decision.reason == "reserved"
            if isinstance(told.decision, LeaseGranted):
                granted.append(told.decision.lease_id)
        for each in self.reserved:
            mine = (each.waiting.key, each.waiting.arrival)
            before = [i for i in granted if i in self.keys and self.keys[i] < mine]
            is_new = self.asked < len(self.day.asked)
            if each.waiting.gone or before or (is_new and self.day.key_of_new() < mine) or self._is_behind_new(each):
                continue
            assert each.start_ms is not None
            after = self.day.state.reservations.of(each.waiting)
            if after is not None and after.start_ms is not None and after.start_ms < each.start_ms:
                continue  # it moved where it starts earlier, and what was kept is there for others
            for device in each.devices:
                assert fits(each.waiting, device, each.start_ms, self.day.state.policy), each.waiting.request
                self._count(device, granted, each.start_ms)

    def _is_behind_new(self, reservation: Reservation) -> bool:
        """Whether one that comes before has a reservation now, and had none: a lease in its way was given an end."""
        order = [each.waiting for each in self.day.state.reservations.in_order]
        before = order[: order.index(reservation.waiting)] if reservation.waiting in order else order
        return any(waiting not in [each.waiting for each in self.reserved] for waiting in before)

    def _count(self, device: Device, granted: list[str], start_ms: int) -> None:
        for lease_id in granted:
            if (lease := device.leases.get(lease_id)) is not None:
                end_ms = end_of(lease, self.day.state.policy)
                in_time = end_ms is not None and end_ms <= start_ms
                self.in_time, self.beside = self.in_time + in_time, self.beside + (not in_time)


@pytest.mark.parametrize("asks_back", [False, True])
@pytest.mark.parametrize("bounded", [True, False])
def test_who_passes_or_renews_delays_no_start_that_was_reserved(bounded: bool, asks_back: bool) -> None:
    """Of all who have a reservation, not of the first alone: who begins there ends by then, or there is room beside."""
    in_time = beside = refused = 0
    for seed in range(160 if asks_back else 60):  # what is held is kept for nobody: there is less to be passed
        day = Day(seed, bounded=bounded, asks_back=asks_back)
        passing = Passing(day)
        for _ in day.events(60):
            passing.check()
            in_time, beside, refused = in_time + passing.in_time, beside + passing.beside, refused + passing.refused
            passing = Passing(day)
    assert min(in_time, beside, refused) > 20, (in_time, beside, refused)


# ---------------------------------------------------------------- the first promise


class Watched:
    """By when each request was last promised to start, as far as anybody could know."""

    def __init__(self, day: Day) -> None:
        self.day = day
        self.by_ms: dict[str, int] = {}
        self.since: dict[str, int] = {}  # how many had asked when it was first promised something
        self.kept = self.moved = 0

    def check(self) -> None:
        """Decide the entry. Raises AssertionError where a promise is broken without a word, or for no good reason."""
        for told in self.day.settle():
            decision = told.decision
            if isinstance(decision, PromiseMoved):
                self._move(decision)
            elif isinstance(decision, LeaseGranted):
                by_ms = self.by_ms.pop(decision.lease_id, None)
                assert by_ms is None or decision.granted_at_ms <= by_ms, decision
                self.kept += by_ms is not None
            elif isinstance(decision, LeaseDenied):
                self.by_ms.pop(decision.lease_id, None)
        self._note_first()

    def _note_first(self) -> None:
        kept = self.day.state.reservations.in_order
        if kept and kept[0].start_ms is not None:
            lease_id = kept[0].waiting.request.lease_id
            assert kept[0].start_ms <= self.by_ms.get(lease_id, kept[0].start_ms), "it moved, and nobody was told"
            self.by_ms[lease_id] = kept[0].start_ms
            self.since.setdefault(lease_id, len(self.day.asked))

    def _move(self, moved: PromiseMoved) -> None:
        assert moved.was_ms == self.by_ms.pop(moved.lease_id)
        if moved.starts_by_ms is not None:
            assert moved.starts_by_ms > moved.was_ms
            self.by_ms[moved.lease_id] = moved.starts_by_ms
        self.moved += 1
        if self.day.bounded:
            mine = self.day.state.waitlist.by_id[moved.lease_id]
            later = self.day.asked_at[self.since[moved.lease_id] :]
            before = [asked_ms for asked_ms, key_ms in later if key_ms < mine.key]
            assert before, "nobody came before it after it was promised"
            assert all(asked_ms <= mine.requested_at_ms + HIGH_MS for asked_ms in before)


@pytest.mark.parametrize("asks_back", [False, True])
@pytest.mark.parametrize("bounded", [True, False])
def test_the_first_promise_is_kept_or_moved_with_a_word_for_one_that_came_before(
    bounded: bool, asks_back: bool
) -> None:
    kept = moved = 0
    for seed in range(60):
        day = Day(seed, bounded=bounded, asks_back=asks_back)
        watched = Watched(day)
        for _ in day.events(60):
            watched.check()
        kept, moved = kept + watched.kept, moved + watched.moved
    assert min(kept, moved) > 20, (kept, moved)


# ---------------------------------------------------------------- bounded overtaking


@given(seed=seeds)
@settings(max_examples=15)
def test_only_who_asks_within_the_largest_head_start_gets_ahead(seed: int) -> None:
    day = Day(seed, bounded=False)
    for _ in day.events(80):
        day.settle()
        order = day.state.waitlist.in_order()
        for number, waiting in enumerate(order):
            ahead = [each for each in order[:number] if each.arrival > waiting.arrival]
            assert all(each.requested_at_ms <= waiting.requested_at_ms + HIGH_MS for each in ahead)


# ---------------------------------------------------------------- an oracle


def earliest(day: Day, waiting: Waiting, taken: list[Device]) -> tuple[int, int] | None:
    """By brute force: when a request can start earliest on devices that are not taken, and the least that any such
    choice of devices leaves over then."""
    rules, shape = day.state.policy, waiting.shape
    able = [device for device in day.state.candidates(shape) if device not in taken]
    ends = [end_of(lease, rules) for device in able for lease in device.leases.values()]
    for at_ms in sorted({0} | {end for end in ends if end is not None}):
        chosen = [
            devices
            for devices in combinations(able, shape.gpus)
            if len({device.observed.node for device in devices}) == 1
            and all(fits(waiting, device, at_ms, rules) for device in devices)
        ]
        if chosen:
            return at_ms, min(sum(left_over_mib(waiting, d, at_ms, rules) for d in devices) for devices in chosen)
    return None


def left_over_mib(waiting: Waiting, device: Device, at_ms: int, rules: PolicySet) -> int:
    """What is free beside one part of a request then; nothing if it is alone."""
    if waiting.shape.exclusive:
        return 0
    there = [lease for lease in device.leases.values() if (end := end_of(lease, rules)) is None or end > at_ms]
    used_mib = sum(lease.request.vram_mib for lease in there) + device.observed.foreign_mib
    return device.capacity_mib - used_mib - waiting.shape.vram_mib


@given(seed=seeds)
@settings(max_examples=40)
def test_a_reservation_is_the_earliest_that_there_is(seed: int) -> None:
    day = Day(seed, bounded=False)
    for _ in day.events(50):
        was = {each.waiting for each in day.state.reservations.in_order}
        day.settle()
        kept, taken, shapes = day.state.reservations, list[Device](), list[Shape]()
        for waiting in day.state.waitlist.in_order():
            if waiting.shape in shapes:
                continue
            shapes.append(waiting.shape)
            mine, found = kept.of(waiting), earliest(day, waiting, taken)
            if mine is None or mine.start_ms is None:
                # As many as may have one have been looked at: those who come first, whether one was found or not.
                full = len(kept.first) == day.state.policy.reservations
                assert found is None or (mine is None and full and waiting not in kept.first)
            else:
                over_mib = [left_over_mib(waiting, device, mine.start_ms, day.state.policy) for device in mine.devices]
                assert found == (mine.start_ms, found[1] if found and waiting in was else sum(over_mib))
                assert mine.extra_mib == over_mib
                assert len(mine.devices) == waiting.shape.gpus
            taken += [] if mine is None else mine.devices
