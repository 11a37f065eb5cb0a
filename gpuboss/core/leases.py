"""Holding: what a service, an operator or a fact does to a lease or to a request that waits."""

from __future__ import annotations

from gpuboss.core import lifecycle
from gpuboss.core.addresses import reply_address, session_member
from gpuboss.core.history import Past
from gpuboss.core.ledger import Device, Lease, device_key
from gpuboss.core.lifecycle import EndReason, Happening
from gpuboss.core.policy import lingers_ms, priority_of
from gpuboss.core.refusals import reject, reject_unaddressed
from gpuboss.core.requests import end_waiting
from gpuboss.core.reservations import Reservation
from gpuboss.core.state import State, Turn
from gpuboss.core.timers import TimerKind
from gpuboss.core.waitlist import Waiting
from gpuboss.core.yielding import ask_back
from gpuboss.events import (
    FromService,
    LeaseEnded,
    LeaseExtended,
    LeaseGranted,
    LeaseIdled,
    LeaseReasserted,
    LeaseReleased,
    LeaseRenewed,
    LeaseRequested,
    LeaseResumed,
    LeaseRevoked,
    LeaseStateChanged,
)
from gpuboss.fields import GPUS_MAX

FENCE_MAX = 2**52  # of a reassertion: later fences are above it, and must still fit


def release(turn: Turn, event: LeaseReleased) -> None:
    """A lease is given back, a waiting request taken back; a repetition changes nothing."""
    state = turn.state
    waiting = state.waitlist.by_id.get(event.lease_id)
    if waiting is not None and waiting.request.service == event.service:
        end_waiting(turn, waiting, "cancelled", f"taken back by {event.service}")
        return
    lease = state.ledger.leases.get(event.lease_id)
    if lease is not None and lease.request.service == event.service:
        happen(turn, lease, "release")
        return
    known = _known(turn, event.lease_id)
    if known is None or known.service != event.service:
        _reject_stranger(turn, event, known)


def renew(turn: Turn, event: LeaseRenewed) -> None:
    """A holder wants its lease to end `ttl_ms` after this event."""
    lease = _held(turn, event, "renew")
    if lease is not None:
        state = turn.state
        expires_at_ms = state.now_ms + event.ttl_ms
        voided = state.reservations.voided_by(lease, expires_at_ms, state.policy)
        if voided is not None:
            reject(turn, "reserved", _why_reserved(lease, voided, event.ttl_ms), event, lease.request)
            return
        turn.look = True  # when others can start may be another time now
        _set_end(turn, lease, expires_at_ms)
        extended = LeaseExtended(
            cause=turn.cause,
            session=lease.request.session,
            lease_id=event.lease_id,
            service=event.service,
            expires_at_ms=expires_at_ms,
        )
        turn.tell(extended, _address(lease))


def idle(turn: Turn, event: LeaseIdled) -> None:
    """A holder keeps its model warm but unused."""
    lease = _held(turn, event, "idle")
    if lease is None:
        return
    if not lease.request.reclaimable:
        detail = f"lease {event.lease_id} was not requested as reclaimable, so it cannot be kept idle"
        reject(turn, "invalid", detail, event, lease.request)
        return
    if lease.state == "held":
        lease.floor = turn.state.floor
    lease.reload_ms = event.reload_ms
    turn.state.ledger.move(lease, "idle")
    turn.look = True  # it may be asked back for somebody who waits
    _tell_state(turn, lease)


def resume(turn: Turn, event: LeaseResumed) -> None:
    """A holder uses its warm model again."""
    lease = _held(turn, event, "resume")
    if lease is None:
        return
    if lease.state == "idle":
        lease.uses += 1
        lease.reload_ms = event.reload_ms or lease.reload_ms
    turn.state.ledger.move(lease, "held")
    _tell_state(turn, lease)


def reassert(turn: Turn, event: LeaseReasserted) -> None:
    """A holder repeats its lease: where the log holds it, nothing is new but a renewal that was lost. Where it does not
    it is believed while a log that was lost recovers, and the lease is what it was."""
    state = turn.state
    waiting = state.waitlist.by_id.get(event.lease_id)
    known = _known(turn, event.lease_id)
    is_new = known is None or (waiting is not None and known.service == event.service)
    if state.recovering_since_ms is None or event.state == "reclaiming" or not is_new:
        lease = _owned(turn, event)
        if lease is not None and state.recovering_since_ms is not None:
            _prolong(turn, lease, _ends_ms(state, event))
        return
    if event.session is not None and session_member(event.service, event.session) in state.lost_sessions.by_name:
        reject(turn, "unknown_lease", f"session {event.session} was lost, and lease {event.lease_id} with it", event)
        return
    devices = [state.ledger.devices.get(device_key(event.node, name)) for name in dict.fromkeys(event.devices)]
    known_devices = [device for device in devices if device is not None]
    gpus = len(event.devices) if waiting is None else waiting.request.gpus
    if not 1 <= gpus == len(known_devices) == len(event.devices) <= GPUS_MAX or event.fence > FENCE_MAX:
        named = ", ".join(event.devices[:8]) or "no device"
        detail = (
            f"lease {event.lease_id} is said to hold {named} with fence {event.fence}; expected {gpus or 1} different "
            f"known devices of {event.node}, as many as it asked for, and a fence up to {FENCE_MAX}"
        )
        reject(turn, "unknown_lease", detail, event)
        return
    if waiting is not None:  # its grant is among what was lost
        state.waitlist.remove(waiting)
    _reopen(turn, event, known_devices, waiting)


def revoke(turn: Turn, event: LeaseRevoked) -> None:
    """An operator ends a lease or a waiting request, or vouches that reclaimed memory is back.

    While a log that was lost recovers, who waits may hold what it asked for: denied, it could not say so any more.
    """
    waiting = turn.state.waitlist.by_id.get(event.lease_id)
    if waiting is not None and turn.state.recovering_since_ms is not None:
        detail = "the log lost entries, and its grant may be among them; revoke it again once that is known"
        reject_unaddressed(turn, "unknown_lease", f"lease {event.lease_id}: {detail}", event.lease_id)
        return
    if waiting is not None:
        by = f" by {event.by}" if event.by else ""
        end_waiting(turn, waiting, "cancelled", f"revoked{by}: {event.reason or 'no reason given'}")
        return
    lease = turn.state.ledger.leases.get(event.lease_id)
    if lease is None:
        known = _known(turn, event.lease_id)
        detail = "it has ended already" if known is not None else "the log knows no such lease or request"
        reject_unaddressed(turn, "unknown_lease", f"lease {event.lease_id}: {detail}", event.lease_id)
        return
    if event.vouched:
        happen(turn, lease, "vouch")
    elif event.grace_ms and lease.state in ("held", "idle"):
        ask_back(turn, lease, turn.state.now_ms + event.grace_ms, None)
    else:
        happen(turn, lease, "ask_back" if event.grace_ms else "revoke")


def happen(turn: Turn, lease: Lease, happening: Happening) -> None:
    """Apply one line of the lifecycle's table to a lease."""
    move = lifecycle.move(lease.state, happening)
    if move.ended is not None:
        _end(turn, lease, move.ended, clean=move.after == "clean")
    elif move.after == "gone":
        _free(turn, lease)
    elif move.after == "vouched":
        lease.vouched = True


def _end(turn: Turn, lease: Lease, reason: EndReason, *, clean: bool) -> None:
    state = turn.state
    request = lease.request
    freed = not _may_linger(turn, lease, clean=clean)
    ended = LeaseEnded(
        cause=turn.cause,
        session=request.session,
        lease_id=request.lease_id,
        service=request.service,
        reason=reason,
        freed=freed,
    )
    state.leave_session(request)
    state.history.add(request.lease_id, Past(request, lease.granted, ended), state.now_ms)
    turn.tell(ended, _address(lease))
    if freed:
        _free(turn, lease)
    else:
        state.ledger.start_reclaiming(lease, state.now_ms, clean=clean)
        turn.look = True  # it is known now by when its room is back
        turn.lease_ids.append(request.lease_id)
        turn.shown.append(request.lease_id)
        turn.devices += lease.devices


def _reopen(turn: Turn, event: LeaseReasserted, devices: list[Device], waiting: Waiting | None) -> None:
    """Charge a lease as its holder describes it. What its devices hold may exceed what they have now: a lease that
    ended may still stand in what is left of the log. Then nothing is granted there until that is cleared up."""
    state = turn.state
    if waiting is None:
        state.arrivals += 1
        request, arrival = _request_behind(event), state.arrivals
        priority = priority_of(state.policy, request)
        state.join_session(request)
    else:
        request, arrival, priority = waiting.request, waiting.arrival, waiting.shape.priority
    ends_ms = _ends_ms(state, event)
    granted = LeaseGranted(
        cause=turn.cause,
        session=request.session,
        lease_id=event.lease_id,
        service=event.service,
        node=event.node,
        device=devices[0].observed.device,
        devices=tuple([device.observed.device for device in devices]),
        uuids=tuple([device.observed.uuid for device in devices]),
        vram_mib=request.vram_mib,
        granted_at_ms=event.granted_at_ms,
        expires_at_ms=ends_ms,
        waited_ms=0,
        fence=event.fence,
        priority=None if priority == request.priority else priority,
    )
    held: lifecycle.State = "idle" if event.state == "idle" else "held"
    began_ms = min(event.granted_at_ms, state.now_ms)
    lease = Lease(request, arrival, granted, devices, held, ends_ms, state.now_ms, since_ms=began_ms)
    lease.floor = state.floor
    state.ledger.reopen(lease)
    state.fence = max(state.fence, event.fence)
    if ends_ms is not None:
        state.timers.set(ends_ms, TimerKind.LEASE_EXPIRY, event.lease_id)
    turn.lease_ids.append(event.lease_id)
    turn.shown.append(event.lease_id)
    turn.devices += devices
    turn.repeat(granted, reply_address(request.service, request.instance))


def _ends_ms(state: State, event: LeaseReasserted) -> int | None:
    """When a reasserted lease ends. If its grant lies in the future, it is by another clock, which was put back: so
    does its end, by as much."""
    if event.expires_at_ms is None:
        return None
    return event.expires_at_ms - max(0, event.granted_at_ms - state.now_ms)


def _prolong(turn: Turn, lease: Lease, expires_at_ms: int | None) -> None:
    """A lease of what is left of the log may have been renewed in what is gone: its holder says until when."""
    if expires_at_ms is None or lease.expires_at_ms is None or expires_at_ms <= lease.expires_at_ms:
        return
    _set_end(turn, lease, expires_at_ms)


def _set_end(turn: Turn, lease: Lease, expires_at_ms: int) -> None:
    state = turn.state
    lease.expires_at_ms = expires_at_ms
    lease.expiry_set_ms = state.now_ms
    state.ledger.changes.reschedule(lease)
    state.timers.set(expires_at_ms, TimerKind.LEASE_EXPIRY, lease.request.lease_id)
    turn.lease_ids.append(lease.request.lease_id)


def _request_behind(event: LeaseReasserted) -> LeaseRequested:
    """What a holder must have asked for to hold this."""
    return LeaseRequested(
        lease_id=event.lease_id,
        service=event.service,
        vram_mib=event.vram_mib,
        priority=event.priority,
        node=event.node,
        gpus=len(event.devices),
        exclusive=event.exclusive,
        reclaimable=event.reclaimable or event.state == "idle",
        preemptible=event.preemptible,
        instance=event.instance,
        session=event.session,
    )


def _why_reserved(lease: Lease, voided: Reservation, ttl_ms: int) -> str:
    kept = "is being emptied" if voided.start_ms is None else f"is reserved from {voided.start_ms} ms of the log's time"
    return (
        f"lease {lease.request.lease_id} cannot go on for {ttl_ms} ms: its device {kept} for "
        f"{voided.waiting.request.lease_id}; let it end, and ask again"
    )


def _may_linger(turn: Turn, lease: Lease, *, clean: bool) -> bool:
    """Whether memory can outlive the lease: on real devices always, on simulated ones if a lock delay is set. Where its
    holder gave it back only on real ones, and if it is given time to settle."""
    is_real = any(not device.observed.simulated for device in lease.devices)
    if clean:
        return is_real and lingers_ms(turn.state.policy, clean=True) > 0
    return is_real or (turn.state.policy.lock_delay_ms > 0 and bool(lease.devices))


def _free(turn: Turn, lease: Lease) -> None:
    turn.devices += lease.devices
    turn.lease_ids.append(lease.request.lease_id)
    turn.state.ledger.close(lease)
    turn.look = True


def _tell_state(turn: Turn, lease: Lease) -> None:
    request = lease.request
    assert lease.state in ("held", "idle")
    turn.lease_ids.append(request.lease_id)
    changed = LeaseStateChanged(
        cause=turn.cause,
        session=request.session,
        lease_id=request.lease_id,
        service=request.service,
        state="idle" if lease.state == "idle" else "held",
    )
    turn.tell(changed, _address(lease))


def _owned(turn: Turn, event: FromService) -> Lease | None:
    """The sender's lease that has not ended; where there is none, that is told."""
    lease = turn.state.ledger.leases.get(event.lease_id)
    if lease is None or lease.state == "reclaiming" or lease.request.service != event.service:
        _reject_stranger(turn, event, _known(turn, event.lease_id))
        return None
    return lease


def _held(turn: Turn, event: FromService, happening: Happening) -> Lease | None:
    """The sender's lease, if this may happen to it now; where it may not, that is told."""
    lease = _owned(turn, event)
    if lease is None or (refused := lifecycle.move(lease.state, happening).refused) is None:
        return lease
    reject(turn, refused, f"lease {event.lease_id} is asked back", event, lease.request)
    return None


def _known(turn: Turn, lease_id: str) -> LeaseRequested | None:
    """The request behind a lease_id, whether it waits, holds or is over."""
    state = turn.state
    known = (
        state.waitlist.by_id.get(lease_id) or state.ledger.leases.get(lease_id) or state.history.by_name.get(lease_id)
    )
    return None if known is None else known.request


def _reject_stranger(turn: Turn, event: FromService, known: LeaseRequested | None) -> None:
    if known is not None and known.service != event.service:
        reject(turn, "not_owner", f"lease {event.lease_id} belongs to another service", event)
    elif known is not None:
        waits = event.lease_id in turn.state.waitlist.by_id
        detail = "is not granted yet" if waits else "has ended"
        reject(turn, "unknown_lease", f"lease {event.lease_id} {detail}", event, known)
    else:
        reject(turn, "unknown_lease", f"the log knows no lease or request {event.lease_id}", event)


def _address(lease: Lease) -> str:
    return reply_address(lease.request.service, lease.request.instance)
