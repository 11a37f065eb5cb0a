"""Keeping the state now and then, so that a start reads only what comes after it."""

from __future__ import annotations

import time

from gpuboss.core import snapshot
from gpuboss.core.machine import CORE_VERSION
from gpuboss.core.state import State
from gpuboss.core.stream_ids import parse_id
from gpuboss.events import SnapshotTaken
from gpuboss_scheduler.failpoints import failpoint
from gpuboss_scheduler.reign import Reign, stamped
from gpuboss_scheduler.scripts import Script

REST = 100  # times as long as writing one took

_snapshot = Script("snapshot")


class Snapshots:
    """The one snapshot of a namespace, written by whoever leads."""

    def __init__(self, reign: Reign, state: State, every: int) -> None:
        """`every`: after so many entries at the earliest; the more there is to write, the more rarely."""
        self._reign = reign
        self._state = state
        self._every = every
        self._since = 0
        self.last_id = ""  # of the last one that this reign wrote; empty: of none that it knows to be there
        self._rested_s = 0.0  # when another one may be asked for

    def covers(self, entry_id: str) -> bool:
        """Whether an entry lies before the snapshot, which stands in for it."""
        return bool(self.last_id) and parse_id(entry_id) < parse_id(self.last_id)

    def may_be_asked_for(self) -> bool:
        """Whether one may be written that is not due: writing them stays a hundredth of the work."""
        anything_new = not self.last_id or self._since > 0
        return anything_new and time.monotonic() >= self._rested_s

    def count(self, entries: int) -> None:
        """So many entries were read."""
        self._since += entries

    def are_due(self) -> bool:
        """Whether enough was read since the last one: so much that writing it stays a small part of the work."""
        if self._since < self._every:
            return False
        state = self._state
        held = len(state.history.by_name) + len(state.waitlist.by_id) + len(state.ledger.leases)
        return self._since >= 2 * held

    def write(self) -> None:
        """Keep the state, and say so in the log. Everything that was decided must be committed. Raises `Deposed` if
        another leads, or if the entry at which the state stands is gone."""
        self._since = -1  # that it was taken will be read too, and is no reason to take another
        started_s = time.monotonic()
        reign, state = self._reign, self._state
        keys = [reign.keys.scheduler, reign.keys.events, reign.keys.snapshot]
        with reign.kept_alive():
            dumped = snapshot.dump(state)
            digest = snapshot.digest(dumped)
            taken = SnapshotTaken(through=state.last_id, inputs=state.inputs.hex(), state=digest)
            arguments = [reign.token, reign.seq, reign.seq + 1, stamped(taken, reign.epoch, reign.seq + 1)]
            _snapshot(reign.client, keys, [*arguments, state.last_id, CORE_VERSION, digest, dumped])
        reign.seq += 1
        self.last_id = state.last_id
        self._rested_s = time.monotonic() + REST * (time.monotonic() - started_s)
        failpoint("snapshot-written")

    def write_last(self) -> None:
        """Keep the state at the end of a reign, unless nothing was read since it was kept."""
        if self._since > 0:
            self.write()
