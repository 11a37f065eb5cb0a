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

    def __init__(self, state: State, forged: Callable[[], frozenset[str]]) -> None:
        """`state`: what the log meant before the first entry fed. `forged`: gives the ids that the log itself
        rejects as forged; called once, and only if something carries a number that the scheduler would not give."""
        self.state = state
        self.events = 0
        self.decisions = 0
        self.divergences: list[Divergence] = []
        self._forged = functools.cache(forged)
        self._derived: dict[str, deque[Decision]] = {}  # by cause, in log order: not yet found in the log
        self._decided_through = (0, 0)  # the last cause of which a decision was found

    def feed(self, entry_id: str, fields: Sequence[bytes]) -> None:
        """Take the next entry of the log."""
        type_name = read_type(fields)
        if type_name is not None and is_stamped(type_name):
            data = read_data(fields)
            stamp = read_stamp(data)
            recorded = _read_decision(type_name, data) if is_decision(type_name) else None
            genuine = follows(self.state, type_name, stamp) or self._out_of_step(entry_id, stamp, recorded, fields)
            if genuine and is_decision(type_name):
                self.decisions += 1
                take_stamp(self.state, entry_id, stamp)
                self._pair(entry_id, recorded, fields)
                return
        self.events += 1
        turn = step(self.state, entry_id, fields)
        if turn.told:
            derived = deque([told.decision for told in turn.told if told.is_new])
            if derived:
                self._derived[entry_id] = derived

    def finish(self, decided_through: str | None = None) -> int:
        """Name the decisions that are missing. `decided_through`: the scheduler's cursor, where it is known;
        otherwise an input counts as decided if the log holds a decision of it or of a later one.

        Returns how many inputs at the end have no decisions yet, which is no divergence.
        """
        last = self._decided_through if decided_through is None else parse_id(decided_through)
        undecided = 0
        for cause, derived in self._derived.items():
            if parse_id(cause) > last:
                undecided += 1
                continue
            for decision in derived:
                self._diverge(cause, "a decision that follows from it is missing in the log", None, decision)
        return undecided

    def _out_of_step(self, entry_id: str, stamp: Stamp, recorded: Decision | None, fields: Sequence[bytes]) -> bool:
        """An entry with a number that is not the next: whether the scheduler wrote it all the same, so that the
        log was tampered with, and not the entry forged."""
        state = self.state
        expected = f"expected {state.epoch}/{state.seq + 1}, found {stamp.epoch}/{stamp.seq}"
        if entry_id in self._forged():
            return False
        if stamp.epoch >= state.epoch and stamp.seq > state.seq + 1:
            self._diverge(entry_id, f"entries of the scheduler are missing before it: {expected}", _raw(fields), None)
            # Count on from here, so that one lost entry is one divergence, and not all that follow.
            state.seq = stamp.seq - 1
            return True
        if recorded is not None and recorded.cause in self._derived:
            self._diverge(entry_id, f"it stands in the wrong place: {expected}", _raw(fields), None)
            return True
        return False

    def _pair(self, entry_id: str, recorded: Decision | None, fields: Sequence[bytes]) -> None:
        if recorded is None:
            self._diverge(entry_id, "it cannot be read", _raw(fields), None)
            return
        cause = recorded.cause
        derived = self._derived.get(cause)
        if derived is None:
            self._diverge(entry_id, f"nothing more was to be decided for {cause}", recorded, None)
            return
        expected = derived.popleft()
        if not derived:
            del self._derived[cause]
        self._decided_through = max(self._decided_through, parse_id(cause))
        if recorded != expected and not _differ_for_people_only(recorded, expected):
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


def _differ_for_people_only(recorded: Decision, derived: Decision) -> bool:
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
