"""Leading: read a batch of the log, decide, commit; and between batches, what has to be done by the clock."""

from __future__ import annotations

from collections.abc import Callable

from gpuboss.core.machine import entry_ms, step
from gpuboss.core.state import State
from gpuboss.events import ClockJumped
from gpuboss.log import Entry, LogReader
from gpuboss_scheduler.chores import Chores
from gpuboss_scheduler.clock import LogClock
from gpuboss_scheduler.commit import Batch, Shown, commit_script, read_answer
from gpuboss_scheduler.failpoints import failpoint
from gpuboss_scheduler.reign import Reign
from gpuboss_scheduler.scripts import check
from gpuboss_scheduler.wire import Wire


class Leader:
    """One reign at work. `cursor` is the one in Redis; the state may be further: it has read our own decisions."""

    def __init__(self, wire: Wire, reign: Reign, state: State, cursor: str, clock: LogClock, chores: Chores) -> None:
        self._wire = wire
        self._reign = reign
        self._keys = reign.keys
        self._state = state
        self._cursor = cursor
        self._read_through = state.last_id
        self._clock = clock
        self._chores = chores
        self._shown = Shown(state)

    def catch_up(self, through: str) -> None:
        """Decide the tail that the last leader left, and what this one has found, through `through`, in one commit:
        a grant to a holder that proves dead has ended when anybody hears of it."""
        self._decide(list(LogReader(self._reign.client, self._keys).entries(self._read_through, through)))

    def lead(self, stopping: Callable[[], bool]) -> None:
        """Until told to stop. Raises `Deposed` when another scheduler leads, and redis' errors."""
        while not stopping():
            self._wire.ask(self._keys.events, self._read_through)
            if self._wire.answered(self._chores.wait_s()):
                self._decide(self._wire.entries())
            self._chores.run_due()

    def _decide(self, entries: list[Entry]) -> None:
        if not entries:
            return
        failpoint("batch-read")
        batch = Batch()
        for entry in entries:
            batch.add(step(self._state, entry.id, entry.fields))
        self._read_through = entries[-1].id
        failpoint("batch-decided")
        if not batch.empty:
            self._commit(batch)
        self._look_at_clock(entries)
        self._chores.after_batch(len(entries))

    def _commit(self, batch: Batch) -> None:
        reign = self._reign
        keys, arguments = batch.arguments(
            self._keys, self._state, self._shown, epoch=reign.epoch, seq=reign.seq, cursor=self._cursor
        )
        failpoint("commit-built")
        done = read_answer(check(self._wire.call(commit_script, keys, arguments)))
        failpoint("committed")
        reign.seq += batch.decisions
        self._cursor = done.cursor
        if done.contiguous:
            # Our own decisions stand right behind what was read: they need not be read back.
            self._state.seq = reign.seq
            self._state.last_id = self._read_through = done.cursor
        # Before anything else: whoever was just answered may ask again at once.
        self._wire.ask(self._keys.events, self._read_through)
        self._chores.rows_were_missing(done.missing)

    def _look_at_clock(self, entries: list[Entry]) -> None:
        jumped_ms = self._clock.see(entry_ms(entries[-1].id))
        if jumped_ms:
            before_ms = entry_ms(entries[-1].id) - jumped_ms
            first = next(entry.id for entry in entries if entry_ms(entry.id) > before_ms)
            self._reign.append([ClockJumped(from_id=first, delta_ms=jumped_ms)])
