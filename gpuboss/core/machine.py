"""One turn of the crank: an entry of the log is applied to the state, and decisions come out.

State after a prefix of the log = fold of `step` over it. There is nothing else: what the scheduler does live, what
`gpuboss replay` verifies and what a simulation tries out is this function.

Per entry: the clock advances; a tick fires the timers that are due; the event is applied; those who may now have a
place are looked at, once. Decisions that the log already holds change nothing but the count of what the scheduler
wrote: they were derived when the entry that caused them was applied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gpuboss.core import facts, leases, requests
from gpuboss.core.door import (
    Refusal,
    is_decision,
    is_stamped,
    read_data,
    read_event,
    read_known,
    read_stamp,
    read_type,
    refuse,
)
from gpuboss.core.granting import grant_pass
from gpuboss.core.refusals import reject_unaddressed, reject_unread
from gpuboss.core.state import State, Turn
from gpuboss.events import (
    ClockJumped,
    ClockTicked,
    DeviceLost,
    DeviceObserved,
    Event,
    LeaseIdled,
    LeaseReasserted,
    LeaseReleased,
    LeaseRenewed,
    LeaseRequested,
    LeaseResumed,
    LeaseRevoked,
    PolicySet,
    SchedulerElected,
    SessionLost,
    SnapshotTaken,
    Stamp,
    VramReclaimed,
)

CORE_VERSION = 1  # grows whenever the same log could lead to other decisions, or to another state


def _tick(turn: Turn, event: ClockTicked) -> None:
    turn.state.advance(event.now_ms)
    facts.tick(turn, event)


def _revoke(turn: Turn, event: LeaseRevoked) -> None:
    state = turn.state
    if event.epoch == state.epoch and event.seq == state.seq + 1:
        state.seq += 1  # the scheduler wrote it, for an operator who deleted a projection
    leases.revoke(turn, event)


_HANDLERS: dict[type[Event | Refusal], Callable[[Turn, Any], None]] = {
    LeaseRequested: requests.ask,
    LeaseReleased: leases.release,
    LeaseRenewed: leases.renew,
    LeaseIdled: leases.idle,
    LeaseResumed: leases.resume,
    LeaseReasserted: leases.reassert,
    LeaseRevoked: _revoke,
    SchedulerElected: facts.elect,
    PolicySet: facts.set_policy,
    DeviceObserved: facts.observe_device,
    DeviceLost: facts.lose_device,
    SessionLost: facts.lose_session,
    ClockTicked: _tick,
    ClockJumped: facts.jump,
    VramReclaimed: facts.reclaim,
    SnapshotTaken: facts.take_snapshot,
}


def step(state: State, entry_id: str, fields: Sequence[bytes]) -> Turn:
    """Apply one entry (its stream id, and its field list as Redis holds it) and return what it leads to."""
    turn = Turn(state, entry_id, look=state.look_is_due)
    type_name = read_type(fields)
    data = b"" if type_name is None else read_data(fields)
    forged: Stamp | None = None
    if type_name is not None and is_stamped(type_name):
        stamp = read_stamp(data)
        if not follows(state, type_name, stamp):
            forged = stamp
        else:
            take_stamp(state, entry_id, stamp)
            if is_decision(type_name):
                return turn
    state.take_input(entry_id, fields)
    state.advance(entry_ms(entry_id))
    if type_name is None:
        _apply(turn, read_event(fields))
    elif forged is not None:
        _reject_forged(turn, type_name, forged, data)
    else:
        _apply(turn, read_known(type_name, data))
    # Look who has a place now, unless that is left to the next entry.
    state.look_is_due = turn.look and turn.looks_later
    if turn.look and not turn.looks_later:
        grant_pass(turn)
    return turn


def follows(last: State | Stamp, type_name: bytes, stamp: Stamp) -> bool:
    """Whether this stamp is the one that the scheduler's next entry must carry, after the one that `last` counts."""
    if stamp.seq != last.seq + 1:
        return False
    if type_name == b"SchedulerElected":
        return stamp.epoch > last.epoch
    return stamp.epoch == last.epoch and stamp.epoch > 0


def take_stamp(state: State, entry_id: str, stamp: Stamp) -> None:
    """Count an entry of the scheduler. For a decision this is all: it was derived when its cause was applied."""
    state.last_id = entry_id
    state.epoch, state.seq = stamp.epoch, stamp.seq


def entry_ms(entry_id: str) -> int:
    """The ms part of a stream id."""
    return int(entry_id.partition("-")[0])


def _apply(turn: Turn, event: Event | Refusal) -> None:
    handler = _HANDLERS.get(type(event))
    if handler is not None:
        handler(turn, event)
    elif isinstance(event, Refusal):
        reject_unread(turn, event)
    else:
        reject_unaddressed(turn, "unknown_type", f"core {CORE_VERSION} does not act on {type(event).__name__}")


def _reject_forged(turn: Turn, type_name: bytes, claimed: Stamp, data: bytes) -> None:
    detail = (
        f"{type_name.decode()} is written by the scheduler alone; this one claims epoch {claimed.epoch} and seq "
        f"{claimed.seq}, expected {turn.state.epoch} and {turn.state.seq + 1}"
    )
    reject_unread(turn, refuse(data, "forged", detail))
