"""What the leader does by its own clock: beat, tick, watch sessions and projections, explain the queue, keep
snapshots. Nothing of it grows the log unless something happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gpuboss.core import snapshot
from gpuboss.core.machine import CORE_VERSION
from gpuboss.core.state import State
from gpuboss.events import ClockTicked, LeaseRevoked, VramReclaimed
from gpuboss_scheduler.clock import LogClock
from gpuboss_scheduler.failpoints import failpoint
from gpuboss_scheduler.projections import deleted_leases, refresh_queue, repair_devices, repair_queue
from gpuboss_scheduler.reign import BEAT_S, Reign
from gpuboss_scheduler.scripts import Script
from gpuboss_scheduler.sessions import lose_silent_sessions

STALL_S = 1.0  # a beat that takes longer says that the server stood still, and nobody else could beat either

_snapshot = Script("snapshot")


@dataclass(slots=True)
class _Chore:
    every_s: float
    work: Callable[[], None]
    due_s: float = 0.0


class Chores:
    """The leader's duties by the clock."""

    def __init__(self, reign: Reign, state: State, clock: LogClock, snapshot_every: int) -> None:
        self._reign = reign
        self._state = state
        self._clock = clock
        self._snapshot_every = snapshot_every
        self._since_snapshot = 0
        self._ticked_ms = 0
        self._explained_id = ""
        self._trust_sessions_s = 0.0  # from when on a silent session is a dead one
        self._revoking: dict[str, int] = {}  # lease_id -> seq of the LeaseRevoked that was not read back yet
        self._reclaimed: dict[str, int] = {}  # the same for VramReclaimed
        self._chores = [
            _Chore(BEAT_S, self.beat),
            _Chore(0.25, self.lose_sessions),
            _Chore(0.25, self.reclaim),
            _Chore(0.5, self.look_at_projections),
            _Chore(1.0, self.explain_queue),
        ]

    def wait_s(self) -> float:
        """How long there is nothing to do, at most (s)."""
        due_s = min(chore.due_s for chore in self._chores)
        wait_s = max(0.0, due_s - time.monotonic())
        timer = self._state.next_timer()
        if timer is not None and timer.deadline_ms > self._ticked_ms:
            wait_s = min(wait_s, max(0.0, (timer.deadline_ms - self._clock.now_ms()) / 1000))
        return wait_s

    def run_due(self) -> None:
        """Do what is due."""
        self.tick()
        for chore in self._chores:
            now_s = time.monotonic()
            if chore.due_s <= now_s:
                chore.due_s = now_s + chore.every_s
                chore.work()

    def tick(self) -> None:
        """Append a tick if a deadline is due: timers fire nowhere else."""
        timer = self._state.next_timer()
        now_ms = self._clock.now_ms()
        if timer is not None and self._ticked_ms < timer.deadline_ms <= now_ms:
            self._reign.append([ClockTicked(now_ms=now_ms)])
            self._ticked_ms = now_ms
            failpoint("tick-appended")

    def beat(self) -> None:
        """Say that we lead. If the server stood still, nobody could beat: sessions get a whole TTL again."""
        started_s = time.monotonic()
        self._reign.beat()
        now_s = time.monotonic()
        if now_s - started_s > STALL_S:
            self._trust_sessions_s = now_s + self._state.policy.session_ttl_ms / 1000

    def lose_sessions(self) -> None:
        """Declare sessions dead that stopped beating."""
        if time.monotonic() >= self._trust_sessions_s:
            lose_silent_sessions(self._reign, self._state.sessions, self._state.policy.session_ttl_ms)

    def reclaim(self) -> None:
        """Give VRAM back whose lease ended uncleanly, once the lock delay has passed."""
        state = self._state
        if not any(device.reclaiming_mib for device in state.ledger.devices.values()):
            return
        due_ms = self._clock.now_ms() - state.policy.lock_delay_ms
        pending = _pending(self._reclaimed, state)
        facts = [
            VramReclaimed(lease_id=lease_id, how="lock_delay")
            for lease_id, lease in state.ledger.leases.items()
            if lease.reclaiming_since_ms is not None and lease.reclaiming_since_ms <= due_ms and lease_id not in pending
        ]
        if facts:
            self._reign.append(facts)
            pending.update((fact.lease_id, self._reign.seq) for fact in facts)

    def look_at_projections(self) -> None:
        """Deleting a lease's row is a force release; whatever else was changed by hand is put right."""
        self._revoke(deleted_leases(self._reign, self._state))
        repair_queue(self._reign, self._state)
        repair_devices(self._reign, self._state)

    def rows_were_missing(self, lease_ids: Iterable[str]) -> None:
        """A commit found that these leases' rows had been deleted."""
        self._revoke(lease_ids)

    def explain_queue(self) -> None:
        """Refresh place, reason and blockers of the first of the queue, if anything happened."""
        if self._state.waitlist.by_id and self._explained_id != self._state.last_id:
            self._explained_id = self._state.last_id
            refresh_queue(self._reign, self._state)

    def after_batch(self, entries: int) -> None:
        """Keep a snapshot now and then: rarely enough that writing it stays a small part of the work."""
        self._since_snapshot += entries
        state = self._state
        held = len(state.history.by_name) + len(state.waitlist.by_id) + len(state.ledger.leases)
        if self._since_snapshot >= max(self._snapshot_every, 2 * held):
            self.write_snapshot()

    def write_snapshot(self) -> None:
        """Keep the state, so that a start reads only what comes after it."""
        self._since_snapshot = 0
        dumped = snapshot.dump(self._state)
        keys = self._reign.keys
        arguments = [self._reign.epoch, self._state.last_id, CORE_VERSION, snapshot.digest(dumped), dumped]
        _snapshot(self._reign.client, [keys.scheduler, keys.snapshot], arguments)
        failpoint("snapshot-written")

    def _revoke(self, lease_ids: Iterable[str]) -> None:
        pending = _pending(self._revoking, self._state)
        facts = [
            LeaseRevoked(lease_id=lease_id, reason="its row in the projection was deleted", by="operator")
            for lease_id in lease_ids
            if lease_id in self._state.ledger.leases and lease_id not in pending
        ]
        if facts:
            self._reign.append(facts)
            pending.update((fact.lease_id, self._reign.seq) for fact in facts)


def _pending(appended: dict[str, int], state: State) -> dict[str, int]:
    """What was appended and not read back yet, in place: doing it again would do it twice."""
    for lease_id in [lease_id for lease_id, seq in appended.items() if seq <= state.seq]:
        del appended[lease_id]
    return appended
