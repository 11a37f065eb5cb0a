"""Deriving every decision of a log again and comparing it with what the log holds.

Inputs are followed in the order of the log; decisions are paired with the entry that caused them, never by their
position: an input that arrived between the scheduler's read and its commit stands before those decisions.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from gpuboss import events
from gpuboss.core.checkpoints import Checkpoints
from gpuboss.core.divergence import Divergence
from gpuboss.core.door import is_decision, is_stamped, read_data, read_decision, read_stamp, read_type
from gpuboss.core.machine import CORE_VERSION, follows, step, take_stamp
from gpuboss.core.state import State
from gpuboss.core.stream_ids import is_id, is_later, parse_id
from gpuboss.core.takeover import Takeover
from gpuboss.events import Decision, Event, EventRejected, Stamp

_NAMES: dict[type[Event], bytes] = {cls: name.encode() for name, cls in events.DECISIONS.items()}
_encode = msgspec.json.Encoder().encode


class Verifier:
    """Folds a log and collects where it diverges. Feed it the entries in order, then call `finish`."""

    def __init__(
        self,
        state: State,
        forged: Callable[[], frozenset[str]],
        cursor: str | None = None,
        last_cause: Callable[[], str] | None = None,
    ) -> None:
        """`state`: what the log meant before the first entry fed. `cursor`: the last entry that the scheduler has
        decided, where that is known; where not even `last_cause` is given, all counts as decided.

        Two look ahead, each called once at most, and only if something carries a number that the scheduler would
        not give: `forged`, for the ids that the log itself rejects as forged, and, where the cursor is not known,
        `last_cause`, for the last entry of which the log holds a decision.
        """
        self.state = state
        self.events = 0  # all entries fed, recorded decisions among them
        self.decisions = 0
        self.divergences: list[Divergence] = []
        self.checkpoints = Checkpoints(state)
        self.takeover = Takeover(state, self.checkpoints, lambda entry_id: self._is_strangers(entry_id, None))
        self._forged = functools.cache(forged)
        self._last_cause = None if last_cause is None else functools.cache(last_cause)
        self._cursor = None if cursor is None else parse_id(cursor)
        self._derived: dict[str, list[Decision]] = {}  # by cause: not yet found in the log
        self._causes: deque[str] = deque()  # the keys of `_derived` in log order, and some that are gone from it
        self._in_order = True  # whether all decisions found so far were those that were due
        self._began_at = parse_id(state.last_id)
        self._last_id = state.last_id
        self._decided_through = "0-0"  # the last cause of which a decision was found
        self._resume_at: int | None = None  # the number that goes on from before an entry that was out of step

    def feed(self, entry_id: str, fields: Sequence[bytes]) -> None:
        """Take the next entry of the log."""
        self.events += 1
        if not is_later(entry_id, self._last_id):
            self._diverge(entry_id, "it is repeated, or stands behind a later entry", _raw(fields), None)
            return
        self._last_id = entry_id
        if self.state.core != CORE_VERSION:
            for each in self.takeover.feed(entry_id, fields, self.divergences):
                self._apply(each.entry_id, each.fields, after=each.before)
            return
        type_name = read_type(fields)
        if type_name is None or not is_stamped(type_name):
            self._apply(entry_id, fields)
        elif is_decision(type_name) and self._is_expected(fields):
            self.decisions += 1
            self.state.last_id = entry_id
            self.state.seq += 1
            self._resume_at = None
        else:
            self._look_closely(entry_id, type_name, fields)

    def _look_closely(self, entry_id: str, type_name: bytes, fields: Sequence[bytes]) -> None:
        data = read_data(fields)
        stamp = read_stamp(data)
        recorded = read_decision(type_name, data) if is_decision(type_name) else None
        counted: Stamp | None = stamp
        if follows(self.state, type_name, stamp):
            self._resume_at = None
        else:
            counted = self._count_out_of_step(entry_id, type_name, stamp, recorded, fields)
        if type_name == b"SnapshotTaken" and (counted is not None or not self._is_strangers(entry_id, None)):
            found = self.checkpoints.compare(entry_id, fields, self.state)
            if found is not None and (found.between is not None or not self.divergences):
                self.divergences.append(found)  # that the state is another is no wonder after others
        if counted is None or not is_decision(type_name):
            # A decision that is out of step was none of the inputs, whatever it is taken for here.
            is_input = not is_decision(type_name) or self._is_strangers(entry_id, recorded)
            self._apply(entry_id, fields, is_input=is_input)
            return
        self.decisions += 1
        take_stamp(self.state, entry_id, counted)
        self._pair(entry_id, recorded, fields, data)

    def finish(self, *, cut: bool = False) -> int:
        """Name the decisions that are missing. `cut`: the log goes on behind the last entry fed.

        An input counts as decided if the cursor says so, or if the log holds a decision of a later one. Returns
        how many inputs at the end have not all their decisions yet, which is no divergence.
        """
        rest = self.takeover.rest()
        undecided = len(rest) if self.state.core else 0
        for each in () if self.state.core else rest:  # no scheduler ever led
            self._apply(each.entry_id, each.fields, after=each.before)
        decided_through = parse_id(self._decided_through)
        for cause, derived in self._derived.items():
            at = parse_id(cause)
            if at < decided_through or (not cut and self._cursor is not None and at <= self._cursor):
                for decision in derived:
                    self._diverge(cause, "a decision that follows from it is missing in the log", None, decision)
            else:
                undecided += 1
        return undecided

    def _is_expected(self, fields: Sequence[bytes]) -> bool:
        """Whether this is, byte for byte, the decision that is due next; then it is paired. Most decisions are,
        and need not be decoded to be verified. All else is looked at closely."""
        epoch = self.state.epoch
        cause = _first_cause(self._causes, self._derived)
        if cause is None or epoch == 0 or not self._in_order:
            return False
        due = self._derived[cause]
        data = b'%s,"epoch":%d,"seq":%d}' % (_encode(due[0])[:-1], epoch, self.state.seq + 1)
        if fields != [b"type", _NAMES[type(due[0])], b"data", data]:
            return False
        if len(due) == 1:
            del self._derived[cause]
        else:
            del due[0]
        self._decided_through = cause
        return True

    def _apply(
        self, entry_id: str, fields: Sequence[bytes], *, is_input: bool = True, after: Stamp | None = None
    ) -> None:
        """`after`: the stamp that counted before it, where what stands behind it was counted already."""
        if after is not None:
            self.state.epoch, self.state.seq = after.epoch, after.seq
        before = self.state.inputs
        told = step(self.state, entry_id, fields).told
        if is_input:
            self.checkpoints.note(entry_id, fields, self.state.inputs)
        else:
            self.state.inputs = before
        if told:
            derived = [each.decision for each in told if each.is_new]
            if derived:
                self._derived[entry_id] = derived
                self._causes.append(entry_id)

    def _count_out_of_step(
        self, entry_id: str, type_name: bytes, stamp: Stamp, recorded: Decision | None, fields: Sequence[bytes]
    ) -> Stamp | None:
        """An entry with a number that is not the next: what to count it as if the scheduler wrote it all the same,
        so that the log was tampered with; None if it is forged, or if nobody has looked at it yet."""
        state = self.state
        if entry_id in self._forged():
            return None
        expected = state.seq + 1
        problem = f"expected {state.epoch}/{expected} of its epoch and seq, found {stamp.epoch}/{stamp.seq}"
        is_answer = recorded is not None and recorded.cause in self._derived
        goes_on = stamp.epoch > state.epoch or (stamp.epoch == state.epoch and type_name != b"SchedulerElected")
        if goes_on and stamp.seq == self._resume_at:
            self._align(stamp, type_name)
            return stamp
        if goes_on and stamp.seq > expected and (is_answer or not self._is_strangers(entry_id, recorded)):
            self._diverge(entry_id, f"entries of the scheduler are missing before it: {problem}", _raw(fields), None)
            # Count on from here, so that one lost entry is one divergence; or from before, if only this one is odd.
            self._align(stamp, type_name)
            return stamp
        if is_answer:
            self._diverge(
                entry_id, f"it stands in the wrong place, or its number was changed: {problem}", _raw(fields), None
            )
            self._resume_at = expected + 1
            return Stamp(state.epoch, expected if stamp.seq == expected else state.seq)
        return None

    def _align(self, stamp: Stamp, type_name: bytes) -> None:
        """Have the state expect this very stamp."""
        self._resume_at = None if stamp.seq == self._resume_at else self.state.seq + 2
        self.state.seq = stamp.seq - 1
        if type_name != b"SchedulerElected":
            self.state.epoch = stamp.epoch

    def _is_strangers(self, entry_id: str, recorded: Decision | None) -> bool:
        """Whether an entry with a number that is not the next is rejected as forged, or may still be, because the
        scheduler may not have looked at it yet."""
        if entry_id in self._forged():
            return True
        cursor = self._cursor
        if cursor is None and self._last_cause is not None:
            cursor = parse_id(self._last_cause())
        if cursor is None or parse_id(entry_id) <= cursor:
            return False
        # What claims to go on where the decisions found so far end was written by the scheduler.
        return recorded is None or not parse_id(self._decided_through) < _parse_or_zero(recorded.cause) <= cursor

    def _pair(self, entry_id: str, recorded: Decision | None, fields: Sequence[bytes], data: bytes) -> None:
        if recorded is None:
            self._diverge(entry_id, "it cannot be read", _raw(fields), None)
            return
        cause = recorded.cause
        derived = self._derived.get(cause)
        if derived is None:
            if (0, 0) < _parse_or_zero(cause) <= self._began_at:
                return  # derived before the snapshot was written, from which this verification began
            self._diverge(entry_id, f"nothing more was to be decided for {cause}", recorded, None)
            return
        self._in_order = self._in_order and cause == _first_cause(self._causes, self._derived)
        if not _agree(recorded, derived[0]) and any(_agree(recorded, each) for each in derived):
            while not _agree(recorded, derived[0]):
                self._diverge(entry_id, "a decision that comes before it is missing", None, derived.pop(0))
        expected = derived.pop(0)
        if not derived:
            del self._derived[cause]
        if parse_id(cause) < parse_id(self._decided_through):
            self._diverge(entry_id, "it stands behind a decision of a later entry", recorded, expected)
        else:
            self._decided_through = cause
        if not _agree(recorded, expected):
            self._diverge(entry_id, "another decision was derived", recorded, expected)
        elif added := _added(data, expected):
            found = {"type": type(recorded).__name__, "data": msgspec.to_builtins(recorded) | added}
            names = ", ".join(sorted(added))
            self._diverge(entry_id, f"it has fields that no scheduler writes: {names[:200]}", found, expected)

    def _diverge(
        self,
        entry_id: str,
        problem: str,
        recorded: Decision | dict[str, Any] | None,
        derived: Decision | None,
    ) -> None:
        found = _shown(recorded) if isinstance(recorded, Decision) else recorded
        self.divergences.append(Divergence(entry_id, problem, found, None if derived is None else _shown(derived)))


def _first_cause(causes: deque[str], derived: dict[str, list[Decision]]) -> str | None:
    """The first entry that leads to decisions which were not found yet."""
    while causes and causes[0] not in derived:
        causes.popleft()
    return causes[0] if causes else None


def _parse_or_zero(text: str) -> tuple[int, int]:
    """The same for a text that need not be one."""
    return parse_id(text) if is_id(text) else (0, 0)


def _agree(recorded: Decision, derived: Decision) -> bool:
    """Whether they say the same; the detail of a rejection is for people, and does not count."""
    if recorded == derived:
        return True
    if not isinstance(recorded, EventRejected) or not isinstance(derived, EventRejected):
        return False
    return replace(recorded, detail="") == replace(derived, detail="")


def _added(data: bytes, derived: Decision) -> dict[str, Any]:
    """The fields that a recorded decision has beyond those of the derived one and its stamp."""
    try:
        recorded: dict[str, Any] = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return {"(unreadable)": str(error)}  # what is not looked for is skipped when a decision is read, whatever it is
    known = {*msgspec.json.decode(_encode(derived)), "epoch", "seq"}
    return {name: value for name, value in recorded.items() if name not in known}


def _shown(decision: Decision) -> dict[str, Any]:
    return {"type": type(decision).__name__, "data": msgspec.to_builtins(decision)}


def _raw(fields: Sequence[bytes]) -> dict[str, Any]:
    return {"fields": [field[:512].decode("utf-8", "backslashreplace") for field in fields[:8]]}
