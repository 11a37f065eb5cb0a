"""A recorded log read as a schedule: who asked, what was decided, how long each lease was held; to run it again.

What is taken is what the log records, whichever core decided it. Entries that the log itself rejects as forged do not
count. A lease that began without a grant, after a log was lost, is left out, and so is a lease_id that was used again a
day after it was over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from gpuboss.core.door import Refusal, is_decision, read_event, read_type
from gpuboss.core.ledger import Lease
from gpuboss.core.machine import entry_ms
from gpuboss.core.state import State
from gpuboss.events import (
    ClockTicked,
    DeviceLost,
    DeviceObserved,
    Event,
    LeaseDenied,
    LeaseEnded,
    LeaseGranted,
    LeaseIdled,
    LeaseRenewed,
    LeaseRequested,
    LeaseResumed,
    PolicySet,
)
from gpuboss.log import Entry
from gpuboss.simulation.figures import nearest_rank
from gpuboss.simulation.schedule import Fact, Job, Outcome, Said, Schedule, capacity_of

ASSUMED_RULE = "the median of what their service's leases were held for, else of all leases, else their TTL, else 0"


@dataclass(slots=True)
class _Story:
    """One request: what was asked when, what was said of its lease, what became of it."""

    request: LeaseRequested
    submit_ms: int
    outcome: Outcome = field(default_factory=Outcome)
    said: list[tuple[int, Said]] = field(default_factory=list)  # by the log's clock


class Recording:
    """The entries of a log, collected in their order. `facts` are the rules and devices that it records, `left_out`
    the lease_ids that it decides about without holding their request."""

    def __init__(self, start: State | None) -> None:
        """`start`: what the log meant before the first entry. None: that is not known, because its beginning is gone;
        what it says first of the rules and of each device is then taken to have held from its first entry on."""
        self.facts: list[Fact] = []
        self.left_out: set[str] = set()
        self._is_whole = start is not None
        self._clock = _Clock()
        self._stories: dict[str, _Story] = {}
        self._known: set[object] = set()
        if start is not None:
            self._begin_with(start)

    def collect(self, entries: Iterable[Entry], forged: frozenset[str]) -> None:
        """Take the next entries of the log, all but those that are `forged`."""
        for entry in entries:
            if entry.id not in forged:
                self._take(entry)

    def schedule(self) -> Schedule:
        """What was recorded, and how to run it again.

        A lease is held again for as long as it was, however it ended; one that is held at the log's end is held for
        ever. Where nothing was granted, the hold is assumed (`ASSUMED_RULE`); whoever then took the request back, or
        was lost, does so again at the same moment, if it still waits.
        """
        stories = list(self._stories.values())
        holds = _Holds(stories)
        jobs = [_job(story, holds) for story in stories]
        outcomes = [story.outcome for story in stories]
        return Schedule(jobs, outcomes, capacity_of(self.facts), self._clock.now_ms)

    def _begin_with(self, state: State) -> None:
        self._clock.now_ms = state.now_ms
        if state.last_id == "0-0":
            return
        leases = [lease for lease in state.ledger.leases.values() if lease.state != "reclaiming"]
        stories = [_held(lease) for lease in leases]
        stories += [_Story(each.request, each.requested_at_ms) for each in state.waitlist.by_id.values()]
        self._stories = {story.request.lease_id: story for story in sorted(stories, key=lambda each: each.submit_ms)}
        began_at_ms = min([state.now_ms, *(story.submit_ms for story in stories)])
        observed = [device.observed for device in state.ledger.ordered_devices()]
        self.facts = [Fact(began_at_ms, event) for event in (state.policy, *observed)]

    def _take(self, entry: Entry) -> None:
        type_name = read_type(entry.fields)
        event = read_event(entry.fields)
        if type_name is None or not is_decision(type_name):
            self._clock.advance(entry.id, event)
        act = _ACTS.get(type(event))
        if act is not None:
            act(self, event)

    def _ask(self, event: LeaseRequested) -> None:
        self._stories.setdefault(event.lease_id, _Story(event, self._clock.now_ms))

    def _say(self, event: Said) -> None:
        story = self._stories.get(event.lease_id)
        if story is not None and story.request.service == event.service and story.outcome.ended_at_ms is None:
            story.said.append((self._clock.now_ms, event))

    def _grant(self, event: LeaseGranted) -> None:
        outcome = self._open(event)
        if outcome is not None and outcome.granted_at_ms is None:
            outcome.granted_at_ms, outcome.devices = event.granted_at_ms, event.devices

    def _end(self, event: LeaseEnded | LeaseDenied) -> None:
        outcome = self._open(event)
        if outcome is not None and (outcome.granted_at_ms is None) == isinstance(event, LeaseDenied):
            outcome.ended_at_ms, outcome.reason = self._clock.at_ms(event.cause), event.reason

    def _open(self, event: LeaseGranted | LeaseEnded | LeaseDenied) -> Outcome | None:
        story = self._stories.get(event.lease_id)
        if story is not None and story.outcome.ended_at_ms is None:
            return story.outcome
        self.left_out.add(event.lease_id)
        return None

    def _note(self, event: PolicySet | DeviceObserved | DeviceLost) -> None:
        about = None if isinstance(event, PolicySet) else (event.node, event.device)
        at_ms = self._clock.now_ms
        if not self._is_whole and about not in self._known:
            at_ms = self._clock.began_at_ms
        self._known.add(about)
        self.facts.append(Fact(at_ms, event))


class _Clock:
    """The log's clock while its entries go by: policy, first lines."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.began_at_ms = 0  # what it showed at the first input
        self._late: dict[str, int] = {}  # what it showed at inputs whose ids lag behind, after the server's went back

    def advance(self, entry_id: str, event: Event | Refusal) -> None:
        """An input goes by."""
        at_ms = entry_ms(entry_id)
        told_ms = event.now_ms if isinstance(event, ClockTicked) else at_ms
        self.now_ms = max(self.now_ms, at_ms, told_ms)
        self.began_at_ms = self.began_at_ms or self.now_ms
        if self.now_ms != at_ms:
            self._late[entry_id] = self.now_ms

    def at_ms(self, cause: str) -> int:
        """What it showed at an input: when its decisions were derived, which may be long before they were committed."""
        return self._late.get(cause) or entry_ms(cause)


class _Holds:
    """How long leases were held, to assume it of requests that never held any."""

    def __init__(self, stories: Iterable[_Story]) -> None:
        self._of_all: list[int] = []
        self._of_service: dict[str, list[int]] = {}
        for story in stories:
            held_ms = _held_ms(story)
            if held_ms is not None:
                self._of_all.append(held_ms)
                self._of_service.setdefault(story.request.service, []).append(held_ms)
        for held in (self._of_all, *self._of_service.values()):
            held.sort()

    def assumed_ms(self, request: LeaseRequested) -> int:
        """By `ASSUMED_RULE`."""
        known = self._of_service.get(request.service) or self._of_all
        return nearest_rank(known, 50) if known else request.ttl_ms or 0


_ACTS: dict[type[Any], Callable[[Recording, Any], None]] = {
    LeaseRequested: Recording._ask,
    LeaseRenewed: Recording._say,
    LeaseIdled: Recording._say,
    LeaseResumed: Recording._say,
    LeaseGranted: Recording._grant,
    LeaseDenied: Recording._end,
    LeaseEnded: Recording._end,
    PolicySet: Recording._note,
    DeviceObserved: Recording._note,
    DeviceLost: Recording._note,
}


def _held(lease: Lease) -> _Story:
    """A lease of which a snapshot is all that is known."""
    granted = lease.granted
    story = _Story(lease.request, granted.granted_at_ms - granted.waited_ms)
    story.outcome.granted_at_ms, story.outcome.devices = granted.granted_at_ms, granted.devices
    if lease.expires_at_ms is not None and lease.expires_at_ms != granted.expires_at_ms:
        renewed = LeaseRenewed(granted.lease_id, granted.service, lease.expires_at_ms - lease.expiry_set_ms)
        story.said.append((lease.expiry_set_ms, renewed))
    return story


def _held_ms(story: _Story) -> int | None:
    outcome = story.outcome
    if outcome.granted_at_ms is None or outcome.ended_at_ms is None:
        return None
    return max(0, outcome.ended_at_ms - outcome.granted_at_ms)


def _job(story: _Story, holds: _Holds) -> Job:
    request, outcome = story.request, story.outcome
    granted_at_ms, ended_at_ms = outcome.granted_at_ms, outcome.ended_at_ms
    if granted_at_ms is not None:
        said = tuple((max(0, at_ms - granted_at_ms), event) for at_ms, event in story.said)
        return Job(request, story.submit_ms, _held_ms(story), said=said)
    gave_up = ended_at_ms is not None and outcome.reason in ("cancelled", "session_lost")
    patience_ms = ended_at_ms - story.submit_ms if ended_at_ms is not None and gave_up else None
    return Job(request, story.submit_ms, holds.assumed_ms(request), patience_ms)


def as_simulated(fact: Fact) -> Fact:
    """The same fact for a simulation, in which no memory lingers."""
    event = fact.event
    if isinstance(event, PolicySet):
        return Fact(fact.at_ms, replace(event, lock_delay_ms=0))
    return Fact(fact.at_ms, replace(event, simulated=True)) if isinstance(event, DeviceObserved) else fact
