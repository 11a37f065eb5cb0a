"""Reservations: where, and by when, those who do not fit will start; whatever passes them must not delay that.

EASY backfilling (Lifka, 1995) on named devices (policy, rule 4). A reservation holds the devices of one node on which
its request can start earliest, going by when the leases there end; `start_ms` is the time by which it fits, and what
is left over then may be lent to anybody. A lease without an end gives no such time: then nothing is reserved, and
only who waited for `starve_ms` may have devices closed for everybody else until they are empty enough.
"""

from __future__ import annotations

from operator import itemgetter

from msgspec import Struct

from gpuboss.core.ledger import Device, Lease, Node
from gpuboss.core.outlook import Outlook, end_ms
from gpuboss.core.placement import has_room, matches, nearest
from gpuboss.core.rooms import Rooms
from gpuboss.core.waitlist import NEVER_MS, Shape, Waiting
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
        self.nodes: dict[Node, None] = {}  # of these devices, and perhaps of others that were
        self.first: list[Waiting] = []  # those for whom something may be kept: the first who have no place
        self.unpromised: Waiting | None = None  # the first of them for whom no time could be reserved
        self.let_go: list[Device] = []  # what was kept for those of them who are over by now
        self.is_whole = True  # whether none of them is over: else another of its shape may come before the others

    def add(self, reservation: Reservation) -> None:
        """One more, behind the others."""
        self.in_order.append(reservation)
        for device in reservation.devices:
            self.by_device[device] = reservation
            self.nodes[device.node] = None

    def drop(self, waiting: Waiting) -> bool:
        """Keep nothing for a request any more, which is over. False if it is none of those for whom anything may be."""
        if waiting not in self.first:
            return False
        self.first.remove(waiting)
        self.is_whole = False
        if self.unpromised is waiting:
            self.unpromised = None
        mine = self.of(waiting)
        if mine is not None:
            self.in_order.remove(mine)
            for device in mine.devices:
                del self.by_device[device]
            self.let_go += mine.devices
        return True

    def terms(self, device: Device, now_ms: int, policy: PolicySet) -> tuple[int, int]:
        """How long what is free on a device may be lent, and how much of it (MiB) for ever."""
        reservation = self.by_device.get(device)
        if reservation is None:
            return NEVER_MS, device.free_mib
        if reservation.start_ms is None:
            return -1, 0
        extra_mib = reservation.extra_mib[reservation.devices.index(device)]
        return reservation.start_ms - now_ms - policy.lock_delay_ms, extra_mib

    def loosened(self, before: Reservations) -> list[Device]:
        """The devices that may admit whom they did not admit as they were reserved before."""
        loosened = list(before.let_go)
        for device, was in before.by_device.items():
            now = self.by_device.get(device)
            if now is None or was.start_ms is None:
                loosened.append(device)
            elif now.start_ms is not None:
                extra_mib, was_mib = (each.extra_mib[each.devices.index(device)] for each in (now, was))
                if now.start_ms > was.start_ms or extra_mib > was_mib:
                    loosened.append(device)
        return loosened

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


class ClosedTo(Struct, gc=False):
    """The devices that do not admit a lease of one shape that began now."""

    reservations: Reservations
    shape: Shape
    now_ms: int
    policy: PolicySet

    @property
    def nodes(self) -> dict[Node, None]:
        """Where they are."""
        return self.reservations.nodes

    def __contains__(self, device: object, /) -> bool:
        reservations = self.reservations
        if device not in reservations.by_device:
            return False
        assert isinstance(device, Device)
        return not reservations.admit(self.shape, device, self.now_ms, self.policy)


def reserve(
    waiting: Waiting, rooms: Rooms, outlook: Outlook, kept: Reservations, before: Reservation | None = None
) -> Reservation | None:
    """The devices of one node, out of those that are not `kept` for anybody, on which a request can start earliest;
    None where no end of leases makes it fit. Of equally early ones those that were reserved `before`, so that what
    others were told of their own starts holds; else those on which least is left over."""
    shape = waiting.shape
    nodes, starts_ms, allowed_on = _starts(shape, rooms, outlook, kept)
    start_ms = min(starts_ms, default=NEVER_MS)
    if start_ms == NEVER_MS:
        return None
    devices = [] if before is None else before.devices
    if len(devices) < shape.gpus or not all(_stays(device, start_ms, shape, kept, outlook) for device in devices):
        earliest = [node for node, ms in zip(nodes, starts_ms, strict=True) if ms == start_ms]
        places = [_closest(start_ms, shape, allowed_on.get(node, node.devices), outlook) for node in earliest]
        devices = min(places, key=itemgetter(0))[1]
    return Reservation(waiting, devices, start_ms, [outlook.left_over_mib(shape, d, start_ms) for d in devices])


def _starts(
    shape: Shape, rooms: Rooms, outlook: Outlook, kept: Reservations
) -> tuple[list[Node], list[int], dict[Node, list[Device]]]:
    """The nodes on which a request could be, when it can start on each of them, and which devices it may have on those
    where it may not have all."""
    allowed_on: dict[Node, list[Device]] = {}
    if shape.device is not None:
        for device in rooms.named(shape):
            if device not in kept.by_device:
                allowed_on.setdefault(device.node, []).append(device)
        return list(allowed_on), [_start_ms(shape, each, outlook) for each in allowed_on.values()], allowed_on
    nodes = rooms.nodes(shape)
    starts_ms = outlook.starts_ms(shape, nodes)
    for node in kept.nodes:
        at = outlook.place_of(shape, node)
        if at is not None:
            allowed = allowed_on[node] = [device for device in node.devices if device not in kept.by_device]
            starts_ms[at] = _start_ms(shape, allowed, outlook)
    return nodes, starts_ms, allowed_on


def _start_ms(shape: Shape, allowed: list[Device], outlook: Outlook) -> int:
    found = [ms for device in allowed if (ms := outlook.device_fits_ms(shape, device)) is not None]
    return sorted(found)[shape.gpus - 1] if len(found) >= shape.gpus else NEVER_MS


def _closest(start_ms: int, shape: Shape, allowed: list[Device], outlook: Outlook) -> tuple[int, list[Device]]:
    """The devices of one node on which least is left over at a start, and how much that is."""
    able = [device for device in allowed if _fits_by(start_ms, shape, device, outlook)]
    over_mib = sorted((outlook.left_over_mib(shape, device, start_ms), device.index, device) for device in able)
    chosen = over_mib[: shape.gpus]
    return sum(each[0] for each in chosen), [each[2] for each in chosen]


def _fits_by(at_ms: int, shape: Shape, device: Device, outlook: Outlook) -> bool:
    ms = outlook.device_fits_ms(shape, device)
    return ms is not None and ms <= at_ms


def _stays(device: Device, at_ms: int, shape: Shape, kept: Reservations, outlook: Outlook) -> bool:
    """Whether a request still can have a device that it had reserved, and by then."""
    there = device not in kept.by_device and device in device.node.devices
    return there and matches(shape, device) and _fits_by(at_ms, shape, device, outlook)


def drain(waiting: Waiting, unreserved: list[Device], devices: int, before: Reservation | None) -> Reservation | None:
    """Close devices for others until they are empty enough: those of one node that lack least, chosen once, because a
    target that moved could do so for ever. What has room already is closed at once, and of what has not a quarter of
    all `devices` at a time. None if there are too few."""
    shape = waiting.shape
    healthy = {device: None for device in unreserved if device.healthy}
    target = [] if before is None else before.target
    if not target or any(device not in healthy for device in target):
        target = nearest(shape, healthy) or []
    lacking = [device for device in target if not has_room(shape, device)]
    left_open = lacking[max(1, devices // 4) :]
    closed = [device for device in target if device not in left_open]
    return Reservation(waiting, closed, None, [0] * len(closed), target=target) if target else None
