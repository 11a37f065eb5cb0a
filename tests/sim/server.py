"""A Redis server without a process: commands in, answers out, and every way in which such a server lets one down."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from tests.sim.commands import command_of
from tests.sim.database import Database, Value, copy_of
from tests.sim.journal import Journal
from tests.sim.process import Fsync, Process
from tests.sim.resp import Answer, Error, Refused
from tests.sim.words import as_text

SYNCED_AFTER_US = 2_000_000  # under everysec: a server whose sync takes longer makes its writers wait


class Checkpoint(NamedTuple):
    """What a server held at one moment."""

    values: dict[bytes, Value]
    expires_ms: dict[bytes, int]


class SimulatedServer:
    """One server and its disk. `appendfsync` may be set at any time: under `always` whatever was answered is synced.

    It knows no connections: after `kill`, `lose_power`, `lose_all` and `fail_over` whoever calls must cut them. Nor is
    there MULTI, which belongs to one; nothing that is simulated sends it.
    """

    def __init__(
        self,
        now_us: Callable[[], int],
        random: random.Random,
        elapsed_us: Callable[[], int] | None = None,
    ) -> None:
        """`now_us`: the wall clock, which may jump. `elapsed_us`: one that does not, by which syncs are timed; without
        it they go by the wall clock, and a jump may make more, or less, be lost."""
        self.appendfsync: Fsync = "everysec"
        self._random = random
        self._elapsed_us = elapsed_us or now_us
        self._data = Database(now_us)
        self._journal = Journal()
        self._process = self._started()

    @property
    def touched(self) -> set[bytes]:
        """The keys of streams that were added to, since the caller last cleared it."""
        return self._data.touched

    def execute(self, words: list[bytes]) -> Answer:
        """Carry out one command of one connection: one step, kept whole or lost whole. An error is an answer."""
        data = self._data
        if data.expires_ms:
            data.drop_expired()
            if data.undo:
                self._end_step()
        try:
            command = command_of(words)
            if command is None:
                answer = self._process.execute(words)
            elif command.takes(words):
                answer = command.run(data, words)
            else:
                answer = Error(f"ERR wrong number of arguments for '{as_text(words[0]).lower()}' command")
        except Refused as refused:
            answer = refused.answer
        if data.undo:
            self._end_step()
        return answer

    def kill(self) -> None:
        """kill -9 and a restart. All data are kept: they were handed to the kernel before they were answered."""
        self._process = self._started()

    def lose_power(self, back_us: int) -> int:
        """The machine loses power and comes back as it was after some step, drawn at random: at most `back_us` ago, and
        nothing that was synced is gone. Returns how many steps are."""
        self._sync()
        count = self._random.randint(0, self._journal.steps_since(self._elapsed_us() - back_us))
        self._journal.take_back(count)
        self._process = self._started()
        return count

    def lose_all(self) -> None:
        """An empty server takes this one's place."""
        self.fail_over(Checkpoint({}, {}))

    def checkpoint(self) -> Checkpoint:
        """What a replica holds that gets nothing from here on."""
        return _copied(self._data.values, self._data.expires_ms)

    def fail_over(self, checkpoint: Checkpoint) -> None:
        """That replica takes over."""
        self._data.values, self._data.expires_ms = _copied(*checkpoint)
        self._journal.sync_all()
        self._process = self._started()

    def _started(self) -> Process:
        return Process(self._data, self._random, lambda: self.appendfsync)

    def _end_step(self) -> None:
        undo, self._data.undo = self._data.undo, []
        self._journal.append(self._elapsed_us(), undo)
        self._sync()

    def _sync(self) -> None:
        if self.appendfsync == "always":
            self._journal.sync_all()
        else:
            self._journal.sync(self._elapsed_us() - SYNCED_AFTER_US)


def _copied(values: dict[bytes, Value], expires_ms: dict[bytes, int]) -> Checkpoint:
    return Checkpoint({key: copy_of(value) for key, value in values.items()}, dict(expires_ms))
