"""Facts: what the scheduler saw happen outside the log and wrote into it."""

from __future__ import annotations

from gpuboss.core.addresses import session_member
from gpuboss.core.leases import happen
from gpuboss.core.ledger import Lease, device_key
from gpuboss.core.plans import check, dissolve, dissolve_all
from gpuboss.core.requests import deny_hopeless, end_waiting
from gpuboss.core.state import State, Turn
from gpuboss.core.timers import TimerKind
from gpuboss.core.waitlist import Waiting
from gpuboss.events import (
    ClockJumped,
    ClockTicked,
    DeviceLost,
    DeviceObserved,
    PolicySet,
    SchedulerElected,
    SessionLost,
    SnapshotTaken,
    VramReclaimed,
)


def elect(turn: Turn, event: SchedulerElected) -> None:
    """A reign begins; its epoch came with the stamp. Where entries of the log are gone, recovery begins too, at the
    time that the log had reached: what is reasserted ends by that clock, and the server's may be behind it. One that
    had begun may have run out while nobody led: those who look for a leader first get the time to find this one."""
    state = turn.state
    turn.look |= state.core != event.core  # other rules may have let somebody wait who may begin by these
    state.core, state.incarnation = event.core, event.incarnation
    if event.lost is not None:
        state.fence = max(state.fence, event.lost.fence)
        state.advance(int(event.lost.last_id.partition("-")[0]))
        state.recovering_since_ms = state.now_ms
        dissolve_all(turn)  # while that recovers nobody is granted anything, and anybody may hold anything
        turn.look = True  # what was kept for those who wait is kept for nobody now
        state.recovering_for_ms = max(state.recovering_for_ms, _quarantine_ms(state.policy))
        _set_recovery_end(state)
    elif state.recovering_since_ms is not None:
        state.recovering_elected_ms = state.now_ms
        state.recovering_elected_for_ms = max(state.recovering_elected_for_ms, state.policy.session_ttl_ms)
        _set_recovery_end(state)


def set_policy(turn: Turn, event: PolicySet) -> None:
    """New rules. Those who wait keep the keys they have; nothing that was granted is taken away."""
    take_policy(turn.state, event)
    deny_hopeless(turn)
    turn.look = True


def take_policy(state: State, event: PolicySet) -> None:
    """Take over new rules, and look at nobody. Those who hold what was lost live by the rules that they heard of: a
    recovery takes no less time by others, unless they are the first that the log has."""
    if state.recovering_since_ms is not None:
        known_ms = state.recovering_for_ms if state.policy_recorded else 0
        state.recovering_for_ms = max(known_ms, _quarantine_ms(event))
        _set_recovery_end(state)
    state.set_policy(event)
    state.policy_recorded = True
    state.ledger.changes.freed_all = True  # by other rules there may be a place for anybody


def observe_device(turn: Turn, event: DeviceObserved) -> None:
    """A device is there, or changed."""
    ledger = turn.state.ledger
    version = ledger.version
    device = ledger.observe(event)
    turn.devices.append(device)
    check(turn, device)
    if version != ledger.version:
        deny_hopeless(turn)
    turn.look = True


def lose_device(turn: Turn, event: DeviceLost) -> None:
    """A device is gone: its leases end, on all their devices."""
    ledger = turn.state.ledger
    device = ledger.devices.get(device_key(event.node, event.device))
    if device is None:
        return
    for lease in list(device.leases.values()):
        ledger.detach(lease, device)
        happen(turn, lease, "lose_device")
        if lease.state == "reclaiming" and not lease.devices:
            turn.lease_ids.append(lease.request.lease_id)
            ledger.close(lease)
    turn.devices.append(device)
    if device.plan is not None:
        dissolve(turn, device.plan.waiting)
    ledger.forget(device.key)
    deny_hopeless(turn)
    turn.look = True


def lose_session(turn: Turn, event: SessionLost) -> None:
    """A process is dead: its requests and leases end, and it stays lost."""
    state = turn.state
    member = session_member(event.service, event.session)
    state.lost_sessions.add(member, None, state.now_ms)
    for lease_id in list(state.sessions.get(member, ())):
        waiting = state.waitlist.by_id.get(lease_id)
        if waiting is not None:
            end_waiting(turn, waiting, "session_lost", f"session {event.session} is silent")
        else:
            happen(turn, state.ledger.leases[lease_id], "lose_session")


def tick(turn: Turn, event: ClockTicked) -> None:
    """Fire what is due, by (deadline, kind, id)."""
    state = turn.state
    state.ticked_ms = state.now_ms
    while (timer := state.next_timer()) is not None and timer.deadline_ms <= state.now_ms:
        state.timers.drop_first()
        if timer.kind is TimerKind.RECOVERY_END:
            end_recovery(state)
            state.ledger.changes.freed_all = True  # nobody was looked at since it began
            deny_hopeless(turn)
            turn.look = True
        elif timer.kind is TimerKind.WAIT_TIMEOUT:
            waiting = state.waitlist.by_id[timer.lease_id]
            if state.recovering_until_ms is not None:
                wait_longer(turn, waiting, state.recovering_until_ms)
            else:
                end_waiting(turn, waiting, "timeout", f"no room within {waiting.request.wait_ms} ms")
        elif timer.kind is TimerKind.STARVATION:
            waiting = state.waitlist.by_id[timer.lease_id]
            waiting.starves = True
            state.waitlist.parking.note_starving(waiting)
            turn.look = True
        elif timer.kind is TimerKind.PREEMPTION:
            state.waitlist.by_id[timer.lease_id].preempts_at_ms = None
            turn.look = True
        else:
            lease = state.ledger.leases[timer.lease_id]
            happen(turn, lease, "expire" if timer.kind is TimerKind.LEASE_EXPIRY else "revoke")
    turn.looks_later = event.inputs_follow


def jump(turn: Turn, event: ClockJumped) -> None:
    """The server's clock jumped: what was set before moves along, so that nothing is due early or late."""
    state = turn.state
    from_ms = int(event.from_id.partition("-")[0])
    if state.recovering_since_ms is not None and state.recovering_since_ms < from_ms:
        state.recovering_since_ms = max(0, state.recovering_since_ms + event.delta_ms)
        if state.recovering_elected_ms < from_ms:
            state.recovering_elected_ms = max(0, state.recovering_elected_ms + event.delta_ms)
        _set_recovery_end(state)
    for lease_id, lease in state.ledger.leases.items():
        _move_beginning(lease, from_ms, event.delta_ms)
        if lease.expires_at_ms is not None and lease.expiry_set_ms < from_ms:
            lease.expires_at_ms = max(0, lease.expires_at_ms + event.delta_ms)
            state.timers.set(lease.expires_at_ms, TimerKind.LEASE_EXPIRY, lease_id)
            turn.lease_ids.append(lease_id)
        if lease.yield_by_ms is not None and lease.yield_set_ms < from_ms:
            lease.yield_by_ms = max(0, lease.yield_by_ms + event.delta_ms)
            state.timers.set(lease.yield_by_ms, TimerKind.YIELD_DEADLINE, lease_id)
        if lease.reclaiming_since_ms is not None and lease.reclaiming_since_ms < from_ms:
            # The lock delay counts from it: a jump must not bring VRAM back that may still be in use.
            lease.reclaiming_since_ms = max(0, lease.reclaiming_since_ms + event.delta_ms)
        state.ledger.changes.reschedule(lease)
    for lease_id, waiting in state.waitlist.by_id.items():
        _move_beginning(waiting, from_ms, event.delta_ms)
        if waiting.wait_until_ms is not None and waiting.requested_at_ms < from_ms:
            waiting.wait_until_ms = max(0, waiting.wait_until_ms + event.delta_ms)
            state.timers.set(waiting.wait_until_ms, TimerKind.WAIT_TIMEOUT, lease_id)
        if waiting.requested_at_ms < from_ms:
            waiting.starves_at_ms = max(0, waiting.starves_at_ms + event.delta_ms)
            if waiting is state.reservations.unpromised or waiting.shape.service is not None:
                state.timers.set(waiting.starves_at_ms, TimerKind.STARVATION, lease_id)
    turn.look = True  # the ends of leases moved, and with them what they let start


def reclaim(turn: Turn, event: VramReclaimed) -> None:
    """The memory of a lease that has ended is back."""
    lease = turn.state.ledger.leases.get(event.lease_id)
    if lease is not None:
        happen(turn, lease, "reclaim")


def take_snapshot(turn: Turn, event: SnapshotTaken) -> None:
    """What a snapshot was taken of is for a replay to compare; it changes nothing."""


def wait_longer(turn: Turn, waiting: Waiting, until_ms: int) -> None:
    """Nobody's wait is over while a lost log recovers: the grant may be among what was lost, and then its holder has
    until the end to say so."""
    waiting.wait_until_ms = until_ms + 1
    turn.state.timers.set(waiting.wait_until_ms, TimerKind.WAIT_TIMEOUT, waiting.request.lease_id)


def _move_beginning(owner: Lease | Waiting, from_ms: int, delta_ms: int) -> None:
    """How long it runs, or waits, counts from it."""
    if owner.since_ms < from_ms:
        owner.since_ms = max(0, owner.since_ms + delta_ms)


def end_recovery(state: State) -> None:
    """Whoever held something in what was lost has said so."""
    state.recovering_since_ms, state.recovering_for_ms = None, 0
    state.recovering_elected_ms = state.recovering_elected_for_ms = 0


def _set_recovery_end(state: State) -> None:
    assert state.recovering_until_ms is not None
    state.timers.set(state.recovering_until_ms, TimerKind.RECOVERY_END, "")


def _quarantine_ms(policy: PolicySet) -> int:
    """By when a session is lost, and its memory lent again, at the earliest."""
    return policy.session_ttl_ms + policy.lock_delay_ms
