"""Plans: leases are asked back for one request that waits, and the room for it is held (policy, rules 6 and 7).

A plan is whole or there is none: when it begins, what its leases give back and the room there is are enough for its
request. From then on nobody else is granted what they give back, nor the room that it needs beside that. A device has
one plan at most, and so has a request. A request that is gone, or whose plan does not suffice any more, because
something outside the rules happened, has it dissolved: its leases are not revived, and their room is for all.
"""

from __future__ import annotations

from msgspec import Struct

from gpuboss.core import placement
from gpuboss.core.ledger import Device, Lease
from gpuboss.core.outlook import end_ms
from gpuboss.core.state import State, Turn
from gpuboss.core.waitlist import Waiting
from gpuboss.core.yielding import ask_back
from gpuboss.events import PolicySet


class Plan(Struct, eq=False):
    """`leases`: what it counts on, most of it asked back for it. `stock_mib`: of each device, what is held there in the
    end and, where more than that comes back, all of this."""

    waiting: Waiting
    devices: list[Device]
    leases: list[Lease]
    stock_mib: list[int]

    def pending(self, device: Device) -> list[Lease]:
        """The leases that have not given back what they hold there."""
        return [lease for lease in self.leases if device.leases.get(lease.request.lease_id) is lease]

    def hold_mib(self, device: Device) -> int:
        """What is held there now: what was given back first of all, and of what was free only what is needed beside."""
        shape = self.waiting.shape
        if shape.exclusive:
            return max(0, device.free_mib + device.hold_mib)
        return min(shape.vram_mib, self.stock_mib[self.devices.index(device)] - _vram_mib(self.pending(device)))

    def suffices(self, able: list[Device]) -> bool:
        """Whether its request will fit once everything is back, on devices that all are among `able`."""
        return all(device in able and device.healthy and self._fits(device) for device in self.devices)

    def ends_ms(self, policy: PolicySet) -> int:
        """By when everything is back. Something is not, or its request had been granted."""
        ends = [end_ms(lease, policy) for device in self.devices for lease in self.pending(device)]
        return max(ms for ms in ends if ms is not None)

    def _fits(self, device: Device) -> bool:
        room_mib = device.free_mib + device.hold_mib + _vram_mib(self.pending(device))
        return room_mib >= self.waiting.shape.vram_mib


def begin(turn: Turn, waiting: Waiting, devices: list[Device], leases: list[Lease]) -> None:
    """Have leases given back for a request, which fits on these devices then. Those that go already, to nobody who
    waits, are not asked."""
    state = turn.state
    deadline_ms = state.now_ms + state.policy.grace_ms
    stock_mib = [
        max(waiting.shape.vram_mib, _vram_mib([lease for lease in leases if device in lease.devices]))
        for device in devices
    ]
    plan = waiting.plan = Plan(waiting, devices, leases, stock_mib)
    waiting.preempts_at_ms = None
    for lease in leases:
        lease.plan = plan
        if lease.state in ("held", "idle"):
            ask_back(turn, lease, deadline_ms, waiting.request.lease_id)
    for device in devices:
        device.keep_for(plan)
    state.planned[waiting.request.lease_id] = waiting
    state.waitlist.leave(waiting)
    state.reservations.is_whole = False
    turn.devices += devices


def dissolve(turn: Turn, waiting: Waiting) -> None:
    """Hold nothing for a request any more."""
    plan = waiting.plan
    if plan is None:
        return
    for device in plan.devices:
        device.keep_for(None)
    for lease in plan.leases:
        lease.plan = None
    waiting.plan = None
    del turn.state.planned[waiting.request.lease_id]
    turn.state.waitlist.enter(waiting)
    turn.state.reservations.is_whole = False
    turn.devices += plan.devices
    turn.look = True


def dissolve_all(turn: Turn) -> None:
    """Hold nothing for anybody."""
    for waiting in list(turn.state.planned.values()):
        dissolve(turn, waiting)


def check(turn: Turn, device: Device) -> None:
    """Something outside the rules happened to a device: whether the plan for it still suffices."""
    plan = device.plan
    if plan is not None and not plan.suffices(placement.candidates(turn.state.ledger, plan.waiting.shape)):
        dissolve(turn, plan.waiting)


class Lifted:
    """Room that is held for a request, shown as free while a place for it is looked for."""

    def __init__(self, state: State, waiting: Waiting) -> None:
        self._state = state
        assert waiting.plan is not None
        self._waiting, self._plan = waiting, waiting.plan
        self._held_mib: list[int] = []
        for device in self._plan.devices:
            self._held_mib.append(device.hold_mib)
            device.keep_for(None)
            self._lend(device, self._held_mib[-1])

    def is_own(self, device: Device) -> bool:
        """Whether all that the request needs there was held for it: then it may have it, whatever is reserved."""
        if device not in self._plan.devices:
            return False
        if self._plan.waiting.shape.exclusive:
            return not device.leases
        return self._held_mib[self._plan.devices.index(device)] >= self._plan.waiting.shape.vram_mib

    def put_down(self) -> None:
        """There is no place: hold it again."""
        for device, held_mib in zip(self._plan.devices, self._held_mib, strict=True):
            device.keep_for(self._plan)
            self._lend(device, -held_mib)

    def _lend(self, device: Device, held_mib: int) -> None:
        reservation = self._state.reservations.by_device.get(device)
        if reservation is not None and reservation.waiting is not self._waiting:
            reservation.extra_mib[reservation.devices.index(device)] += held_mib


def _vram_mib(leases: list[Lease]) -> int:
    return sum(lease.request.vram_mib for lease in leases)
