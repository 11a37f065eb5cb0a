"""What a log of other rules did to the state: its decisions are taken as they stand there, not derived.

An input does what no rule decides: it moves the clock, describes a device, queues a request. What became of it the
decisions say that name it as their cause. So the state after a reign of other rules is known without those rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpuboss.core import facts
from gpuboss.core.addresses import session_member
from gpuboss.core.eviction import worth
from gpuboss.core.history import Past
from gpuboss.core.leases import reassert
from gpuboss.core.ledger import Lease, device_key
from gpuboss.core.plans import dissolve_all
from gpuboss.core.policy import priority_of
from gpuboss.core.requests import new_waiting
from gpuboss.core.reservations import Reservations
from gpuboss.core.state import State, Turn
from gpuboss.core.timers import TimerKind
from gpuboss.core.waitlist import Waiting, shape_of
from gpuboss.events import (
    ClockJumped,
    ClockTicked,
    Decision,
    DeviceLost,
    DeviceObserved,
    Event,
    EventRejected,
    LeaseDenied,
    LeaseEnded,
    LeaseExtended,
    LeaseGranted,
    LeaseIdled,
    LeaseReasserted,
    LeaseRequested,
    LeaseResumed,
    LeaseRevoked,
    LeaseStateChanged,
    PolicySet,
    SchedulerElected,
    SessionLost,
    VramReclaimed,
    YieldRequested,
)


class CannotAdopt(Exception):
    """A decision speaks of what the log does not hold; the message says of what."""


def adopt_input(state: State, entry_id: str, event: Event, *, by_scheduler: bool) -> None:
    """An input of a reign of other rules, at its time. `by_scheduler`: the scheduler wrote it."""
    if isinstance(event, ClockTicked):
        state.advance(event.now_ms)
        state.ticked_ms = state.now_ms
    dissolve_all(Turn(state, entry_id))  # other rules hold nothing of what ours asked back
    handler = _INPUTS.get(type(event))
    if handler is not None and not (by_scheduler and isinstance(event, LeaseRevoked)):
        handler(Turn(state, entry_id), event)


def adopt_decision(state: State, cause: Event | None, decision: Decision) -> None:
    """What was decided of `cause` (None: an entry that is no event). Raises `CannotAdopt`."""
    if isinstance(decision, EventRejected):
        if isinstance(cause, LeaseRequested) and decision.reason != "duplicate":
            _forget_request(state, cause)
    elif isinstance(decision, LeaseGranted):
        _grant(state, decision)
    elif isinstance(decision, LeaseDenied):
        _deny(state, cause, decision)
    elif isinstance(decision, LeaseEnded):
        _end(state, decision)
    elif isinstance(decision, LeaseExtended):
        _extend(state, decision)
    elif isinstance(decision, YieldRequested):
        _ask_back(state, decision)
    elif isinstance(decision, LeaseStateChanged):
        _change(state, cause, decision)


def forget_plans(state: State) -> None:
    """What other rules meant to keep free, and for whom, is not in their decisions: ours plan anew."""
    state.reservations = Reservations()
    state.ledger.changes.freed_all = True


# ---------------------------------------------------------------- inputs


def _ask(turn: Turn, request: LeaseRequested) -> None:
    state, lease_id = turn.state, request.lease_id
    if lease_id in state.waitlist.by_id or lease_id in state.ledger.leases or lease_id in state.history.by_name:
        return
    state.arrivals += 1
    state.join_session(request)
    shape = shape_of(request, priority_of(state.policy, request), state.limits)
    state.enqueue(new_waiting(state, request, shape))


def _set_policy(turn: Turn, event: PolicySet) -> None:
    facts.take_policy(turn.state, event)


def _observe_device(turn: Turn, event: DeviceObserved) -> None:
    turn.state.ledger.observe(event)


def _lose_device(turn: Turn, event: DeviceLost) -> None:
    ledger = turn.state.ledger
    device = ledger.devices.get(device_key(event.node, event.device))
    if device is None:
        return
    for lease in list(device.leases.values()):
        ledger.detach(lease, device)
        if lease.state == "reclaiming" and not lease.devices:
            ledger.close(lease)
    ledger.forget(device.key)


def _lose_session(turn: Turn, event: SessionLost) -> None:
    state = turn.state
    state.lost_sessions.add(session_member(event.service, event.session), None, state.now_ms)


def _tick(turn: Turn, event: ClockTicked) -> None:
    """The end of recovery, and longer waits before it, are told to nobody."""
    state = turn.state
    until_ms = state.recovering_until_ms
    if until_ms is None:
        return
    for waiting in state.waitlist.by_id.values():
        if waiting.wait_until_ms is not None and waiting.wait_until_ms <= min(until_ms, state.now_ms):
            facts.wait_longer(turn, waiting, until_ms)
    if until_ms <= state.now_ms:
        facts.end_recovery(state)


def _revoke(turn: Turn, event: LeaseRevoked) -> None:
    lease = turn.state.ledger.leases.get(event.lease_id)
    if lease is not None and lease.state == "reclaiming" and event.vouched:
        lease.vouched = True


def _reclaim(turn: Turn, event: VramReclaimed) -> None:
    lease = turn.state.ledger.leases.get(event.lease_id)
    if lease is not None and lease.state == "reclaiming":
        turn.state.ledger.close(lease)


_INPUTS: dict[type[Event], Callable[[Turn, Any], None]] = {
    LeaseRequested: _ask,
    LeaseReasserted: reassert,  # which is told to its holder alone
    LeaseRevoked: _revoke,
    SchedulerElected: facts.elect,
    PolicySet: _set_policy,
    DeviceObserved: _observe_device,
    DeviceLost: _lose_device,
    SessionLost: _lose_session,
    ClockTicked: _tick,
    ClockJumped: facts.jump,
    VramReclaimed: _reclaim,
}


# ---------------------------------------------------------------- decisions


def _waiting(state: State, lease_id: str) -> Waiting:
    waiting = state.waitlist.by_id.get(lease_id)
    if waiting is None:
        raise CannotAdopt(f"no request {lease_id} waits")
    return waiting


def _lease(state: State, lease_id: str) -> Lease:
    lease = state.ledger.leases.get(lease_id)
    if lease is None or lease.state == "reclaiming":
        raise CannotAdopt(f"nobody holds a lease {lease_id}")
    return lease


def _forget_request(state: State, request: LeaseRequested) -> None:
    waiting = state.waitlist.by_id.get(request.lease_id)
    if waiting is not None and waiting.arrival == state.arrivals:
        state.waitlist.remove(waiting)
        state.leave_session(waiting.request)
        state.arrivals -= 1


def _grant(state: State, granted: LeaseGranted) -> None:
    waiting = _waiting(state, granted.lease_id)
    devices = [state.ledger.devices.get(device_key(granted.node, name)) for name in granted.devices]
    known = [device for device in devices if device is not None]
    if len(known) != len(devices) or not known:
        raise CannotAdopt(f"there is no {' or no '.join(granted.devices) or 'device'} on {granted.node}")
    state.waitlist.remove(waiting)
    expires_at_ms = granted.expires_at_ms
    lease = Lease(
        waiting.request, waiting.arrival, granted, known, "held", expires_at_ms, state.now_ms, since_ms=state.now_ms
    )
    state.ledger.reopen(lease)
    state.fence = max(state.fence, granted.fence)
    if expires_at_ms is not None:
        state.timers.set(expires_at_ms, TimerKind.LEASE_EXPIRY, granted.lease_id)


def _deny(state: State, cause: Event | None, denied: LeaseDenied) -> None:
    waiting = _waiting(state, denied.lease_id)
    request = waiting.request
    if cause is request:
        _forget_request(state, request)  # it was never queued
    else:
        state.waitlist.remove(waiting)
        state.leave_session(request)
    state.history.add(denied.lease_id, Past(request, None, denied), state.now_ms)


def _end(state: State, ended: LeaseEnded) -> None:
    lease = _lease(state, ended.lease_id)
    state.leave_session(lease.request)
    state.history.add(ended.lease_id, Past(lease.request, lease.granted, ended), state.now_ms)
    if ended.freed:
        state.ledger.close(lease)
    else:
        state.ledger.start_reclaiming(lease, state.now_ms, clean=ended.reason in ("released", "yielded"))


def _extend(state: State, extended: LeaseExtended) -> None:
    lease = _lease(state, extended.lease_id)
    lease.expires_at_ms, lease.expiry_set_ms = extended.expires_at_ms, state.now_ms
    state.ledger.changes.reschedule(lease)
    state.timers.set(extended.expires_at_ms, TimerKind.LEASE_EXPIRY, extended.lease_id)


def _ask_back(state: State, asked: YieldRequested) -> None:
    lease = _lease(state, asked.lease_id)
    if lease.state == "idle" and asked.for_ is not None:
        state.floor = worth(lease)
    state.ledger.move(lease, "yielding")
    lease.yield_by_ms, lease.yield_set_ms = asked.deadline_ms, state.now_ms
    state.ledger.changes.reschedule(lease)
    state.timers.set(asked.deadline_ms, TimerKind.YIELD_DEADLINE, asked.lease_id)


def _change(state: State, cause: Event | None, changed: LeaseStateChanged) -> None:
    lease = _lease(state, changed.lease_id)
    if isinstance(cause, LeaseIdled):
        lease.reload_ms = cause.reload_ms
    elif isinstance(cause, LeaseResumed) and lease.state == "idle":
        lease.uses += 1
        lease.reload_ms = cause.reload_ms or lease.reload_ms
    if lease.state == "held" and changed.state == "idle":
        lease.floor = state.floor
    state.ledger.move(lease, changed.state)
