"""Why somebody waits: the place in the queue, the reason, and which leases or requests stand in the way."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from gpuboss.core.ledger import Device
from gpuboss.core.placement import has_room, nearest, place
from gpuboss.core.state import State
from gpuboss.core.waitlist import Shape, Waiting

EXPLAINED_MAX = 1000  # how many of the queue are explained without being asked for

Reason = Literal["no_room", "reserved_for", "pinned_device_full", "exclusive_busy", "gang_incomplete", "recovering"]


class Explanation(Struct, frozen=True):
    """Why one request waits. `blocked_by` names leases, or, for `reserved_for`, the requests that come first."""

    place: int
    reason: Reason
    blocked_by: list[str]
    detail: str


def explain(state: State, waiting: Waiting) -> Explanation:
    """Explain one request, wherever in the queue it is. Walks the queue."""
    mine = _order(waiting)
    ahead = sum(1 for other in state.waitlist.by_id.values() if _order(other) < mine)
    return _explain(state, waiting, ahead + 1, KeptFree(state), _Holders(state))


def explaining(state: State, most: int = EXPLAINED_MAX) -> Iterator[tuple[Waiting, Explanation]]:
    """Explain the first `most` of the queue one by one. Whoever does something else in between gets what was in the way
    at the beginning, and those who have gone meanwhile are left out."""
    first = heapq.nsmallest(most, state.waitlist.by_id.values(), key=_order)
    kept, holders = KeptFree(state), _Holders(state)
    for number, waiting in enumerate(first, start=1):
        if not waiting.gone:
            yield waiting, _explain(state, waiting, number, kept, holders)


def explain_first(state: State, most: int = EXPLAINED_MAX) -> dict[str, Explanation]:
    """Explain the first `most` of the queue, by lease_id."""
    return {waiting.request.lease_id: why for waiting, why in explaining(state, most)}


class KeptFree:
    """What is kept free for those who come first. To be asked in the order of the queue."""

    def __init__(self, state: State) -> None:
        firsts = [state.waitlist.first(shape) for shape in state.waitlist.shapes()]
        self._left = deque(sorted((each for each in firsts if each is not None and each.target), key=_order))
        self._kept: dict[Device, Waiting] = {}

    def before(self, waiting: Waiting) -> dict[Device, Waiting]:
        """The devices that are kept free for requests that come before this one, and for which."""
        while self._left and _order(self._left[0]) < _order(waiting):
            first = self._left.popleft()
            for device in first.target or ():
                self._kept.setdefault(device, first)
        return self._kept


class _Holders:
    """Whose leases lie where, looked up once for many requests that wait for the same."""

    def __init__(self, state: State) -> None:
        self._on: dict[Device, list[str]] = {}
        self._on_all: dict[tuple[Device, ...], list[str]] = {}
        for lease_id, lease in state.ledger.leases.items():
            for device in lease.devices:
                self._on.setdefault(device, []).append(lease_id)

    def of(self, devices: list[Device]) -> list[str]:
        """The leases on any of the devices, by name."""
        places = tuple(devices)
        found = self._on_all.get(places)
        if found is None:
            found = self._on_all[places] = sorted({each for device in places for each in self._on.get(device, ())})
        return found


def _order(waiting: Waiting) -> tuple[int, int]:
    return waiting.key, waiting.arrival


def _explain(state: State, waiting: Waiting, number: int, free: KeptFree, holders: _Holders) -> Explanation:
    shape = waiting.shape
    able = state.candidates(shape)
    if state.recovering_since_ms is not None:
        return Explanation(
            number, "recovering", [], "entries of the log were lost: who holds leases has time to say so"
        )
    if not able:
        return Explanation(number, "no_room", [], "no device is known yet")
    kept = free.before(waiting)
    if place(shape, able) is not None:
        first = sorted({kept[d].arrival: kept[d].request.lease_id for d in able if d in kept}.items())
        ids = [lease_id for _, lease_id in first]
        return Explanation(number, "reserved_for", ids, "the room there is is kept for requests that come first")
    aimed = waiting.target or nearest(shape, able) or able
    full = [device for device in aimed if not has_room(shape, device)] or aimed
    room = ", ".join(f"{device.key} has {max(0, device.free_mib)} MiB free" for device in full[:4])
    return Explanation(number, _reason(shape, full), holders.of(full), f"needs {_wish(shape)}; {room}")


def _reason(shape: Shape, full: list[Device]) -> Reason:
    if shape.exclusive or any(device.exclusive for device in full):
        return "exclusive_busy"
    if shape.gpus > 1:
        return "gang_incomplete"
    return "no_room" if shape.device is None else "pinned_device_full"


def _wish(shape: Shape) -> str:
    wish = f"{shape.vram_mib} MiB"
    if shape.gpus > 1:
        wish += f" on each of {shape.gpus} devices of one node"
    if shape.exclusive:
        wish += ", shared with nobody"
    return wish
