"""Asking: a request comes in, is repeated, or ends without a lease."""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from gpuboss.core.addresses import reply_address, session_member
from gpuboss.core.fronts import wish_of
from gpuboss.core.granting import grant_at_once, look_at
from gpuboss.core.history import Past
from gpuboss.core.placement import why_impossible
from gpuboss.core.plans import dissolve
from gpuboss.core.policy import max_waiting_of, priority_of, queue_key
from gpuboss.core.quotas import is_beyond, park
from gpuboss.core.refusals import reject
from gpuboss.core.state import State, Turn
from gpuboss.core.waitlist import Shape, Waiting, shape_of
from gpuboss.events import LeaseDenied, LeaseRequested

DenialReason = Literal["impossible", "timeout", "cancelled", "quota", "session_lost"]


def ask(turn: Turn, request: LeaseRequested) -> None:
    """A request: queue it, say again what it was told, or deny what cannot be."""
    state = turn.state
    lease_id = request.lease_id
    if lease_id in state.waitlist.by_id or lease_id in state.ledger.leases or lease_id in state.history.by_name:
        _ask_again(turn, request)
        return
    lost = state.lost_sessions.by_name
    if lost and request.session is not None and session_member(request.service, request.session) in lost:
        deny(
            turn,
            request,
            "session_lost",
            f"session {request.session} was lost; a new process takes a new one",
        )
        return
    if state.waitlist.by_id and _deny_beyond_cap(turn, request):
        return
    shape = shape_of(request, priority_of(state.policy, request), state.limits)
    if grant_at_once(turn, request, shape):
        return
    if state.recovering_since_ms is None and (hopeless := _why_hopeless(state, shape)) is not None:
        deny(turn, request, *hopeless)
        return
    state.arrivals += 1
    state.join_session(request)
    _wait(turn, request, shape)


def _deny_beyond_cap(turn: Turn, request: LeaseRequested) -> bool:
    """Deny a request of a service of which as many wait as may. Before anything is looked for: of whoever floods, this
    is the way of nearly every request. Not while a lost log recovers: then nobody is denied."""
    state = turn.state
    waiting = state.waitlist.count_of(request.service)
    most = max_waiting_of(state.policy, request.service)
    if most is None or waiting < most or state.recovering_since_ms is not None:
        return False
    deny(
        turn,
        request,
        "quota",
        f"{waiting} requests of {request.service} wait already, and max_waiting is {most}; ask again once some are "
        "answered, ask for fewer at a time, or raise max_waiting in scheduler.policy",
    )
    return True


def _wait(turn: Turn, request: LeaseRequested, shape: Shape) -> None:
    state = turn.state
    turn.lease_ids.append(request.lease_id)
    park(state)
    # Behind another of its shape it has no place that the other would not have taken.
    if state.enqueue(new_waiting(state, request, shape)):
        look_at(turn, state.waitlist.by_id[request.lease_id])


def new_waiting(state: State, request: LeaseRequested, shape: Shape) -> Waiting:
    """A request that comes in now, as the last of those that came so far."""
    now_ms = state.now_ms
    return Waiting(
        key=queue_key(state.policy, shape.priority, now_ms),
        arrival=state.arrivals,
        request=request,
        shape=shape,
        requested_at_ms=now_ms,
        wait_until_ms=None if request.wait_ms is None else now_ms + request.wait_ms,
        starves_at_ms=now_ms + state.policy.starve_ms,
        since_ms=now_ms,
    )


def end_waiting(turn: Turn, waiting: Waiting, reason: DenialReason, detail: str) -> None:
    """A waiting request ends without a lease."""
    dissolve(turn, waiting)
    turn.state.waitlist.remove(waiting)
    turn.state.leave_session(waiting.request)
    turn.lease_ids.append(waiting.request.lease_id)
    starved = waiting.starves and waiting.shape.service is not None
    if turn.state.reservations.drop(waiting) or waiting.preempts_at_ms is not None or starved:
        turn.look = True  # what was kept for it is there for others now, and the next of its shape has its chances
    deny(turn, waiting.request, reason, detail)


def deny(turn: Turn, request: LeaseRequested, reason: DenialReason, detail: str) -> None:
    """Answer a request, which is not queued, with no."""
    denied = LeaseDenied(
        cause=turn.cause,
        session=request.session,
        lease_id=request.lease_id,
        service=request.service,
        reason=reason,
        detail=detail,
    )
    turn.state.history.add(request.lease_id, Past(request, None, denied), turn.state.now_ms)
    turn.tell(denied, reply_address(request.service, request.instance))


def deny_hopeless(turn: Turn) -> None:
    """Devices or limits changed: end the waiting of those whom no device, or whose service, could ever hold."""
    state = turn.state
    if state.recovering_since_ms is not None:
        return
    for waiting in list(state.planned.values()):
        if is_beyond(state, waiting.shape):
            dissolve(turn, waiting)
    assert all(state.candidates(waiting.shape) for waiting in state.planned.values())
    if not state.limits:
        fronts, rooms = state.fronts.by_wish.values(), state.rooms
        if all(front.largest_mib() <= rooms.largest_mib(front.wish) for front in fronts):
            return
    shapes = [shape for shape in state.waitlist.shapes() if _why_hopeless(state, shape) is not None]
    doomed = [waiting for shape in shapes for waiting in state.waitlist.of_shape(shape)]
    # In the order of the queue: that of the shapes is another after a restart from a snapshot.
    for waiting in sorted(doomed):
        hopeless = _why_hopeless(state, waiting.shape)
        assert hopeless is not None
        end_waiting(turn, waiting, *hopeless)


def _why_hopeless(state: State, shape: Shape) -> tuple[DenialReason, str] | None:
    """Why a request of this shape could never be granted; None if it could."""
    if is_beyond(state, shape):
        assert shape.service is not None
        most_mib = state.limits[shape.service]
        asked = f"{shape.vram_mib} MiB on each of {shape.gpus} devices" if shape.gpus > 1 else f"{shape.vram_mib} MiB"
        return "quota", (
            f"asked for {asked}; {shape.service} may hold {most_mib} MiB on all devices together: ask for less, or "
            "raise its limit_mib in scheduler.policy"
        )
    # While no device is known nothing is impossible: the request waits for the devices to show up.
    if shape.vram_mib > state.rooms.largest_mib(wish_of(shape)) and state.ledger.devices:
        return "impossible", why_impossible(state.ledger, shape)
    return None


def _ask_again(turn: Turn, request: LeaseRequested) -> None:
    """The same request again (its answer may have been lost on the way): say again what it was told."""
    state = turn.state
    lease_id = request.lease_id
    waiting = state.waitlist.by_id.get(lease_id)
    past = state.history.by_name.get(lease_id)
    lease = state.ledger.leases.get(lease_id)
    if waiting is not None:
        known = waiting.request
    elif past is not None:  # before the lease: one that is being reclaimed has ended
        known = past.request
    else:
        assert lease is not None
        known = lease.request
        if lease.state == "reclaiming":
            detail = f"lease {lease_id} ended long ago and its memory is still being reclaimed; mint a new lease_id"
            reject(turn, "duplicate", detail, request)
            return
    if _essence(request) != _essence(known):
        reject(turn, "duplicate", f"lease_id {lease_id} was used with other fields; mint a new one", request)
        return
    address = reply_address(request.service, request.instance)
    if past is not None:
        if past.granted is not None:
            turn.repeat(past.granted, address)
        turn.repeat(past.ended, address)
    elif lease is not None:
        turn.repeat(replace(lease.granted, expires_at_ms=lease.expires_at_ms), address)


def _essence(request: LeaseRequested) -> LeaseRequested:
    """The request without what a retry may change."""
    return replace(request, pid=None, model=None, traceparent=None)
