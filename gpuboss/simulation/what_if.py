"""Recorded requests run again with other devices or rules, and both schedules side by side: whom did it help?

A wait is saved where a request was granted in both schedules; what it saved is its recorded wait less its new one.
Requests that were granted in one alone are counted apart: newly granted, if that was before the recording's end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from gpuboss.config import PolicyConfig
from gpuboss.events import DeviceObserved, LeaseRequested, PolicySet
from gpuboss.simulation.farm import farm, rules
from gpuboss.simulation.figures import Figures, Waits, figures_of, waits_by, waits_of
from gpuboss.simulation.recorded import as_simulated
from gpuboss.simulation.schedule import Fact, Job, Outcome, Schedule
from gpuboss.simulation.virtual_time import run

HELPED_MAX = 20


class ServiceChange(Struct, frozen=True):
    """What the change does to one service's requests; `saved_ms` is the sum of all that they waited less."""

    service: str
    saved_ms: int
    newly_granted: int
    no_longer_granted: int
    recorded: Waits
    what_if: Waits


class RequestChange(Struct, frozen=True):
    """A request that was granted in both schedules."""

    lease_id: str
    service: str
    priority: str
    size_mib: int
    recorded_wait_ms: int
    what_if_wait_ms: int
    saved_ms: int


class Comparison(Struct, frozen=True):
    """Both schedules in numbers, and the difference. `sooner`, `later` and `same` count requests granted in both;
    `services` come by what they save, most first, and so do the first `HELPED_MAX` of the requests that save anything;
    `assumed_holds` counts leases of the what-if of which no hold was recorded."""

    recorded: Figures
    what_if: Figures
    saved_ms: int
    sooner: int
    later: int
    same: int
    newly_granted: int
    no_longer_granted: int
    assumed_holds: int
    services: list[ServiceChange]
    helped_most: list[RequestChange]


class _Pair(NamedTuple):
    """One request in both schedules."""

    job: Job
    recorded: Outcome
    what_if: Outcome

    @property
    def saved_ms(self) -> int | None:
        """What it waits less, below zero if it waits longer; None if it was not granted in both."""
        if self.recorded.granted_at_ms is None or self.what_if.granted_at_ms is None:
            return None
        return self.recorded.granted_at_ms - self.what_if.granted_at_ms


def run_again(
    recorded: Schedule,
    facts: Sequence[Fact],
    devices: Sequence[tuple[int, int]] | None,
    policy: PolicyConfig | None,
    watched: Callable[[Iterator[int]], Iterator[int]] = iter,
) -> Schedule:
    """The recorded jobs with these devices, (index, MiB) each, and this policy; what is None is as `facts` record it.

    Other devices are one node, whatever nodes were recorded: requests that named one may use it, and a device that was
    recorded under the same index lends it its UUID, so that requests for it find it.
    """
    began_at_ms = min([recorded.began_at_ms, *(fact.at_ms for fact in facts)])
    jobs = recorded.jobs
    if devices is not None:
        jobs = [_anywhere(job) for job in jobs]
    return run(jobs, _facts(facts, devices, policy, began_at_ms), watched=watched)


def compare(recorded: Schedule, what_if: Schedule) -> Comparison:
    """Set both side by side; the jobs are the same, in one order."""
    pairs = [_Pair(*each) for each in zip(recorded.jobs, recorded.outcomes, what_if.outcomes, strict=True)]
    saved = [(saved_ms, pair) for pair in pairs if (saved_ms := pair.saved_ms) is not None]
    newly = [pair for pair in pairs if _is_new(pair, recorded.until_ms)]
    gone = [pair for pair in pairs if pair.recorded.granted_at_ms is not None and pair.what_if.granted_at_ms is None]
    helped = sorted((each for each in saved if each[0] > 0), key=lambda each: (-each[0], each[1].job.submit_ms))
    return Comparison(
        recorded=figures_of(recorded),
        what_if=figures_of(what_if),
        saved_ms=sum(saved_ms for saved_ms, _ in saved),
        sooner=len(helped),
        later=sum(saved_ms < 0 for saved_ms, _ in saved),
        same=sum(saved_ms == 0 for saved_ms, _ in saved),
        newly_granted=len(newly),
        no_longer_granted=len(gone),
        assumed_holds=sum(
            pair.recorded.granted_at_ms is None and pair.what_if.granted_at_ms is not None for pair in pairs
        ),
        services=_services(recorded, what_if, saved, newly, gone),
        helped_most=[_change(saved_ms, pair) for saved_ms, pair in helped[:HELPED_MAX]],
    )


def _anywhere(job: Job) -> Job:
    return job if job.request.node is None else replace(job, request=replace(job.request, node=None))


def _facts(
    recorded: Sequence[Fact], devices: Sequence[tuple[int, int]] | None, policy: PolicyConfig | None, began_at_ms: int
) -> list[Fact]:
    facts = [Fact(began_at_ms, rules(policy or PolicyConfig()))]
    if policy is None:
        facts += [as_simulated(fact) for fact in recorded if isinstance(fact.event, PolicySet)]
    if devices is not None:
        instead = farm(devices, policy or PolicyConfig(), began_at_ms)
        facts += [_as_recorded(fact, recorded) for fact in instead if isinstance(fact.event, DeviceObserved)]
    else:
        margin_mib = None if policy is None else policy.margin_mib
        kept = [fact for fact in recorded if not isinstance(fact.event, PolicySet)]
        facts += [_with_margin(as_simulated(fact), margin_mib) for fact in kept]
    return sorted(facts, key=lambda fact: fact.at_ms)


def _as_recorded(fact: Fact, recorded: Sequence[Fact]) -> Fact:
    """The same device with the UUID that the first recorded one of its index has."""
    assert isinstance(fact.event, DeviceObserved)
    for _, event in recorded:
        if isinstance(event, DeviceObserved) and event.device == fact.event.device:
            return Fact(fact.at_ms, replace(fact.event, uuid=event.uuid))
    return fact


def _with_margin(fact: Fact, margin_mib: int | None) -> Fact:
    if margin_mib is None or not isinstance(fact.event, DeviceObserved):
        return fact
    return Fact(fact.at_ms, replace(fact.event, margin_mib=margin_mib))


def _is_new(pair: _Pair, until_ms: int) -> bool:
    granted_at_ms = pair.what_if.granted_at_ms
    return pair.recorded.granted_at_ms is None and granted_at_ms is not None and granted_at_ms <= until_ms


def _services(
    recorded: Schedule, what_if: Schedule, saved: list[tuple[int, _Pair]], newly: list[_Pair], gone: list[_Pair]
) -> list[ServiceChange]:
    saved_ms: Counter[str] = Counter()
    for ms, pair in saved:
        saved_ms[pair.job.request.service] += ms
    new, lost = (Counter(pair.job.request.service for pair in pairs) for pairs in (newly, gone))
    before, after = (waits_by(each, lambda job: job.request.service) for each in (recorded, what_if))
    changes = [
        ServiceChange(name, saved_ms[name], new[name], lost[name], before[name], after.get(name, waits_of([])))
        for name in before
    ]
    return sorted(changes, key=lambda change: (-change.saved_ms, -change.newly_granted, change.service))


def _change(saved_ms: int, pair: _Pair) -> RequestChange:
    request: LeaseRequested = pair.job.request
    assert pair.recorded.granted_at_ms is not None
    recorded_wait_ms = pair.recorded.granted_at_ms - pair.job.submit_ms
    return RequestChange(
        lease_id=request.lease_id,
        service=request.service,
        priority=request.priority,
        size_mib=pair.job.size_mib,
        recorded_wait_ms=recorded_wait_ms,
        what_if_wait_ms=recorded_wait_ms - saved_ms,
        saved_ms=saved_ms,
    )
