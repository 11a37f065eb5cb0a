"""The core in virtual time: requests go into a log that is made up as it is decided, without Redis and without a clock.

What decides is `machine.step`, as in the scheduler. At one ms ticks come first (an expiry is decided before the inputs
of its ms), then facts, then submissions in the order of the jobs, then requests that are taken back, and last what
holders do, in the order in which their leases were granted. So the same jobs give the same log, byte for byte. What
expires at one ms is free for the first input of that ms, and who waits is looked at once for both.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from gpuboss.core.machine import CORE_VERSION, step, take_stamp
from gpuboss.core.state import State, Turn
from gpuboss.events import (
    ClockTicked,
    Decision,
    Event,
    LeaseDenied,
    LeaseEnded,
    LeaseGranted,
    LeaseReleased,
    SchedulerElected,
    Stamp,
)
from gpuboss.fields import MS_MAX
from gpuboss.simulation.schedule import Fact, Job, Outcome, Schedule, capacity_of

Keep = Callable[[str, list[bytes]], None]

EPOCH = 1
_FACT, _SUBMISSION, _WITHDRAWAL, _HOLDER = range(4)  # the order of the inputs at one ms
_END = (MS_MAX, _FACT)  # as far as the log's clock goes


class Ties(NamedTuple):
    """What comes first at one ms. Anything but the defaults is wrong: it is there to see what the order is worth."""

    expiries_first: bool = True
    submissions_first: bool = True  # before the releases
    by_grant: bool = True  # releases in the order of the grants, not of the jobs


RIGHT_TIES = Ties()


_encode = msgspec.json.Encoder().encode


class MadeUpLog:
    """A log in the making, and the scheduler that decides each entry at once. `keep` is given every entry."""

    def __init__(self, keep: Keep | None = None) -> None:
        self.state = State()
        self._keep = keep
        self._last = (0, 0)

    def write(self, at_ms: int, event: Event) -> Turn:
        """Append what a service says, at this ms of the log's clock, and decide it."""
        return self._append(at_ms, event, _encode(event))

    def stamp(self, at_ms: int, fact: Event) -> Turn:
        """Append a fact of the scheduler, and decide what follows."""
        return self._append(at_ms, fact, self._stamped(fact))

    def _append(self, at_ms: int, event: Event, data: bytes) -> Turn:
        entry_id = self._next_id(at_ms)
        fields = [b"type", type(event).__name__.encode(), b"data", data]
        if self._keep is not None:
            self._keep(entry_id, fields)
        turn = step(self.state, entry_id, fields)
        for told in turn.told:
            if told.is_new:
                self._record(at_ms, told.decision)
        return turn

    def _record(self, at_ms: int, decision: Decision) -> None:
        entry_id = self._next_id(at_ms)
        if self._keep is not None:
            fields = [b"type", type(decision).__name__.encode(), b"data", self._stamped(decision)]
            self._keep(entry_id, fields)
        # All that `step` does with a decision which was derived already.
        take_stamp(self.state, entry_id, Stamp(EPOCH, self.state.seq + 1))

    def _stamped(self, event: Event) -> bytes:
        return b'%s,"epoch":%d,"seq":%d}' % (_encode(event)[:-1], EPOCH, self.state.seq + 1)

    def _next_id(self, at_ms: int) -> str:
        last_ms, number = self._last
        self._last = (at_ms, 0) if at_ms > last_ms else (last_ms, number + 1)
        return f"{self._last[0]}-{self._last[1]}"


class _Due(NamedTuple):
    """An input to come. `order` and then `number` place it among those of its kind at its ms: no two are alike."""

    at_ms: int
    kind: int
    order: int
    number: int
    event: Event
    job: int  # its index


def run(
    jobs: Sequence[Job],
    facts: Sequence[Fact],
    *,
    keep: Keep | None = None,
    watched: Callable[[Iterator[int]], Iterator[int]] = iter,
    ties: Ties = RIGHT_TIES,
) -> Schedule:
    """What becomes of these jobs under these facts: the rules and the devices, in the order of their time.

    `keep` is called with each entry of the made-up log, its id and its fields. `watched` is handed the submissions
    and gives them back one by one: whoever wants to show how far this is can count them.
    """
    simulation = _Simulation(jobs, facts, keep, ties)
    for index in watched(iter(sorted(range(len(jobs)), key=lambda index: jobs[index].submit_ms))):
        simulation.submit(index)
    simulation.finish()
    return Schedule(jobs, simulation.outcomes, capacity_of(facts), simulation.now_ms)


class _Simulation:
    def __init__(self, jobs: Sequence[Job], facts: Sequence[Fact], keep: Keep | None, ties: Ties) -> None:
        self._ties = ties
        self._holder = _HOLDER if ties.submissions_first else _FACT
        self.outcomes = [Outcome() for _ in jobs]
        self._jobs = jobs
        self._index_of = {job.request.lease_id: index for index, job in enumerate(jobs)}
        assert len(self._index_of) == len(jobs), "two jobs of one lease_id"
        self._log = MadeUpLog(keep)
        self._grants = 0
        self._agenda = [_Due(at_ms, _FACT, number, 0, event, -1) for number, (at_ms, event) in enumerate(facts)]
        heapq.heapify(self._agenda)
        starts_ms = min([*(job.submit_ms for job in jobs), *(fact.at_ms for fact in facts)], default=0)
        self._log.stamp(starts_ms, SchedulerElected("simulation", "0", CORE_VERSION, "simulation"))

    @property
    def now_ms(self) -> int:
        """How far the log's clock is."""
        return self._log.state.now_ms

    def submit(self, index: int) -> None:
        """All that comes before this job's request, and then the request."""
        job = self._jobs[index]
        self._catch_up((job.submit_ms, _SUBMISSION))
        if job.patience_ms is not None:
            taken_back = LeaseReleased(job.request.lease_id, job.request.service)
            self._plan(job.submit_ms + job.patience_ms, _WITHDRAWAL, index, 0, taken_back, index)
        self._hear(self._log.write(job.submit_ms, job.request))

    def finish(self) -> None:
        """All that is left, once everybody has asked."""
        self._catch_up(_END)

    def _catch_up(self, until: tuple[int, int]) -> None:
        while True:
            at_ms, kind = min(self._agenda[0][:2], until) if self._agenda else until
            timer = self._log.state.next_timer()
            if self._log.state.look_is_due and at_ms > self.now_ms:
                self._tick(self.now_ms)  # whoever was to be heard at this ms had nothing to say any more
            elif timer is not None and timer.deadline_ms < at_ms + self._ties.expiries_first:
                self._tick(timer.deadline_ms, inputs_follow=timer.deadline_ms == at_ms)
            elif (at_ms, kind) < until:
                self._do(heapq.heappop(self._agenda))
            else:
                return

    def _tick(self, at_ms: int, inputs_follow: bool = False) -> None:
        self._hear(self._log.stamp(at_ms, ClockTicked(at_ms, inputs_follow)))

    def _do(self, due: _Due) -> None:
        if due.job < 0:
            self._hear(self._log.stamp(due.at_ms, due.event))
            return
        outcome = self.outcomes[due.job]
        waits = outcome.granted_at_ms is None
        # Whoever holds or asked for it knows that it is over, and says no more.
        if outcome.ended_at_ms is None and waits == (due.kind == _WITHDRAWAL):
            self._hear(self._log.write(due.at_ms, due.event))

    def _hear(self, turn: Turn) -> None:
        for told in turn.told:
            decision = told.decision
            if isinstance(decision, LeaseGranted):
                self._hold(self._index_of[decision.lease_id], decision)
            elif isinstance(decision, LeaseDenied | LeaseEnded):
                outcome = self.outcomes[self._index_of[decision.lease_id]]
                outcome.ended_at_ms, outcome.reason = self.now_ms, decision.reason

    def _hold(self, index: int, granted: LeaseGranted) -> None:
        job, outcome = self._jobs[index], self.outcomes[index]
        outcome.granted_at_ms, outcome.devices = granted.granted_at_ms, granted.devices
        self._grants += 1
        said: list[tuple[int, Event]] = [*job.said]
        if job.hold_ms is not None:
            said.append((job.hold_ms, LeaseReleased(granted.lease_id, granted.service)))
        for number, (after_ms, event) in enumerate(said):
            order = self._grants if self._ties.by_grant else index
            self._plan(granted.granted_at_ms + after_ms, self._holder, order, number, event, index)

    def _plan(self, at_ms: int, kind: int, order: int, number: int, event: Event, index: int) -> None:
        heapq.heappush(self._agenda, _Due(at_ms, kind, order, number, event, index))
