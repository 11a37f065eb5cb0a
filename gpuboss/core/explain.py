"""Why somebody waits: the place in the queue, the reason, and which leases or requests stand in the way."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from gpuboss.core.ledger import Device
from gpuboss.core.placement import has_room, nearest, place
from gpuboss.core.plans import Plan
from gpuboss.core.quotas import ahead_of, may_begin, within_limit_ms
from gpuboss.core.reservations import Reservation, Reservations, reserve
from gpuboss.core.state import State
from gpuboss.core.waitlist import Shape, Waiting

EXPLAINED_MAX = 1000  # how many of the queue are explained without being asked for

Reason = Literal[
    "no_room",
    "reserved_for",
    "draining",
    "pinned_device_full",
    "quota",
    "exclusive_busy",
    "gang_incomplete",
    "recovering",
]


class Explanation(Struct, frozen=True):
    """Why one request waits. `blocked_by` names leases, or, for `reserved_for` and `draining`, the requests that come
    first, or for whom leases were asked back. `starts_by_ms`: by when it starts, of the log's time; None where leases
    without an end are in its way. It is a guess, unless `is_promise`; only who asks for one request is told."""

    place: int
    reason: Reason
    blocked_by: list[str]
    detail: str
    starts_by_ms: int | None = None
    is_promise: bool = False


def explain(state: State, waiting: Waiting) -> Explanation:
    """Explain one request, wherever in the queue it is. Walks the queue."""
    ahead = sum(1 for other in state.waitlist.by_id.values() if other < waiting)
    explanation = _explain(state, waiting, ahead + 1, _Holders(state))
    starts_by_ms, is_promise = _estimate(state, waiting)
    return replace(explanation, starts_by_ms=starts_by_ms, is_promise=is_promise)


def explaining(state: State, most: int = EXPLAINED_MAX) -> Iterator[tuple[Waiting, Explanation]]:
    """Explain the first `most` of the queue one by one. Whoever does something else in between gets what was in the way
    at the beginning, and those who have gone meanwhile are left out."""
    first = heapq.nsmallest(most, state.waitlist.by_id.values())
    holders = _Holders(state)
    for number, waiting in enumerate(first, start=1):
        if not waiting.gone:
            yield waiting, _explain(state, waiting, number, holders)


def explain_first(state: State, most: int = EXPLAINED_MAX) -> dict[str, Explanation]:
    """Explain the first `most` of the queue, by lease_id."""
    return {waiting.request.lease_id: why for waiting, why in explaining(state, most)}


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


def _explain(state: State, waiting: Waiting, number: int, holders: _Holders) -> Explanation:
    shape = waiting.shape
    able = state.candidates(shape)
    if state.recovering_since_ms is not None:
        return Explanation(
            number, "recovering", [], "entries of the log were lost: who holds leases has time to say so"
        )
    if (service := shape.service) is not None and not may_begin(state, waiting):
        return _beyond_limit(state, waiting, number, service)
    if not able:
        return Explanation(number, "no_room", [], "no device is known yet")
    if waiting.plan is not None:
        return _explain_plan(state, waiting, waiting.plan, number)
    reserved = state.reservations.of(waiting)
    if reserved is None and place(shape, able) is not None:
        before = [each for each in _before(state, waiting) if any(device in able for device in each.devices)]
        ids = [each.waiting.request.lease_id for each in before]
        drained = any(each.start_ms is None for each in before)
        detail = "the room there is is kept for requests that come first"
        return Explanation(number, "draining" if drained else "reserved_for", ids, detail)
    aimed = nearest(shape, able) or able if reserved is None else reserved.devices
    full = [device for device in aimed if not has_room(shape, device)] or aimed
    room = ", ".join(f"{device.key} has {max(0, device.free_mib)} MiB free" for device in full[:4])
    held = [device.plan.waiting.request.lease_id for device in full if device.plan is not None]
    if len(held) == len(full) and all(_has_room_but_for_hold(shape, device) for device in full):
        detail = f"needs {_wish(shape)}; {room}, and holds what leases gave back for others who were to have it"
        return Explanation(number, "reserved_for", sorted(set(held)), detail)
    return Explanation(number, _reason(shape, full), holders.of(full), f"needs {_wish(shape)}; {room}")


def _beyond_limit(state: State, waiting: Waiting, number: int, service: str) -> Explanation:
    size_mib, most_mib, held_mib = waiting.shape.size_mib, state.limits[service], state.ledger.holdings.mib(service)
    holds = f"{service} may hold {most_mib} MiB and holds {held_mib} MiB; this needs {size_mib} MiB"
    if held_mib + size_mib > most_mib:
        own = sorted(lease.request.lease_id for lease in state.ledger.holdings.leases(service))
        return Explanation(number, "quota", own, holds)
    ids = [each.request.lease_id for each in ahead_of(state, waiting)]
    return Explanation(number, "reserved_for", ids, f"{holds}, and what is left is kept for requests that come first")


def _explain_plan(state: State, waiting: Waiting, plan: Plan, number: int) -> Explanation:
    """Who waits for leases that were asked back is blocked by these, and by nobody else."""
    pending = {lease.request.lease_id: None for device in plan.devices for lease in plan.pending(device)}
    within_ms = max(0, plan.ends_ms(state.policy) - state.now_ms)
    detail = f"needs {_wish(waiting.shape)}; the leases in its way were asked back for it, and go within {within_ms} ms"
    return Explanation(number, _reason(waiting.shape, plan.devices), sorted(pending), detail)


def _has_room_but_for_hold(shape: Shape, device: Device) -> bool:
    if shape.exclusive:
        return device.healthy and not device.leases
    return device.healthy and not device.exclusive and device.free_mib + device.hold_mib >= shape.vram_mib


def kept_before(state: State, waiting: Waiting) -> list[Device]:
    """The devices that are kept for requests that come before this one."""
    return [device for each in _before(state, waiting) for device in each.devices]


def _before(state: State, waiting: Waiting) -> list[Reservation]:
    return [each for each in state.reservations.in_order if each.waiting < waiting]


def _estimate(state: State, waiting: Waiting) -> tuple[int | None, bool]:
    """By when it starts, and whether that is promised; else a guess, as if nobody came before it."""
    reserved = state.reservations.of(waiting)
    if reserved is not None:
        return reserved.start_ms, reserved.promised_ms is not None
    if waiting.plan is not None:
        return waiting.plan.ends_ms(state.policy), False
    guess = reserve(waiting, state.rooms, state.outlook.under(state.policy), Reservations())
    within_ms = within_limit_ms(state, waiting.shape)
    if guess is None or within_ms is None:
        return None, False
    return max(state.now_ms, guess.start_ms or 0, within_ms), False


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
