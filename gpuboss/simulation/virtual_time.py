"""The core in virtual time: requests go into a log that is made up as it is decided, without Redis and without a clock.

What decides is `machine.step`, as in the scheduler. At one ms ticks come first (an expiry is decided before the inputs
of its ms), then facts, then submissions in the order of the jobs, then requests that are taken back, and last what
holders do, in the order in which their leases were granted. So the same jobs give the same log, byte for byte. What
expires at one ms is free for the first input of that ms, and who waits is looked at once for both.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from functools import partial
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
FACT, SUBMISSION, WITHDRAWAL, HOLDER = range(4)  # the order of the inputs at one ms
_END = (MS_MAX, FACT)  # as far as the log's clock goes


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
    """Something to come. `order` and then `number` place it among those of its kind at its ms: no two are alike."""

    at_ms: int
    kind: int
    order: int
    number: int
    act: Callable[[int], None]  # given `at_ms`


class VirtualTime:
    """A made-up log, and what is to come in it. `hear` is told each decision as it is taken; whoever wants to do
    something about it plans that, or says it once the turn is over."""

    def __init__(
        self,
        starts_ms: int,
        facts: Sequence[Fact],
        hear: Callable[[Decision], None],
        keep: Keep | None = None,
        expiries_first: bool = True,
    ) -> None:
        self._hear = hear
        self._expiries_first = expiries_first
        self._log = MadeUpLog(keep)
        self._agenda: list[_Due] = []
        for number, (at_ms, event) in enumerate(facts):
            self.plan(at_ms, FACT, number, 0, partial(self._stamp, event))
        self._log.stamp(starts_ms, SchedulerElected("simulation", "0", CORE_VERSION, "simulation"))

    @property
    def now_ms(self) -> int:
        """How far the log's clock is."""
        return self._log.state.now_ms

    def plan(self, at_ms: int, kind: int, order: int, number: int, act: Callable[[int], None]) -> None:
        """Have something done at this ms, in its place among what comes at the same."""
        heapq.heappush(self._agenda, _Due(at_ms, kind, order, number, act))

    def say(self, event: Event, at_ms: int) -> Turn:
        """What a service says at this ms, and what is decided about it."""
        return self._heard(self._log.write(at_ms, event))

    def catch_up(self, until: tuple[int, int] = _END) -> None:
        """All that comes before this ms and kind; by default, all there is."""
        while True:
            at_ms, kind = min(self._agenda[0][:2], until) if self._agenda else until
            timer = self._log.state.next_timer()
            if self._log.state.look_is_due and at_ms > self.now_ms:
                self._tick(self.now_ms)  # whoever was to be heard at this ms had nothing to say any more
            elif timer is not None and timer.deadline_ms < at_ms + self._expiries_first:
                self._tick(timer.deadline_ms, inputs_follow=timer.deadline_ms == at_ms)
            elif (at_ms, kind) < until:
                due = heapq.heappop(self._agenda)
                due.act(due.at_ms)
            else:
                return

    def _tick(self, at_ms: int, inputs_follow: bool = False) -> None:
        self._stamp(ClockTicked(at_ms, inputs_follow), at_ms)

    def _stamp(self, fact: Event, at_ms: int) -> None:
        self._heard(self._log.stamp(at_ms, fact))

    def _heard(self, turn: Turn) -> Turn:
        for told in turn.told:
            self._hear(told.decision)
        return turn


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
    simulation.time.catch_up()
    return Schedule(jobs, simulation.outcomes, capacity_of(facts), simulation.time.now_ms)


class _Simulation:
    def __init__(self, jobs: Sequence[Job], facts: Sequence[Fact], keep: Keep | None, ties: Ties) -> None:
        self._ties = ties
        self._holder = HOLDER if ties.submissions_first else FACT
        self.outcomes = [Outcome() for _ in jobs]
        self._jobs = jobs
        self._index_of = {job.request.lease_id: index for index, job in enumerate(jobs)}
        assert len(self._index_of) == len(jobs), "two jobs of one lease_id"
        self._grants = 0
        starts_ms = min([*(job.submit_ms for job in jobs), *(fact.at_ms for fact in facts)], default=0)
        self.time = VirtualTime(starts_ms, facts, self._hear, keep, ties.expiries_first)

    def submit(self, index: int) -> None:
        """All that comes before this job's request, and then the request."""
        job = self._jobs[index]
        self.time.catch_up((job.submit_ms, SUBMISSION))
        if job.patience_ms is not None:
            taken_back = LeaseReleased(job.request.lease_id, job.request.service)
            until_ms = job.submit_ms + job.patience_ms
            self.time.plan(until_ms, WITHDRAWAL, index, 0, partial(self._take_back, index, taken_back))
        self.time.say(job.request, job.submit_ms)

    def _take_back(self, index: int, event: Event, at_ms: int) -> None:
        outcome = self.outcomes[index]
        if outcome.granted_at_ms is None and outcome.ended_at_ms is None:
            self.time.say(event, at_ms)

    def _hold(self, index: int, event: Event, at_ms: int) -> None:
        if self.outcomes[index].ended_at_ms is None:  # else its holder knows that it is over, and says no more
            self.time.say(event, at_ms)

    def _hear(self, decision: Decision) -> None:
        if isinstance(decision, LeaseGranted):
            self._begin(self._index_of[decision.lease_id], decision)
        elif isinstance(decision, LeaseDenied | LeaseEnded):
            outcome = self.outcomes[self._index_of[decision.lease_id]]
            outcome.ended_at_ms, outcome.reason = self.time.now_ms, decision.reason

    def _begin(self, index: int, granted: LeaseGranted) -> None:
        job, outcome = self._jobs[index], self.outcomes[index]
        outcome.granted_at_ms, outcome.devices = granted.granted_at_ms, granted.devices
        self._grants += 1
        said: list[tuple[int, Event]] = [*job.said]
        if job.hold_ms is not None:
            said.append((job.hold_ms, LeaseReleased(granted.lease_id, granted.service)))
        for number, (after_ms, event) in enumerate(said):
            order = self._grants if self._ties.by_grant else index
            act = partial(self._hold, index, event)
            self.time.plan(granted.granted_at_ms + after_ms, self._holder, order, number, act)
