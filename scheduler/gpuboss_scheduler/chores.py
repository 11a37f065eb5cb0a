"""What the leader does by its own clock: beat, tick, watch sessions, rules and projections, explain the queue, keep
snapshots. Nothing of it grows the log unless something happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gpuboss.core.state import State
from gpuboss.core.stream_ids import is_later
from gpuboss.events import ClockTicked
from gpuboss_scheduler.clock import JUMP_MS, LogClock
from gpuboss_scheduler.failpoints import failpoint
from gpuboss_scheduler.lease_facts import LeaseFacts
from gpuboss_scheduler.projections import deleted_leases, refresh_queue, repair_devices, repair_queue
from gpuboss_scheduler.reign import BEAT_S, Reign
from gpuboss_scheduler.retention import Retention
from gpuboss_scheduler.scripts import ClockAhead, Deposed
from gpuboss_scheduler.sessions import Trust, lose_silent_sessions
from gpuboss_scheduler.snapshots import Snapshots

EXPLAIN_PAUSE_S = 0.02
THOROUGH_EVERY = 20  # every so many looks at what Redis shows go through all rows, and do not only count them


@dataclass(slots=True)
class _Chore:
    every_s: float
    work: Callable[[], float | None]  # returns in how many s it goes on, None where it is done for this time
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
        follow_rules: Callable[[Reign, State], None],
    ) -> None:
        """`seen` is told the state whenever the log was found to hold all that it is made of; `follow_rules` appends
        rules that are set anew."""
        self.lease_facts = LeaseFacts(reign, state)
        self.snapshots = snapshots
        self.retention: Retention | None = None  # None: the log keeps all
        self._reign = reign
        self._state = state
        self._clock = clock
        self._trust = trust
        self._seen = seen
        self._ticked_ms = 0
        self._tick_id = ""
        self._explained_id = ""
        self._explaining: Iterator[bool] | None = None
        self._looks = 0
        self._due_s = 0.0  # when the first of the chores is due
        self._chores = [
            _Chore(BEAT_S, self.beat),
            _Chore(0.25, self._keep_up),
            _Chore(0.25, self._lose_sessions),
            _Chore(0.25, lambda: follow_rules(reign, state)),
            _Chore(0.25, lambda: self.lease_facts.reclaim(clock.now_ms())),
            _Chore(0.5, self._look_at_projections),
            _Chore(1.0, self._explain_queue),
        ]

    def has_deadlines(self) -> bool:
        """Whether anything will be due by the log's clock."""
        devices = self._state.ledger.devices.values()
        return self._state.next_timer() is not None or any(device.reclaiming_mib for device in devices)

    def wait_s(self) -> float:
        """How long there is nothing to do, at most (s)."""
        if self.snapshots.are_due():
            return 0.0
        due_s = self._due_s if self.retention is None else min(self._due_s, self.retention.due_s)
        wait_s = due_s - time.monotonic()
        deadline_ms = self._next_deadline_ms()
        if deadline_ms is not None:
            wait_s = min(wait_s, (deadline_ms - self._clock.now_ms()) / 1000)
        return max(0.0, wait_s)

    def run_due(self) -> None:
        """Do what is due. Called after every batch, so looking whether anything is due costs next to nothing."""
        deadline_ms = self._next_deadline_ms()
        if deadline_ms is not None and deadline_ms <= (now_ms := self._clock.now_ms()):
            self._append_tick(now_ms)
        if time.monotonic() >= self._due_s:
            for chore in self._chores:
                now_s = time.monotonic()
                if chore.due_s <= now_s:
                    chore.due_s = now_s + chore.every_s
                    go_on_s = chore.work()
                    if go_on_s is not None:
                        chore.due_s = now_s + go_on_s
            self._due_s = min(chore.due_s for chore in self._chores)
        if self.snapshots.are_due():
            self.snapshots.write()
        if self.retention is not None and time.monotonic() >= self.retention.due_s:
            self.retention.work()

    def _next_deadline_ms(self) -> int | None:
        """The first deadline for which a tick has to be appended: timers fire nowhere else. None where the tick that
        fires it is on its way, or a jump of the clock, which moves it. One that was read has fired what was set then;
        what was set behind it may be due from before: who reasserts a lease tells when it ends."""
        timer, ticked_ms = self._state.next_timer(), self._ticked_ms
        if self._reign.jump_seq > self._state.seq or timer is None:
            return None
        if timer.deadline_ms <= ticked_ms > self._state.ticked_ms:
            return None
        return timer.deadline_ms

    def _append_tick(self, now_ms: int) -> None:
        """Append a tick. Its id counts as well: where the server's clock jumped forward it would fire all that is due
        until there. So then the jump is told instead, which nothing that was read shows yet."""
        jumped_from_ms = now_ms + JUMP_MS
        try:
            self._tick_id = self._reign.append([ClockTicked(now_ms=now_ms)], latest_ms=jumped_from_ms)
        except ClockAhead as ahead:
            if jumped_ms := self._clock.see(ahead.server_ms):
                self._reign.tell_jump(jumped_from_ms, jumped_ms)
            return
        self._ticked_ms = now_ms
        failpoint("tick-appended")

    def _keep_up(self) -> None:
        """While the server's clock is behind, ids tell no time: a tick after what happened does, so that what comes
        next is not of the same moment. Within a ms of that it would be: then the next round does it."""
        now_ms, anything_new = self._clock.now_ms(), self._state.last_id != self._tick_id
        if self._clock.is_behind and anything_new and now_ms > self._state.now_ms and self.has_deadlines():
            self._append_tick(now_ms)

    def beat(self) -> None:
        """Say that the leader is alive, and note where the log ends."""
        reign, state = self._reign, self._state
        reign.fence, reign.recovering_until_ms = state.fence, state.recovering_until_ms
        server_ms, deleted_id = reign.beat()
        if is_later(deleted_id, reign.read_through):
            # It may have been decided before it was deleted. No log that lacks it leads to that again: the state does.
            self.snapshots.write()
            raise Deposed(
                f"somebody deleted {deleted_id}, and the log had been read through {reign.read_through} alone"
            )
        # Looked for with the next beat, and not with this one: what was written since the last one may stand in a log
        # that lost all that came before.
        reign.last_id = reign.read_through = state.last_id
        self._clock.told(server_ms)
        self._trust.answered(server_ms)
        self._seen(state)

    def _lose_sessions(self) -> None:
        if self._trust.holds():
            lose_silent_sessions(self._reign, self._state.sessions, self._state.policy.session_ttl_ms, self._trust)

    def _look_at_projections(self) -> None:
        """Deleting a lease's row is a force release; whatever else was changed by hand is put right."""
        self._looks += 1
        thorough = self._looks % THOROUGH_EVERY == 0
        self.lease_facts.revoke(deleted_leases(self._reign, self._state, thorough=thorough))
        repair_queue(self._reign, self._state, thorough=thorough)
        repair_devices(self._reign, self._state)

    def _explain_queue(self) -> float | None:
        """Refresh place, reason and blockers of the first of the queue, if anything happened, step by step."""
        state = self._state
        if self._explaining is None:
            if not state.waitlist.by_id or self._explained_id == state.last_id:
                return None
            self._explained_id = state.last_id
            self._explaining = refresh_queue(self._reign, state)
        if next(self._explaining, False):
            return EXPLAIN_PAUSE_S
        self._explaining = None
        return None
