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
from gpuboss.core.policy import max_waiting_of, queue_key
from gpuboss.core.refusals import reject
from gpuboss.core.state import Turn
from gpuboss.core.timers import TimerKind
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
    if request.session is not None and session_member(request.service, request.session) in state.lost_sessions.by_name:
        deny(
            turn,
            request,
            "session_lost",
            f"session {request.session} was lost; a new process takes a new one",
        )
        return
    if _deny_beyond_cap(turn, request):
        return
    shape = shape_of(request)
    # While no device is known nothing is impossible: the request waits for the devices to show up.
    is_possible = shape.vram_mib <= state.largest_mib(wish_of(shape))
    if not is_possible and state.ledger.devices and state.recovering_since_ms is None:
        deny(turn, request, "impossible", why_impossible(state.ledger, shape))
        return
    state.arrivals += 1
    state.join_session(request)
    if not grant_at_once(turn, request, shape):
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
    now_ms = state.now_ms
    wait_until_ms = None if request.wait_ms is None else now_ms + request.wait_ms
    key = queue_key(state.policy, request.priority, now_ms)
    starves_at_ms = now_ms + state.policy.starve_ms
    waiting = Waiting(key, state.arrivals, request, shape, now_ms, wait_until_ms, starves_at_ms, now_ms)
    if wait_until_ms is not None:
        state.timers.set(wait_until_ms, TimerKind.WAIT_TIMEOUT, request.lease_id)
    turn.lease_ids.append(request.lease_id)
    # Behind another of its shape it has no place that the other would not have taken.
    if state.waitlist.add(waiting):
        look_at(turn, waiting)


def end_waiting(turn: Turn, waiting: Waiting, reason: DenialReason, detail: str) -> None:
    """A waiting request ends without a lease."""
    dissolve(turn, waiting)
    turn.state.waitlist.remove(waiting)
    turn.state.leave_session(waiting.request)
    turn.lease_ids.append(waiting.request.lease_id)
    if turn.state.reservations.drop(waiting) or waiting.preempts_at_ms is not None:
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


def deny_impossible(turn: Turn) -> None:
    """The devices changed: end the waiting of those whom none of them could ever hold."""
    state = turn.state
    if not state.ledger.devices or state.recovering_since_ms is not None:
        return
    assert all(state.candidates(waiting.shape) for waiting in state.planned.values())
    most_mib = {wish: state.largest_mib(wish) for wish in state.fronts.wishes()}
    if all(state.fronts.largest_mib(wish) <= largest_mib for wish, largest_mib in most_mib.items()):
        return
    shapes = [shape for shape in state.waitlist.shapes() if shape.vram_mib > most_mib[wish_of(shape)]]
    doomed = [waiting for shape in shapes for waiting in state.waitlist.of_shape(shape)]
    # In the order of the queue: that of the shapes is another after a restart from a snapshot.
    for waiting in sorted(doomed):
        end_waiting(turn, waiting, "impossible", why_impossible(state.ledger, waiting.shape))


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
