"""The grant pass: who of those who wait gets a place now, in the order of the queue.

A request that does not fit blocks only its own target: the devices of one node that lack least for it, which are
kept free for it from then on. What may be placed on other devices goes on, and nothing that comes later can take
the target away from it, so large requests do not starve.
"""

from __future__ import annotations

import heapq

from gpuboss.core.addresses import reply_address
from gpuboss.core.fronts import Entry, Front
from gpuboss.core.ledger import Device, Lease
from gpuboss.core.placement import nearest, place
from gpuboss.core.state import Turn
from gpuboss.core.timers import TimerKind
from gpuboss.core.waitlist import Shape, Waiting
from gpuboss.events import LeaseGranted, LeaseRequested


def grant_pass(turn: Turn) -> None:
    """Grant everything that has a place, first shapes first; afterwards nobody who waits has one."""
    state = turn.state
    if not state.waitlist.by_id or state.recovering_since_ms is not None:
        return
    version = state.ledger.version
    heads = state.fronts.all(state.waitlist, version, state.candidates)
    heapq.heapify(heads)
    blocked: set[Device] = set()
    passed: list[tuple[Front, Entry]] = []
    while heads and len(blocked) < len(state.ledger.devices):
        front = heads[0][2]
        entry = front.queue[0]
        if not _serve(turn, entry[2], front, blocked):
            passed.append((front, heapq.heappop(front.queue)))
        # Nothing of a front is left to look at once all its devices are blocked, except for what was kept before
        # the devices changed.
        is_over = state.fronts.settled == version and not _without(front.able, blocked)
        following = None if is_over else front.first(state.waitlist)
        if following is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, (following[0], following[1], front))
    if not heads:
        state.fronts.settled = version
    for front, entry in passed:
        heapq.heappush(front.queue, entry)


def _serve(turn: Turn, shape: Shape, front: Front, blocked: set[Device]) -> bool:
    """Grant the first of a shape if it has a place. If not, no other of the shape has one either, and what is kept free
    for the first is added to `blocked`."""
    waiting = turn.state.waitlist.first(shape)
    assert waiting is not None
    devices = place(shape, _without(front.able, blocked))
    if devices is None:
        waiting.target = _target(waiting, shape, front.able, blocked)
        blocked.update(waiting.target or ())
        return False
    _grant(turn, waiting, devices)
    following = turn.state.waitlist.first(shape)
    if following is not None:
        heapq.heapreplace(front.queue, (following.key, following.arrival, shape))
    return True


def grant_at_once(turn: Turn, request: LeaseRequested, shape: Shape, able: list[Device]) -> bool:
    """Grant a new request that finds nobody waiting, if it has a place among the devices that could hold it: what the
    pass would do, without the queue."""
    state = turn.state
    if state.waitlist.by_id or state.recovering_since_ms is not None:
        return False
    devices = place(shape, able)
    if devices is None:
        return False
    _open_lease(turn, request, state.arrivals, state.now_ms, devices)
    return True


def _without(able: list[Device], blocked: set[Device]) -> list[Device]:
    return [device for device in able if device not in blocked] if blocked else able


def _target(waiting: Waiting, shape: Shape, able: list[Device], blocked: set[Device]) -> list[Device] | None:
    """What is kept free for a request that does not fit. It stays: a target that moved could be moved for ever."""
    target = waiting.target
    if target is not None and all(device in able and device.healthy for device in target):
        return target
    return nearest(shape, _without(able, blocked))


def _grant(turn: Turn, waiting: Waiting, devices: list[Device]) -> None:
    turn.state.waitlist.remove(waiting)
    _open_lease(turn, waiting.request, waiting.arrival, waiting.requested_at_ms, devices)


def _open_lease(turn: Turn, request: LeaseRequested, arrival: int, requested_at_ms: int, devices: list[Device]) -> None:
    state = turn.state
    now_ms = state.now_ms
    expires_at_ms = None if request.ttl_ms is None else now_ms + request.ttl_ms
    state.fence += 1
    first = devices[0].observed
    names: tuple[str, ...] = (first.device,)
    uuids: tuple[str, ...] = (first.uuid,)
    if len(devices) > 1:
        names = tuple([device.observed.device for device in devices])
        uuids = tuple([device.observed.uuid for device in devices])
    granted = LeaseGranted(
        cause=turn.cause,
        session=request.session,
        lease_id=request.lease_id,
        service=request.service,
        node=first.node,
        device=first.device,
        devices=names,
        uuids=uuids,
        vram_mib=request.vram_mib,
        granted_at_ms=now_ms,
        expires_at_ms=expires_at_ms,
        waited_ms=now_ms - requested_at_ms,
        fence=state.fence,
    )
    state.ledger.open(Lease(request, arrival, granted, devices, "held", expires_at_ms, now_ms))
    if expires_at_ms is not None:
        state.timers.set(expires_at_ms, TimerKind.LEASE_EXPIRY, request.lease_id)
    turn.lease_ids.append(request.lease_id)
    turn.shown.append(request.lease_id)
    turn.devices += devices
    turn.tell(granted, reply_address(request.service, request.instance))
