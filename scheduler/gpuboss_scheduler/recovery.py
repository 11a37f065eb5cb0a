"""Starting from the log: the state at the cursor, from the snapshot and what came after it, and the tail behind it.

Decisions that were recorded are derived again on the way; a scheduler that would have decided otherwise does not
lead: it could promise what is promised already.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from gpuboss.core.addresses import session_member
from gpuboss.core.adoption import forget_plans
from gpuboss.core.door import is_decision, is_stamped, read_data, read_event, read_stamp, read_type
from gpuboss.core.machine import CORE_VERSION, entry_ms, follows
from gpuboss.core.state import State
from gpuboss.core.stream_ids import is_id, parse_id
from gpuboss.core.takeover import NewerCore
from gpuboss.core.verification import Verifier
from gpuboss.events import (
    ClockJumped,
    Decision,
    EventRejected,
    LeaseRequested,
    LeaseRevoked,
    SchedulerElected,
    SnapshotTaken,
    Stamp,
)
from gpuboss.log import Entry, LogDamaged, LogReader, NewerLog
from gpuboss_scheduler.known_log import Known
from gpuboss_scheduler.talk import say

FIELDS_MOVED = 1_000  # of an entry; what has more is no event wherever it stands


class Overtaken(Exception):
    """The log became another one while it was read: somebody leads after all, or another server answers."""


class SnapshotAhead(Exception):
    """The snapshot stands behind the end of the log: entries are gone that nobody remembers but it. `known`: as it
    knows the log."""

    def __init__(self, known: Known) -> None:
        super().__init__(f"the snapshot stands at {known.last_id}, behind the last entry of the log")
        self.known = known


class Recovered(msgspec.Struct):
    """What the log says: the state at the cursor, the highest epoch in the whole log and the seq of the last that stays
    in it, whose sessions the undecided requests behind the cursor belong to, and, of a log that was lost, everything
    undecided: what has no fields any more only goes, and promised fences up to `fence`."""

    state: State
    cursor: str
    epoch: int
    seq: int
    tail_sessions: list[str]
    undecided: list[Entry]
    snapshot_is_ahead: bool = False  # of a log of which entries are gone
    read_through: str = ""  # the last entry that was read; empty if there is none
    deleted_through: str = "0-0"  # the highest entry that was deleted by its id before the log was read
    fence: int = 0
    jump_told_ms: int = 0  # where the server's clock had jumped to, as its undecided tail says

    @property
    def is_of_other_rules(self) -> bool:
        """Whether an older core decided what was decided last."""
        return self.state.core not in (0, CORE_VERSION)


def recover(
    log: LogReader, cursor: str, *, is_lost: bool = False, is_stale: Callable[[], bool] = lambda: False
) -> Recovered:
    """Read the log. `cursor`: the last entry decided, or empty if Redis does not say. `is_lost`: entries of the log
    are known to be gone, so that neither the cursor nor a snapshot need to belong to what is left. `is_stale`: asked
    where the log seems damaged: whether the cursor is not what Redis says any more.

    Raises `LogDamaged` if the decisions in the log do not follow from it, `NewerLog` if a newer core decides it,
    `Overtaken`, and, where nothing is known to be gone, `SnapshotAhead`.
    """
    try:
        return _recover(log, cursor, is_lost)
    except LogDamaged:
        if is_stale():
            raise Overtaken from None
        raise


def _recover(log: LogReader, cursor: str, is_lost: bool) -> Recovered:
    deleted_id = log.gone().deleted_through
    state = _snapshot_or_nothing(log)
    last_id = log.last_id() or "0-0"
    # Behind the cursor it may well stand: entries that lead to nothing are folded, and move no cursor.
    is_ahead = parse_id(state.last_id) > parse_id(last_id)
    if is_lost:
        cursor = ""
        state = State() if is_ahead else state
    elif is_ahead:
        raise SnapshotAhead(Known(state.incarnation, state.epoch, state.last_id, state.fence))
    if not cursor:
        cursor = _last_cause(log, state)
    if not is_lost:
        _check_beginning(log, state)
    verifier = Verifier(state, lambda: _forged_ids(log, state.last_id), cursor)
    tail = Recovered(state, cursor, 0, 0, [], [], is_ahead, "" if last_id == "0-0" else last_id, deleted_id)
    highest, cursor_id = _last(state), parse_id(cursor)
    whole, through = True, state.last_id  # whether, and through which entry, everything up to here was decided
    leftovers = _Leftovers()
    for entry in log.entries(after=state.last_id):
        tail.read_through = entry.id
        whole = whole and (parse_id(entry.id) <= cursor_id or _is_next_decision(entry, state))
        if whole:
            through = entry.id
            _feed(verifier, entry)
            highest = _last(state)
        else:
            before, highest = highest, _peek(entry, highest, tail.tail_sessions)
            is_ours = highest is not before
            leftovers.add(entry, highest if is_ours else None)
            if is_ours and not is_lost and read_type(entry.fields) == b"ClockJumped":
                tail.jump_told_ms = _jumped_to_ms(entry)
            if is_ours and _is_decision(entry) and parse_id(_cause(entry)) <= cursor_id:
                _compare(verifier, entry, before)
    if tail.is_of_other_rules:
        _take_over(verifier, cursor, through)
    _check_decisions(verifier)
    tail.epoch, tail.seq = highest.epoch, highest.seq
    if is_lost:
        tail.cursor = log.last_id(through=cursor) or "0-0"  # the same place, at an entry that others will not miss
        tail.undecided, tail.fence = leftovers.entries, leftovers.fence
        tail.seq -= leftovers.facts
    return tail


class _Leftovers:
    """What stands undecided in a log of which entries are gone, and is not to be decided as if none were: what others
    wrote moves behind the election that says so, and what a scheduler found goes: the next one finds it anew. Both only
    from behind the last decision on, which counts them all."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.facts = 0
        self.fence = 0
        self._is_fact: list[bool] = []

    def add(self, entry: Entry, stamp: Stamp | None) -> None:
        """One more. `stamp`: where a scheduler wrote it."""
        if stamp is None:
            if len(entry.fields) <= FIELDS_MOVED:
                self._append(entry, is_fact=False)
        elif _is_decision(entry):
            self.entries = [each for each, is_fact in zip(self.entries, self._is_fact, strict=True) if not is_fact]
            self._is_fact, self.facts = [False] * len(self.entries), 0
        else:
            event = read_event(entry.fields)
            if isinstance(event, SchedulerElected) and event.lost is not None:
                self.fence = max(self.fence, event.lost.fence)
            self._append(entry if isinstance(event, LeaseRevoked) else Entry(entry.id, []), is_fact=True)
            self.facts += 1

    def _append(self, entry: Entry, *, is_fact: bool) -> None:
        self.entries.append(entry)
        self._is_fact.append(is_fact)


def _feed(verifier: Verifier, entry: Entry) -> None:
    try:
        verifier.feed(entry.id, entry.fields)
    except NewerCore as newer:
        raise NewerLog(newer.core) from None


def _check_decisions(verifier: Verifier) -> None:
    verifier.finish()
    if verifier.divergences:
        first = verifier.divergences[0]
        raise LogDamaged(
            f"the log differs from what its rules give, first at entry {first.entry_id}: {first.problem}; "
            "`gpuboss replay` shows it all; a scheduler that went on could promise VRAM twice"
        )


def _take_over(verifier: Verifier, cursor: str, through: str) -> None:
    """The log so far was decided by other rules, as far as `cursor`; everything through `through` was applied."""
    state = verifier.state
    if state.core > CORE_VERSION:
        raise NewerLog(state.core)
    verifier.takeover.adopt_through(cursor)
    forget_plans(state)
    state.last_id = through


def _compare(verifier: Verifier, entry: Entry, before: Stamp) -> None:
    """Verify a decision that stands behind the cursor and follows from what is before it, as those of the last commit
    do. The state stays at the cursor: what stands between is not decided yet, or is being decided right now."""
    state = verifier.state
    at = state.last_id, state.epoch, state.seq
    state.epoch, state.seq = before.epoch, before.seq
    verifier.feed(entry.id, entry.fields)
    state.last_id, state.epoch, state.seq = at


def _snapshot_or_nothing(log: LogReader) -> State:
    """The snapshot's state. A damaged one is no loss while the log is whole."""
    try:
        return log.snapshot() or State()
    except NewerLog:
        raise
    except LogDamaged as damaged:
        if log.gone().any:
            raise
        say(f"{damaged}; the log is whole: it is read from its beginning")
        return State()


def _check_beginning(log: LogReader, state: State) -> None:
    if state.last_id != "0-0" or not log.gone().any:
        return
    first = next(iter(log.entries()), None)
    if first is not None and read_type(first.fields) is not None and _stamp(first).seq > 1:
        raise LogDamaged("the beginning of the log is gone and no snapshot of this core version stands in for it")


def _peek(entry: Entry, highest: Stamp, sessions: list[str]) -> Stamp:
    """What a new leader must know of an undecided entry before it decides it."""
    type_name = read_type(entry.fields)
    stamp = _stamp(entry)
    if type_name is not None and _is_next(type_name, stamp, highest):
        event = read_event(entry.fields)
        if isinstance(event, SchedulerElected) and event.core > CORE_VERSION:
            raise NewerLog(event.core)
        return stamp
    if type_name == b"LeaseRequested":
        event = read_event(entry.fields)
        if isinstance(event, LeaseRequested) and event.session is not None:
            sessions.append(session_member(event.service, event.session))
    return highest


def _jumped_to_ms(entry: Entry) -> int:
    event = read_event(entry.fields)
    return entry_ms(event.from_id) if isinstance(event, ClockJumped) else 0


def _is_next_decision(entry: Entry, state: State) -> bool:
    """Whether this is what the last commit wrote, right behind the entries that it decided."""
    type_name = read_type(entry.fields)
    return type_name is not None and is_decision(type_name) and follows(state, type_name, _stamp(entry))


def _last(state: State) -> Stamp:
    return Stamp(state.epoch, state.seq)


def _is_next(type_name: bytes, stamp: Stamp, last: Stamp) -> bool:
    """Whether the scheduler wrote this next, `last` being the numbers of what it wrote before."""
    return (is_stamped(type_name) or type_name == b"LeaseRevoked") and follows(last, type_name, stamp)


def _is_decision(entry: Entry) -> bool:
    type_name = read_type(entry.fields)
    return type_name is not None and is_decision(type_name)


def _stamp(entry: Entry) -> Stamp:
    return read_stamp(read_data(entry.fields)) if read_type(entry.fields) is not None else Stamp()


def _last_cause(log: LogReader, state: State) -> str:
    """The last input that was decided, from the log alone: for when the scheduler's hash was deleted. What a snapshot
    stands for is decided too, also where it led to nothing.

    Only what carries the scheduler's numbers counts: anybody can append what looks like a decision.
    """
    last = elected = state.last_id
    highest = _last(state)
    for entry in log.entries(after=state.last_id):
        before, highest = highest, _peek(entry, highest, [])
        if highest is before:
            continue
        if read_type(entry.fields) == b"SchedulerElected":
            elected = entry.id
        elif _is_decision(entry):
            last = max(last, elected, key=parse_id)  # a reign's first commit decides what stands before it, and itself
        last = max(last, _cause(entry), key=parse_id)
    return last


def _cause(entry: Entry) -> str:
    """What a decision says that it follows from, or a snapshot that it stands for; the beginning of the log if the
    entry does not say so."""
    event = read_event(entry.fields)
    if isinstance(event, SnapshotTaken) and parse_id(event.through) < parse_id(entry.id):
        return event.through
    return event.cause if isinstance(event, Decision) and is_id(event.cause) else "0-0"


def _forged_ids(log: LogReader, after: str) -> frozenset[str]:
    """The entries that the log itself rejects as forged."""
    ids = set()
    for entry in log.entries(after=after):
        if read_type(entry.fields) == b"EventRejected":
            event = read_event(entry.fields)
            if isinstance(event, EventRejected) and event.reason == "forged":
                ids.add(event.event_id)
    return frozenset(ids)
