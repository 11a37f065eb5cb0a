"""Eviction: which leases are asked back for a request that has no place (policy, rules 6 and 7), so that another rule
can be tried.

Idle leases of its class or below: first those that are worth least, by GreedyDual-Size-Frequency (Cherkasova, 1998) in
integers. A lease that is used, or dear to load again, for its size, is worth more; and the floor, which is what the
last one was worth, lets those age that are not used. Only where these are not enough and the rules say so, held leases
of a lower class: the lowest class first, idle before held, the youngest first. Then whoever need not go is spared, the
last taken first. Of all devices those where that is cheapest: held leases count before idle ones.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Iterable
from heapq import heapify, heappop
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from gpuboss.core.ledger import Device, Lease
from gpuboss.core.outlook import end_ms
from gpuboss.core.policy import RANK, preempts_after_ms
from gpuboss.core.quotas import protects
from gpuboss.core.reservations import Reservation
from gpuboss.core.state import State
from gpuboss.core.waitlist import Waiting

WORTH_SHIFT = 20  # integers must tell what one use is worth on the largest device: a ms for 1 TiB is worth 1

Price = tuple[int, int, int, int]  # of what is asked back: MiB held by normal and by low, the idle ones' worth, all MiB
Order = Callable[[Lease], tuple[int, ...]]
NO_PRICE: Price = (0, 0, 0, 0)


class Prey(NamedTuple):
    """Where a request will fit, and what has to come back for it."""

    devices: list[Device]
    leases: list[Lease]


class _Spot(NamedTuple):
    """A device that is enough for one part of the request if all of `leases` come back: by `gap_mib`, and `must`. No
    less than `at_least` has to be asked back for that."""

    device: Device
    gap_mib: int
    must: list[Lease]
    leases: list[Lease]
    at_least: Price


def worth(lease: Lease) -> int:
    """What an idle lease is worth: H of GreedyDual-Size-Frequency."""
    return lease.floor + ((lease.uses * lease.reload_ms) << WORTH_SHIFT) // lease.request.vram_mib


def find(state: State, waiting: Waiting) -> Prey | None:
    """What to ask back for a request that has no place; None if nothing would help, or nothing has to be asked."""
    if state.policy.preemption == "off":
        return None
    if state.ledger.idle:
        found = _Hunt(state, waiting).cheapest(_near_idle(state, waiting))
        if found is not None:
            return found if found.leases else None
    after_ms = preempts_after_ms(state.policy, waiting.shape.priority)
    if after_ms is None or state.ticked_ms < waiting.since_ms + after_ms:
        return None
    found = _Hunt(state, waiting, asks_held=True).cheapest(state.candidates(waiting.shape))
    return found if found is not None and found.leases else None


def next_chance_ms(state: State, waiting: Waiting) -> int | None:
    """When a request that has no place may have held leases asked back that it may not now; None if time alone changes
    nothing."""
    after_ms = preempts_after_ms(state.policy, waiting.shape.priority)
    if after_ms is None:
        return None
    chances_ms = [
        max(_ran_ms(state, lease), waiting.since_ms + after_ms)
        for device in state.candidates(waiting.shape)
        for lease in device.leases.values()
        if lease.state == "held" and _is_prey_of_class(state, lease, waiting)
    ]
    return min((ms for ms in chances_ms if ms > state.ticked_ms), default=None)


def may_find(state: State) -> bool:
    """Whether any lease at all could be asked back."""
    preemption = state.policy.preemption
    return preemption == "lower" or (preemption == "idle" and bool(state.ledger.idle))


def most_mib(state: State, devices: Iterable[Device]) -> int:
    """No request that is larger than this has anything asked back on one of these devices."""
    if not may_find(state):
        return 0
    if state.policy.preemption == "lower":
        return max((device.free_mib + device.charged_mib for device in devices), default=0)
    return max((device.free_mib + mib for device, mib in _loose_mib(state).items()), default=0)


def _near_idle(state: State, waiting: Waiting) -> list[Device]:
    """The devices that could hold a request, of those where idle leases may count, or what goes already. Some of a
    request's devices may have room without that."""
    able = state.candidates(waiting.shape)
    if waiting.shape.gpus > 1:
        return able
    near = _loose_mib(state)
    return [device for device in able if device in near]


def _loose_mib(state: State) -> dict[Device, int]:
    """What idle leases, and those that go already, are charged on each of their devices."""
    loose_mib: dict[Device, int] = defaultdict(int)
    ledger = state.ledger
    for lease in (*ledger.idle.values(), *ledger.yielding.values(), *ledger.settling.values()):
        for device in lease.devices:
            loose_mib[device] += lease.request.vram_mib
    return loose_mib


def _ran_ms(state: State, lease: Lease) -> int:
    """When it ran as long as any lease may; a ms at least, so that none is asked back with the grant."""
    return lease.since_ms + max(1, state.policy.min_run_ms)


def _is_prey_of_class(state: State, lease: Lease, waiting: Waiting) -> bool:
    return RANK[lease.priority] < RANK[waiting.shape.priority] and not protects(state, lease)


def _by_worth(lease: Lease) -> tuple[int, ...]:
    return (worth(lease), lease.arrival)


def _by_class(lease: Lease) -> tuple[int, ...]:
    return (RANK[lease.priority], lease.state != "idle", -lease.granted.fence)


class _Hunt:
    """The search for one request, among idle leases, or (`asks_held`) among held ones as well."""

    def __init__(self, state: State, waiting: Waiting, *, asks_held: bool = False) -> None:
        self._state = state
        self._waiting = waiting
        self._asks_held = asks_held
        self._order: Order = _by_class if asks_held else _by_worth
        below = RANK[waiting.shape.priority] if asks_held else 0
        self._asks_low, self._asks_normal = below > RANK["low"], below > RANK["normal"]
        self._loose_mib = _loose_mib(state)

    def cheapest(self, able: list[Device]) -> Prey | None:
        """The devices of one node on which least has to be asked back; without leases if none has to. None if all of
        them would not do."""
        best: tuple[Price, int, Prey] | None = None
        places = self._places(able)
        while places and (best is None or places[0][:2] < best[:2]):
            _, number, devices = heappop(places)
            spots = [spot for at_least, device in devices if (spot := self._spot(device, at_least)) is not None]
            if len(spots) < self._waiting.shape.gpus:
                continue
            chosen = self._cheapest_of(spots)
            leases = self._least(chosen)
            price = self._price(leases)
            if best is None or (price, number) < best[:2]:
                best = price, number, Prey([spot.device for spot in chosen], leases)
        if best is None:
            return None
        prey = best[2]
        return prey if any(not self._is_going(lease) for lease in prey.leases) else Prey(prey.devices, [])

    def _places(self, able: list[Device]) -> list[tuple[Price, int, list[tuple[Price, Device]]]]:
        """Where all parts of the request may lie together: a heap by what has to be asked back there at the least, and
        in the order of the devices. Each device has beside it what has to be there."""
        gpus = self._waiting.shape.gpus
        places = []
        for number, (_, group) in enumerate(groupby(able, key=attrgetter("key" if gpus == 1 else "node"))):
            devices = [(at_least, device) for device in group if (at_least := self._at_least(device)) is not None]
            if len(devices) >= gpus:
                places.append((sorted([at_least for at_least, _ in devices])[gpus - 1], number, devices))
        heapify(places)
        return places

    def _cheapest_of(self, spots: list[_Spot]) -> list[_Spot]:
        """As many as are needed of the devices of one node, in their order. Who costs at least more than these do is
        not looked at any closer: of many devices few are."""
        gpus = self._waiting.shape.gpus
        cheapest: list[tuple[Price, int, _Spot]] = []
        for spot in sorted(spots, key=lambda spot: spot.at_least):
            if len(cheapest) == gpus and spot.at_least > cheapest[-1][0]:
                break
            insort(cheapest, (self._price(self._least([spot])), spot.device.index, spot))
            del cheapest[gpus:]
        return sorted([each[2] for each in cheapest], key=lambda spot: spot.device.index)

    def _at_least(self, device: Device) -> Price | None:
        """No less is asked back on a device, to be told without a look at its leases; None: all would not be enough."""
        gap_mib = self._waiting.shape.vram_mib - device.free_mib - self._loose_mib.get(device, 0)
        if gap_mib <= 0:
            return NO_PRICE
        low_mib = device.mib_of_class["low"] if self._asks_low else 0
        normal_mib = device.mib_of_class["normal"] if self._asks_normal else 0
        if gap_mib > low_mib + normal_mib:
            return None
        return (gap_mib - low_mib, 0, 0, 0) if gap_mib > low_mib else (0, gap_mib, 0, 0)

    def _spot(self, device: Device, at_least: Price) -> _Spot | None:
        """A device as a place for one part of the request; None if nothing that may be asked back makes it one."""
        shape, room_mib = self._waiting.shape, device.free_mib
        if device.plan is not None or not device.healthy:
            return None
        reservation = self._state.reservations.by_device.get(device)
        if reservation is not None:
            if reservation.start_ms is None or shape.exclusive:
                return None
            room_mib = min(room_mib, reservation.extra_mib[reservation.devices.index(device)])
        gap_mib = shape.vram_mib - room_mib
        leases = [lease for lease in device.leases.values() if self._may_go(lease, reservation)]
        must: list[Lease] = []
        if shape.exclusive or device.exclusive:
            must = [lease for lease in device.leases.values() if shape.exclusive or lease.request.exclusive]
        if any(lease not in leases for lease in must) or _vram_mib(leases) < gap_mib:
            return None
        return _Spot(device, gap_mib, must, leases, at_least)

    def _may_go(self, lease: Lease, reservation: Reservation | None) -> bool:
        """Whether the plan may count on a lease; not on one whose end somebody counts on for whom there is reserved."""
        state = self._state
        if lease.state == "held":
            if not self._asks_held or not _is_prey_of_class(state, lease, self._waiting):
                return False
            if _ran_ms(state, lease) > state.ticked_ms:
                return False
        elif lease.state == "idle":
            if RANK[lease.priority] > RANK[self._waiting.shape.priority]:
                return False
        elif not self._is_going(lease):
            return False
        if reservation is None or reservation.start_ms is None:
            return True
        ends_ms = end_ms(lease, self._state.policy)
        return ends_ms is None or ends_ms > reservation.start_ms

    def _is_going(self, lease: Lease) -> bool:
        """Whether its room soon comes back to nobody who waits: it was asked back, and not for later, or it was given
        back and settles."""
        if lease.plan is not None:
            return False
        if lease.yield_by_ms is None or lease.state != "yielding":
            return lease.settles
        return lease.yield_by_ms - lease.yield_set_ms <= self._state.policy.grace_ms

    def _least(self, spots: list[_Spot]) -> list[Lease]:
        """Leases that are enough on all of these devices, none of which can be spared: those that go already, and then
        in the order in which they may be asked."""
        leases = {lease.request.lease_id: lease for spot in spots for lease in spot.leases}
        going = [lease for lease in leases.values() if self._is_going(lease)]
        taken: list[Lease] = []
        for lease in [*going, *sorted((each for each in leases.values() if each not in going), key=self._order)]:
            if any(_helps(spot, taken, lease) for spot in spots):
                taken.append(lease)
        for lease in taken[::-1]:
            others = [each for each in taken if each is not lease]
            if all(_is_closed(spot, others) for spot in spots):
                taken = others
        return taken

    def _price(self, leases: list[Lease]) -> Price:
        normal_mib = low_mib = idle = all_mib = 0
        for lease in leases:
            vram_mib = lease.request.vram_mib * len(lease.devices)
            if self._is_going(lease):
                continue
            all_mib += vram_mib
            if lease.state == "idle":
                idle += worth(lease)
            elif lease.priority == "normal":
                normal_mib += vram_mib
            else:
                low_mib += vram_mib
        return normal_mib, low_mib, idle, all_mib


def _helps(spot: _Spot, taken: list[Lease], lease: Lease) -> bool:
    if lease not in spot.leases:
        return False
    return lease in spot.must or _vram_mib([each for each in taken if each in spot.leases]) < spot.gap_mib


def _is_closed(spot: _Spot, taken: list[Lease]) -> bool:
    if any(lease not in taken for lease in spot.must):
        return False
    return _vram_mib([lease for lease in taken if lease in spot.leases]) >= spot.gap_mib


def _vram_mib(leases: list[Lease]) -> int:
    return sum(lease.request.vram_mib for lease in leases)
