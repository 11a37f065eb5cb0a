"""Reservations: where, and by when, those who do not fit will start; whatever passes them must not delay that.

EASY backfilling (Lifka, 1995) on named devices (policy, rule 4). A reservation holds the devices of one node on which
its request can start earliest, going by when the leases there end; `start_ms` is the time by which it fits, and what
is left over then may be lent to anybody. A lease without an end gives no such time: then nothing is reserved, and
only who waited for `starve_ms` may have devices closed for everybody else until they are empty enough.
"""

from __future__ import annotations

from itertools import groupby

from msgspec import Struct

from gpuboss.core.ledger import Device, Lease
from gpuboss.core.placement import has_room, nearest
from gpuboss.core.waitlist import Shape, Waiting
from gpuboss.events import PolicySet


class Reservation(Struct, eq=False):
    """What is kept for one request; no devices where leases were asked back for it. `start_ms`: by when it starts; None
    while its devices are drained, which has no date. `extra_mib`: what may be lent of each device beyond that time.
    `promised_ms`: by when it starts as it was promised, if it was. `target`: of a drain, all devices that are to be
    emptied; `devices` are closed already."""

    waiting: Waiting
    devices: list[Device]
    start_ms: int | None
    extra_mib: list[int]
    promised_ms: int | None = None
    target: list[Device] = []


class Reservations:
    """All reservations of one moment, in the order of the queue: a device has one at most."""

    def __init__(self) -> None:
        self.in_order: list[Reservation] = []
        self.by_device: dict[Device, Reservation] = {}
        self.first: list[Waiting] = []  # those for whom something may be kept: the first who have no place
        self.unpromised: Waiting | None = None  # the first of them for whom no time could be reserved

    def add(self, reservation: Reservation) -> None:
        """One more, behind the others."""
        self.in_order.append(reservation)
        for device in reservation.devices:
            self.by_device[device] = reservation

    def drop(self, waiting: Waiting) -> bool:
        """Keep nothing for a request any more, which is over. False if it is none of those for whom anything may be."""
        if waiting not in self.first:
            return False
        self.first.remove(waiting)
        if self.unpromised is waiting:
            self.unpromised = None
        mine = self.of(waiting)
        if mine is not None:
            self.in_order.remove(mine)
            for device in mine.devices:
                del self.by_device[device]
        return True

    def lendable_mib(self, devices: list[Device]) -> tuple[int, int]:
        """The largest that could be admitted on one of the devices, with an end and without one; none may be."""
        with_end_mib = without_mib = 0
        for device in devices:
            reservation = self.by_device.get(device)
            free_mib = device.free_mib
            if reservation is None:
                with_end_mib, without_mib = max(with_end_mib, free_mib), max(without_mib, free_mib)
            elif reservation.start_ms is not None:
                extra_mib = reservation.extra_mib[reservation.devices.index(device)]
                with_end_mib = max(with_end_mib, free_mib)
                without_mib = max(without_mib, min(free_mib, extra_mib))
        return with_end_mib, without_mib

    @property
    def drains(self) -> bool:
        """Whether devices are drained for somebody."""
        return any(each.start_ms is None for each in self.in_order)

    def admit(self, shape: Shape, device: Device, now_ms: int, policy: PolicySet) -> bool:
        """Whether a lease of this shape that began now would delay nobody for whom the device is reserved."""
        reservation = self.by_device.get(device)
        if reservation is None:
            return True
        if reservation.start_ms is None:
            return False
        if shape.ttl_ms is not None and now_ms + shape.ttl_ms + policy.lock_delay_ms <= reservation.start_ms:
            return True
        return not shape.exclusive and shape.vram_mib <= reservation.extra_mib[reservation.devices.index(device)]

    def of(self, waiting: Waiting) -> Reservation | None:
        """What is kept for one request."""
        return next((each for each in self.in_order if each.waiting is waiting), None)

    def use(self, shape: Shape, devices: list[Device], now_ms: int, policy: PolicySet) -> None:
        """A lease of this shape began on these devices, which admitted it: less is left over beyond their start."""
        for device in devices:
            reservation = self.by_device.get(device)
            if reservation is None or reservation.start_ms is None:
                continue
            if shape.ttl_ms is None or now_ms + shape.ttl_ms + policy.lock_delay_ms > reservation.start_ms:
                reservation.extra_mib[reservation.devices.index(device)] -= shape.vram_mib

    def voided_by(self, lease: Lease, expires_at_ms: int, policy: PolicySet) -> Reservation | None:
        """The reservation that would be voided if a lease ended that much later; None if none would."""
        before_ms = end_ms(lease, policy)
        for device in lease.devices:
            reservation = self.by_device.get(device)
            if reservation is None or before_ms is None or expires_at_ms + policy.lock_delay_ms <= before_ms:
                continue
            start_ms = reservation.start_ms
            if start_ms is None:
                if has_room(reservation.waiting.shape, device):
                    continue
                return reservation
            if before_ms > start_ms or expires_at_ms + policy.lock_delay_ms <= start_ms:
                continue
            extra_mib = reservation.extra_mib[reservation.devices.index(device)]
            if lease.request.exclusive or reservation.waiting.shape.exclusive or extra_mib < lease.request.vram_mib:
                return reservation
        return None


def reserve(
    waiting: Waiting, allowed: list[Device], policy: PolicySet, before: Reservation | None = None
) -> Reservation | None:
    """The devices of one node, out of `allowed` (in their order), on which a request can start earliest; None where
    no end of leases makes it fit. Of equally early ones those that were reserved `before`, so that what others were
    told of their own starts holds; else those on which least is left over."""
    shape = waiting.shape
    best: tuple[int, int, list[Device]] | None = None
    for _, group in groupby(allowed, key=lambda device: device.observed.node):
        dated = [(start_ms, device) for device in group if (start_ms := _fits_ms(shape, device, policy)) is not None]
        if len(dated) < shape.gpus:
            continue
        start_ms = sorted(start_ms for start_ms, _ in dated)[shape.gpus - 1]
        if best is not None and start_ms > best[0]:
            continue
        able = [(_left_over_mib(shape, d, start_ms, policy), d.index, d) for at_ms, d in dated if at_ms <= start_ms]
        chosen = sorted(able, key=lambda each: each[:2])[: shape.gpus]
        over_mib = sum(each[0] for each in chosen)
        if best is None or (start_ms, over_mib) < best[:2]:
            best = (start_ms, over_mib, [each[2] for each in chosen])
    if best is None:
        return None
    start_ms, _, devices = best
    if before is not None and _all_fit_by(start_ms, shape, before.devices, allowed, policy):
        devices = before.devices
    return Reservation(waiting, devices, start_ms, [_left_over_mib(shape, d, start_ms, policy) for d in devices])


def drain(waiting: Waiting, unreserved: list[Device], devices: int, before: Reservation | None) -> Reservation | None:
    """Close devices for others until they are empty enough: those of one node that lack least, chosen once, because a
    target that moved could do so for ever. What has room already is closed at once, and of what has not a quarter of
    all `devices` at a time. None if there are too few."""
    shape = waiting.shape
    healthy = [device for device in unreserved if device.healthy]
    target = [] if before is None else before.target
    if not target or any(device not in healthy for device in target):
        target = nearest(shape, healthy) or []
    lacking = [device for device in target if not has_room(shape, device)]
    left_open = lacking[max(1, devices // 4) :]
    closed = [device for device in target if device not in left_open]
    return Reservation(waiting, closed, None, [0] * len(closed), target=target) if target else None


def end_ms(lease: Lease, policy: PolicySet) -> int | None:
    """When a lease's VRAM is back at the latest, going by what binds its holder; None if nothing does."""
    if lease.reclaiming_since_ms is not None:
        return lease.reclaiming_since_ms + policy.lock_delay_ms
    ends = [ms for ms in (lease.expires_at_ms, lease.yield_by_ms) if ms is not None]
    return min(ends) + policy.lock_delay_ms if ends else None


def _fits_ms(shape: Shape, device: Device, policy: PolicySet) -> int | None:
    """When one part of a request fits on a device, if nothing else is begun there: 0 if it does now, None if never."""
    if not device.healthy:
        return None
    if has_room(shape, device):
        return 0
    if device.plan is not None and (shape.exclusive or device.plan.waiting.shape.exclusive):
        return None
    lacking_mib = shape.vram_mib - device.free_mib
    exclusive, owed_mib = device.exclusive_leases, _owed_mib(device)
    ends = [(ms, lease) for lease in device.leases.values() if (ms := end_ms(lease, policy)) is not None]
    ends.sort(key=lambda each: each[0])
    for number, (ms, lease) in enumerate(ends, start=1):
        lacking_mib -= lease.request.vram_mib
        if device.plan is not None and lease.plan is device.plan:
            lacking_mib += min(owed_mib, lease.request.vram_mib)
            owed_mib -= min(owed_mib, lease.request.vram_mib)
        exclusive -= lease.request.exclusive
        empty = number == len(device.leases)
        if lacking_mib <= 0 and not exclusive and (empty or not shape.exclusive):
            return ms
    return None


def _all_fit_by(at_ms: int, shape: Shape, devices: list[Device], allowed: list[Device], policy: PolicySet) -> bool:
    """Whether a request still can have these devices, and all of them by then."""
    if len(devices) < shape.gpus or any(device not in allowed for device in devices):
        return False
    return all((ms := _fits_ms(shape, device, policy)) is not None and ms <= at_ms for device in devices)


def _left_over_mib(shape: Shape, device: Device, start_ms: int, policy: PolicySet) -> int:
    """What is free beside one part of a request at its start; an exclusive one leaves nothing."""
    if shape.exclusive:
        return 0
    back_mib = planned_mib = 0
    for lease in device.leases.values():
        ms = end_ms(lease, policy)
        if ms is not None and ms <= start_ms:
            if device.plan is not None and lease.plan is device.plan:
                planned_mib += lease.request.vram_mib
            else:
                back_mib += lease.request.vram_mib
    back_mib += max(0, planned_mib - _owed_mib(device))
    return device.free_mib + back_mib - shape.vram_mib


def _owed_mib(device: Device) -> int:
    """How much of what comes back on a device is still to be held there for the request that it was asked back for."""
    return 0 if device.plan is None else device.plan.waiting.shape.vram_mib - device.hold_mib
