"""What the leader does by its own clock: beat, tick, watch sessions and projections, explain the queue, keep
snapshots. Nothing of it grows the log unless something happened."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from gpuboss.core.state import State
from gpuboss.events import ClockTicked
from gpuboss_scheduler.clock import LogClock
from gpuboss_scheduler.failpoints import failpoint
from gpuboss_scheduler.lease_facts import LeaseFacts
from gpuboss_scheduler.projections import deleted_leases, refresh_queue, repair_devices, repair_queue
from gpuboss_scheduler.reign import BEAT_S, Reign
from gpuboss_scheduler.sessions import Trust, lose_silent_sessions
from gpuboss_scheduler.snapshots import Snapshots

THOROUGH_EVERY = 20  # every so many looks at what Redis shows go through all rows, and do not only count them


@dataclass(slots=True)
class _Chore:
    every_s: float
    work: Callable[[], None]
    due_s: float = 0.0


class Chores:
    """The leader's duties by the clock. They see the state as it is committed: none runs amid a batch."""

    def __init__(
        self,
        reign: Reign,
        state: State,
        clock: LogClock,
        trust: Trust,
        snapshots: Snapshots,
        seen: Callable[[State], None],
    ) -> None:
        """`seen` is told the state whenever the log was found to hold all that it is made of."""
        self.lease_facts = LeaseFacts(reign, state)
        self.snapshots = snapshots
        self._reign = reign
        self._state = state
        self._clock = clock
        self._trust = trust
        self._seen = seen
        self._ticked_ms = 0
        self._explained_id = ""
        self._looks = 0
        self._due_s = 0.0  # when the first of the chores is due
        self._chores = [
            _Chore(BEAT_S, self._beat),
            _Chore(0.25, self._lose_sessions),
            _Chore(0.25, lambda: self.lease_facts.reclaim(clock.now_ms())),
            _Chore(0.5, self._look_at_projections),
            _Chore(1.0, self._explain_queue),
        ]

    def wait_s(self) -> float:
        """How long there is nothing to do, at most (s)."""
        if self.snapshots.are_due():
            return 0.0
        wait_s = self._due_s - time.monotonic()
        timer = self._state.next_timer()
        if timer is not None and timer.deadline_ms > self._ticked_ms:
            wait_s = min(wait_s, (timer.deadline_ms - self._clock.now_ms()) / 1000)
        return max(0.0, wait_s)

    def run_due(self) -> None:
        """Do what is due. Called after every batch, so looking whether anything is due costs next to nothing."""
        timer = self._state.next_timer()
        if timer is not None:
            self._tick(timer.deadline_ms)
        if time.monotonic() >= self._due_s:
            for chore in self._chores:
                now_s = time.monotonic()
                if chore.due_s <= now_s:
                    chore.due_s = now_s + chore.every_s
                    chore.work()
            self._due_s = min(chore.due_s for chore in self._chores)
        if self.snapshots.are_due():
            self.snapshots.write()

    def _tick(self, deadline_ms: int) -> None:
        """Append a tick if the first deadline is due: timers fire nowhere else."""
        now_ms = self._clock.now_ms()
        if self._ticked_ms < deadline_ms <= now_ms:
            self._reign.append([ClockTicked(now_ms=now_ms)])
            self._ticked_ms = now_ms
            failpoint("tick-appended")

    def _beat(self) -> None:
        reign, state = self._reign, self._state
        reign.fence, reign.recovering_until_ms = state.fence, state.recovering_until_ms
        self._trust.answered(reign.beat())
        # Looked for with the next beat, and not with this one: what was written since the last one may stand in a log
        # that lost all that came before.
        reign.last_id = state.last_id
        self._seen(state)

    def _lose_sessions(self) -> None:
        if self._trust.holds():
            lose_silent_sessions(self._reign, self._state.sessions, self._state.policy.session_ttl_ms)

    def _look_at_projections(self) -> None:
        """Deleting a lease's row is a force release; whatever else was changed by hand is put right."""
        self._looks += 1
        thorough = self._looks % THOROUGH_EVERY == 0
        self.lease_facts.revoke(deleted_leases(self._reign, self._state, thorough=thorough))
        repair_queue(self._reign, self._state, thorough=thorough)
        repair_devices(self._reign, self._state)

    def _explain_queue(self) -> None:
        """Refresh place, reason and blockers of the first of the queue, if anything happened."""
        if self._state.waitlist.by_id and self._explained_id != self._state.last_id:
            self._explained_id = self._state.last_id
            refresh_queue(self._reign, self._state)
