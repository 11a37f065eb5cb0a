"""Following a log through reigns of other rules, up to where ours begin.

Which input such a reign had decided when it ended only its decisions say, and the `SchedulerElected` behind it. So an
input waits here until one of them shows that it was decided; what was not is for our rules to decide.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from msgspec import Struct

from gpuboss.core.adoption import CannotAdopt, adopt_decision, adopt_input, forget_plans
from gpuboss.core.checkpoints import Checkpoints
from gpuboss.core.divergence import Divergence
from gpuboss.core.door import (
    Refusal,
    is_decision,
    is_stamped,
    read_data,
    read_decision,
    read_event,
    read_stamp,
    read_type,
)
from gpuboss.core.machine import CORE_VERSION, entry_ms, follows, take_stamp
from gpuboss.core.state import State
from gpuboss.core.stream_ids import is_id, is_later, parse_id
from gpuboss.events import Decision, Event, SchedulerElected, SnapshotTaken, Stamp


class NewerCore(Exception):
    """From here on the rules of a newer core decide, which these do not know."""

    def __init__(self, core: int) -> None:
        super().__init__(core)
        self.core = core


class Unread(Struct, frozen=True, gc=False):
    """An input that nobody is known to have decided, and the stamp that was counted last before it."""

    entry_id: str
    fields: Sequence[bytes]
    before: Stamp
    by_scheduler: bool = False
    is_forged: bool = False


class Takeover:
    """The part of a log that other rules decided, or of which it is not known yet who did."""

    def __init__(self, state: State, checkpoints: Checkpoints, is_strangers: Callable[[str], bool]) -> None:
        """`is_strangers`: whether an entry that does not carry the next number is, or may still be, forged."""
        self.decisions = 0
        self._state = state
        self._checkpoints = checkpoints
        self._is_strangers = is_strangers
        self._undecided: deque[Unread] = deque()
        self._began_at = parse_id(state.last_id)
        self._cause: tuple[str, Event | None] = ("", None)  # the last input that was adopted

    def feed(self, entry_id: str, fields: Sequence[bytes], found: list[Divergence]) -> list[Unread]:
        """Take the next entry. Returns what is for our own rules, as soon as it is known: with the beginning of a
        reign of theirs that is all that was not decided before. Raises `NewerCore`."""
        state, type_name = self._state, read_type(fields)
        if state.core > CORE_VERSION:
            raise NewerCore(state.core)
        before = Stamp(state.epoch, state.seq)
        stamped = type_name is not None and (is_stamped(type_name) or type_name == b"LeaseRevoked")
        stamp = read_stamp(read_data(fields)) if stamped else None
        if type_name is None or stamp is None:
            self._undecided.append(Unread(entry_id, fields, before))
            return []
        if not follows(state, type_name, stamp):
            if not is_stamped(type_name) or self._is_strangers(entry_id):
                self._undecided.append(Unread(entry_id, fields, before, is_forged=is_stamped(type_name)))
                return []
            expected = f"expected {state.epoch}/{state.seq + 1} of its epoch and seq"
            problem = f"entries of the scheduler are missing before it: {expected}, found {stamp.epoch}/{stamp.seq}"
            found.append(Divergence(entry_id, problem))
            state.seq = stamp.seq - 1
            before = Stamp(state.epoch, state.seq)
        decided = is_decision(type_name)
        event = read_decision(type_name, read_data(fields)) if decided else read_event(fields)
        if isinstance(event, SchedulerElected) and event.core >= CORE_VERSION:
            return [*self._end(event), Unread(entry_id, fields, before)]
        take_stamp(state, entry_id, stamp)
        if decided:
            self._decide(entry_id, event, found)
            return []
        if isinstance(event, SnapshotTaken):
            self.adopt_through(event.through)
            differs = self._checkpoints.compare(entry_id, fields, state)
            found += [] if differs is None else [differs]
        self._undecided.append(Unread(entry_id, fields, before, by_scheduler=True))
        if isinstance(event, SchedulerElected):
            state.core = event.core
        return []

    def adopt_through(self, entry_id: str) -> None:
        """All inputs up to this entry were decided."""
        through = parse_id(entry_id)
        while self._undecided and parse_id(self._undecided[0].entry_id) <= through:
            self._adopt(self._undecided.popleft())

    def rest(self) -> list[Unread]:
        """What no rules have decided yet, taken out of here."""
        rest = list(self._undecided)
        self._undecided.clear()
        return rest

    def _end(self, event: SchedulerElected) -> list[Unread]:
        if event.core > CORE_VERSION:
            raise NewerCore(event.core)
        if self._state.core:
            self.adopt_through(event.cursor or self._cause[0] or "0-0")
            forget_plans(self._state)
        return self.rest()

    def _adopt(self, each: Unread) -> None:
        state, last_id = self._state, self._state.last_id
        self._checkpoints.is_derived = False
        state.take_input(each.entry_id, each.fields)
        self._checkpoints.note(each.entry_id, each.fields, state.inputs)
        state.advance(entry_ms(each.entry_id))
        event = None if each.is_forged else read_event(each.fields)
        event = None if isinstance(event, Refusal) else event
        self._cause = each.entry_id, event
        if event is not None:
            adopt_input(state, each.entry_id, event, by_scheduler=each.by_scheduler)
        if is_later(last_id, state.last_id):
            state.last_id = last_id  # decisions that stand behind it were counted already

    def _decide(self, entry_id: str, event: Event | Refusal | None, found: list[Divergence]) -> None:
        self.decisions += 1
        cause = event.cause if isinstance(event, Decision) else ""
        if not isinstance(event, Decision) or not is_id(cause):
            found.append(Divergence(entry_id, "it cannot be read"))
            return
        if parse_id(cause) <= self._began_at:
            return  # it is in the state from which this began
        self.adopt_through(cause)
        try:
            adopt_decision(self._state, self._cause[1] if self._cause[0] == cause else None, event)
        except CannotAdopt as trouble:
            found.append(Divergence(entry_id, f"it cannot be taken over from core {self._state.core}: {trouble}"))
