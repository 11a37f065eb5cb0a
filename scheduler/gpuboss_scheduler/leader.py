"""Leading: read a batch of the log, decide, commit; and between batches, what has to be done by the clock."""

from __future__ import annotations

from collections.abc import Callable

from gpuboss.core.machine import entry_ms, step
from gpuboss.core.state import State
from gpuboss.log import LogReader
from gpuboss_scheduler.chores import Chores
from gpuboss_scheduler.clock import LogClock
from gpuboss_scheduler.commit import Batch, Commit, Done, Shown, commit_script, read_answer
from gpuboss_scheduler.failpoints import failpoint
from gpuboss_scheduler.readback import Raw, Readback
from gpuboss_scheduler.reign import Reign
from gpuboss_scheduler.scripts import check
from gpuboss_scheduler.wire import Wire

FRESH_MS = 5  # how far the id of a decision may be behind the time at which it was written
BUSY = 16  # entries in one batch from which on reading ahead is worth its round trip
# Entries in one commit at most: so few that the server soon has something to do, so many that its price hardly counts.
PART = 64


class Leader:
    """One reign at work. `cursor` is the one in Redis; the state may be further: it has read our own decisions."""

    def __init__(
        self, wire: Wire, reign: Reign, state: State, shown: Shown, cursor: str, clock: LogClock, chores: Chores
    ) -> None:
        self._wire = wire
        self._reign = reign
        self._keys = reign.keys
        self._state = state
        self._cursor = cursor
        self._read_through = self._looked_at = state.last_id
        self._clock = clock
        self._chores = chores
        self._shown = shown
        self._readback = Readback()
        self._missing: list[str] = []  # leases whose row was found to be deleted
        self._jumped_at_ms: int | None = None  # the first entry since the last look that shows a jump of the clock

    def catch_up(self, through: str) -> None:
        """Decide the tail that the last leader left, and what this one has found, through `through`, in one commit:
        a grant to a holder that proves dead has ended when anybody hears of it."""
        tail = LogReader(self._reign.client, self._keys).entries(self._read_through, through)
        found = [(entry.id.encode(), entry.fields) for entry in tail]
        self._work_off(found, at_once=len(found))

    def lead(self, stopping: Callable[[], bool]) -> None:
        """Until told to stop. Raises `Deposed` when another scheduler leads, and redis' errors."""
        while not stopping():
            self._wire.ask(self._keys.events, self._read_through)
            if self._wire.answered(self._chores.wait_s()):
                self._work_off(self._wire.entries())
            self._chores.run_due()

    def _work_off(self, entries: list[Raw], at_once: int = PART) -> None:
        """Decide a batch and commit it; under load in parts of `at_once` entries, of which the next is decided and its
        commit written out while the server is busy with this one. That one expects the cursor that this one sets, so
        it cannot succeed if this one fails.

        Whatever else there is to do waits for the end of this: it must not see decisions that are not committed.
        """
        is_busy = len(entries) >= BUSY
        commit, rest = self._part(entries, at_once)
        while commit is not None:
            following = None
            if rest:
                self._wire.call(commit_script, commit)
                following, rest = self._part(rest, at_once, after=commit)
            elif is_busy and self._chores.wait_s() > 0:
                self._wire.ask(self._keys.events, self._read_through, wait=False)
                self._wire.call(commit_script, commit)
                entries = self._wire.entries()
                is_busy = len(entries) >= BUSY
                following, rest = self._part(entries, at_once, after=commit)
            else:
                self._wire.call(commit_script, commit, then_ask=self._keys.events)
            self._settle(commit, read_answer(check(self._wire.answer())))
            commit = following
        self._look_at_clock()
        if self._missing:
            self._chores.lease_facts.revoke(self._missing)
            self._missing.clear()

    def _part(self, entries: list[Raw], at_once: int, after: Commit | None = None) -> tuple[Commit | None, list[Raw]]:
        """The commit of the first part of a batch that leads to one, and the entries that are left."""
        commit = None
        while entries and commit is None:
            part, entries = entries[:at_once], entries[at_once:]
            commit = self._write_out(self._decide(part), after, is_last=not entries)
        return commit, entries

    def _decide(self, entries: list[Raw]) -> Batch:
        failpoint("batch-read")
        batch = Batch()
        for entry_id, fields in self._readback.others(entries, self._state):
            batch.add(step(self._state, entry_id.decode(), fields))
        self._read_through = entries[-1][0].decode()
        read_ms = entry_ms(self._read_through)
        if self._jumped_at_ms is None and self._clock.is_ahead(read_ms):
            times_ms = (entry_ms(entry_id.decode()) for entry_id, _ in entries)
            self._jumped_at_ms = next((ms for ms in times_ms if self._clock.is_ahead(ms)), read_ms)
        self._chores.snapshots.count(len(entries))
        failpoint("batch-decided")
        return batch

    def _write_out(self, batch: Batch, after: Commit | None, *, is_last: bool) -> Commit | None:
        """The commit of a batch, if it has anything to say, `after` another one that is not answered yet. `is_last`: of
        what was read nothing stands behind it."""
        if batch.empty:
            return None
        seq, cursor, behind = self._reign.seq, self._cursor, None
        if after is not None:
            seq, cursor = seq + after.decisions, after.cursor
        elif is_last and self._clock.now_ms() - entry_ms(self._read_through) <= FRESH_MS:
            behind = self._read_through
        commit = batch.commit(self._state, self._shown, reign=self._reign, seq=seq, cursor=cursor, behind=behind)
        failpoint("commit-built")
        return commit

    def _settle(self, commit: Commit, done: Done) -> None:
        failpoint("committed")
        self._reign.seq += commit.decisions
        self._cursor = commit.cursor
        self._missing += done.missing
        if not commit.decisions:
            return
        if done.last_id == commit.last_id:  # nothing stands between: what we wrote need not be read
            self._state.last_id, self._state.seq = done.last_id, self._reign.seq
            self._read_through = done.last_id
            self._chores.snapshots.count(commit.decisions)
        else:
            self._wire.put_before(done.instead)
            self._readback.expect(done.first_id, commit.decisions, self._reign.seq)

    def _look_at_clock(self) -> None:
        """Has the server's clock jumped, since the last look, at the last entry that was read?

        After a jump back the log's clock stands still while nothing happens, and what was set before is due that much
        too late by it. It moves along, as after a jump forward; what was set just now counts from now.
        """
        if self._looked_at == self._read_through:
            return
        self._looked_at = self._read_through
        read_ms, now_ms = entry_ms(self._read_through), self._state.now_ms
        jumped_ms = self._clock.see(read_ms)
        jumped_at_ms, self._jumped_at_ms = self._jumped_at_ms, None
        if jumped_ms:
            # Several entries from behind the jump may have been read at once: what the first of them set is right.
            from_ms = read_ms if jumped_at_ms is None else jumped_at_ms
            self._reign.tell_jump(from_ms, jumped_ms)
        elif self._clock.is_behind and self._chores.has_deadlines() and (stood_ms := self._clock.stood(now_ms)):
            self._reign.tell_jump(now_ms, -stood_ms)
