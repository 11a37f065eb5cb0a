"""Starting from the log: the state at the cursor, from the snapshot and what came after it, and the tail behind it.

Decisions that were recorded are derived again on the way; a scheduler that would have decided otherwise does not
lead: it could promise what is promised already.
"""

from __future__ import annotations

import msgspec

from gpuboss.core.addresses import session_member
from gpuboss.core.door import is_decision, is_stamped, read_data, read_event, read_stamp, read_type
from gpuboss.core.state import State
from gpuboss.core.verification import Verifier, parse_id
from gpuboss.events import EventRejected, LeaseRequested, Stamp
from gpuboss.log import Entry, LogDamaged, LogReader


class Recovered(msgspec.Struct):
    """What the log says: the state at the cursor, the highest epoch and seq in the whole log, and whose sessions
    the undecided requests behind the cursor belong to."""

    state: State
    cursor: str
    epoch: int
    seq: int
    tail_sessions: list[str]


def recover(log: LogReader, cursor: str) -> Recovered:
    """Read the log. `cursor`: the last entry decided, or empty if Redis does not say.

    Raises `LogDamaged` if the decisions in the log do not follow from it.
    """
    if not cursor:
        cursor = _last_cause(log)
    state = log.snapshot() or State()
    if parse_id(state.last_id) > parse_id(cursor):
        raise LogDamaged(
            f"the snapshot stands at {state.last_id}, behind the cursor {cursor}: it belongs to another log; "
            "delete it if the log is whole"
        )
    _check_beginning(log, state)
    verifier = Verifier(state, lambda: _forged_ids(log, state.last_id))
    tail = Recovered(state, cursor, 0, 0, [])
    highest = Stamp(state.epoch, state.seq)
    cursor_id = parse_id(cursor)
    for entry in log.entries(after=state.last_id):
        if parse_id(entry.id) <= cursor_id:
            verifier.feed(entry.id, entry.fields)
            highest = Stamp(state.epoch, state.seq)
        else:
            highest = _peek(entry, highest, tail.tail_sessions)
    if verifier.divergences:
        first = verifier.divergences[0]
        raise LogDamaged(
            f"the log differs from what its rules give, first at entry {first.entry_id}: {first.problem}; "
            "`gpuboss replay` shows it all; a scheduler that went on could promise VRAM twice"
        )
    tail.epoch, tail.seq = highest.epoch, highest.seq
    return tail


def _check_beginning(log: LogReader, state: State) -> None:
    if state.last_id != "0-0" or not log.trimmed():
        return
    first = next(iter(log.entries()), None)
    if first is not None and read_type(first.fields) is not None and _stamp(first).seq > 1:
        raise LogDamaged("the beginning of the log is gone and no snapshot of this core version stands in for it")


def _peek(entry: Entry, highest: Stamp, sessions: list[str]) -> Stamp:
    """What a new leader must know of an undecided entry before it decides it."""
    type_name = read_type(entry.fields)
    stamp = _stamp(entry)
    revoked_by_scheduler = type_name == b"LeaseRevoked" and stamp.epoch == highest.epoch
    if type_name is not None and (is_stamped(type_name) or revoked_by_scheduler) and stamp.seq == highest.seq + 1:
        return stamp if stamp.epoch >= highest.epoch else highest
    if type_name == b"LeaseRequested":
        event = read_event(entry.fields)
        if isinstance(event, LeaseRequested) and event.session is not None:
            sessions.append(session_member(event.service, event.session))
    return highest


def _stamp(entry: Entry) -> Stamp:
    return read_stamp(read_data(entry.fields)) if read_type(entry.fields) is not None else Stamp()


def _last_cause(log: LogReader) -> str:
    """The last input that was decided, from the log alone: for when the scheduler's hash was deleted."""
    last = "0-0"
    for entry in log.entries():
        type_name = read_type(entry.fields)
        if type_name is not None and is_decision(type_name):
            cause = msgspec.json.decode(read_data(entry.fields), type=_Cause).cause
            last = max(last, cause, key=parse_id)
    return last


def _forged_ids(log: LogReader, after: str) -> frozenset[str]:
    """The entries that the log itself rejects as forged."""
    ids = set()
    for entry in log.entries(after=after):
        if read_type(entry.fields) == b"EventRejected":
            event = read_event(entry.fields)
            if isinstance(event, EventRejected) and event.reason == "forged":
                ids.add(event.event_id)
    return frozenset(ids)


class _Cause(msgspec.Struct):
    cause: str = "0-0"
