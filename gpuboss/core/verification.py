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
from msgspec import Struct
from msgspec.structs import replace

from gpuboss import events
from gpuboss.core.door import is_decision, is_stamped, read_data, read_stamp, read_type
from gpuboss.core.machine import follows, step, take_stamp
from gpuboss.core.state import State
from gpuboss.events import Decision, EventRejected, Stamp

_DECODERS: dict[bytes, msgspec.json.Decoder[Decision]] = {
    name.encode(): msgspec.json.Decoder(cls) for name, cls in events.DECISIONS.items()
}


class Divergence(Struct, frozen=True):
    """One place where the log and the rules differ. `recorded` or `derived` is None where there is nothing."""

    entry_id: str  # the recorded entry, or the input whose decision is missing
    problem: str
    recorded: dict[str, Any] | None = None
    derived: dict[str, Any] | None = None


class Verifier:
    """Folds a log and collects where it diverges. Feed it the entries in order, then call `finish`."""

    def __init__(self, state: State, forged: Callable[[], frozenset[str]], cursor: str | None = None) -> None:
        """`state`: what the log meant before the first entry fed. `forged`: gives the ids that the log itself
        rejects as forged; called once, and only if something carries a number that the scheduler would not give.
        `cursor`: the last entry that the scheduler has decided, where that is known."""
        self.state = state
        self.events = 0  # all entries fed, recorded decisions among them
        self.decisions = 0
        self.divergences: list[Divergence] = []
        self._forged = functools.cache(forged)
        self._cursor = None if cursor is None else parse_id(cursor)
        self._derived: dict[str, deque[Decision]] = {}  # by cause, in log order: not yet found in the log
        self._last_id = parse_id(state.last_id)
        self._decided_through = (0, 0)  # the last cause of which a decision was found
        self._resume_at: int | None = None  # the number that goes on from before an entry that was out of step

    def feed(self, entry_id: str, fields: Sequence[bytes]) -> None:
        """Take the next entry of the log."""
        self.events += 1
        at = parse_id(entry_id)
        if at <= self._last_id:
            self._diverge(entry_id, "it is repeated, or stands behind a later entry", _raw(fields), None)
            return
        self._last_id = at
        type_name = read_type(fields)
        if type_name is None or not is_stamped(type_name):
            self._apply(entry_id, fields)
            return
        data = read_data(fields)
        stamp = read_stamp(data)
        recorded = _read_decision(type_name, data) if is_decision(type_name) else None
        counted: Stamp | None = stamp
        if follows(self.state, type_name, stamp):
            self._resume_at = None
        else:
            counted = self._count_out_of_step(entry_id, type_name, stamp, recorded, fields)
        if counted is None or not is_decision(type_name):
            self._apply(entry_id, fields)
            return
        self.decisions += 1
        take_stamp(self.state, entry_id, counted)
        self._pair(entry_id, recorded, fields)

    def finish(self, *, cut: bool = False) -> int:
        """Name the decisions that are missing. `cut`: the log goes on behind the last entry fed.

        An input counts as decided if the cursor says so, or if the log holds a decision of a later one. Returns
        how many inputs at the end have not all their decisions yet, which is no divergence.
        """
        undecided = 0
        for cause, derived in self._derived.items():
            at = parse_id(cause)
            if at < self._decided_through or (not cut and self._cursor is not None and at <= self._cursor):
                for decision in derived:
                    self._diverge(cause, "a decision that follows from it is missing in the log", None, decision)
            else:
                undecided += 1
        return undecided

    def _apply(self, entry_id: str, fields: Sequence[bytes]) -> None:
        told = step(self.state, entry_id, fields).told
        if told:
            derived = deque([each.decision for each in told if each.is_new])
            if derived:
                self._derived[entry_id] = derived

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
        if goes_on and stamp.seq > expected and (is_answer or not self._is_undecided(entry_id)):
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

    def _is_undecided(self, entry_id: str) -> bool:
        return self._cursor is not None and parse_id(entry_id) > self._cursor

    def _pair(self, entry_id: str, recorded: Decision | None, fields: Sequence[bytes]) -> None:
        if recorded is None:
            self._diverge(entry_id, "it cannot be read", _raw(fields), None)
            return
        cause = recorded.cause
        derived = self._derived.get(cause)
        if derived is None:
            self._diverge(entry_id, f"nothing more was to be decided for {cause}", recorded, None)
            return
        if not _agree(recorded, derived[0]) and any(_agree(recorded, each) for each in derived):
            while not _agree(recorded, derived[0]):
                self._diverge(entry_id, "a decision that comes before it is missing", None, derived.popleft())
        expected = derived.popleft()
        if not derived:
            del self._derived[cause]
        at = parse_id(cause)
        if at < self._decided_through:
            self._diverge(entry_id, "it stands behind a decision of a later entry", recorded, expected)
        self._decided_through = max(self._decided_through, at)
        if not _agree(recorded, expected):
            self._diverge(entry_id, "another decision was derived", recorded, expected)

    def _diverge(
        self,
        entry_id: str,
        problem: str,
        recorded: Decision | dict[str, Any] | None,
        derived: Decision | None,
    ) -> None:
        found = _shown(recorded) if isinstance(recorded, Decision) else recorded
        self.divergences.append(Divergence(entry_id, problem, found, None if derived is None else _shown(derived)))


def parse_id(entry_id: str) -> tuple[int, int]:
    """A stream id as a pair of numbers, which compare as Redis compares them."""
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number or 0)


def _agree(recorded: Decision, derived: Decision) -> bool:
    """Whether they say the same; the detail of a rejection is for people, and does not count."""
    if recorded == derived:
        return True
    if not isinstance(recorded, EventRejected) or not isinstance(derived, EventRejected):
        return False
    return replace(recorded, detail="") == replace(derived, detail="")


def _read_decision(type_name: bytes, data: bytes) -> Decision | None:
    try:
        return _DECODERS[type_name].decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _shown(decision: Decision) -> dict[str, Any]:
    return {"type": type(decision).__name__, "data": msgspec.to_builtins(decision)}


def _raw(fields: Sequence[bytes]) -> dict[str, Any]:
    return {"fields": [field[:512].decode("utf-8", "backslashreplace") for field in fields[:8]]}
