"""What a schedule comes to: waits, slowdown and utilisation, each defined here.

Waits are of the requests that were granted, from submission to grant, in whole ms: `mean` is rounded down; `median` and
`p99` are by nearest rank, the least wait that 50 % or 99 % of them do not exceed. A size is the MiB asked for on all
devices together. Bounded slowdown is (wait + time held) / time held, with times held under 10 s taken as 10 s and no
result below 1; `mean_bounded_slowdown` is its mean over the leases that ended. `utilisation` is the share of the MiB ms
that the devices could have held from the first submission to the end which were leased.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

from msgspec import Struct

from gpuboss.simulation.schedule import Job, Outcome, Schedule

BOUND_MS = 10_000  # of the slowdown: without it a lease of a few ms that waited a second would decide the mean
PRIORITIES = ("high", "normal", "low")

Group = TypeVar("Group")


class Waits(Struct, frozen=True):
    """How long `requests` that were granted had waited, in ms; None where there are none."""

    requests: int
    mean: int | None
    median: int | None
    p99: int | None
    longest: int | None


class WaitsBy(Struct, frozen=True):
    """The waits of all, of each priority class, and of each size (total MiB asked for, ascending)."""

    all: Waits
    per_class: dict[str, Waits]
    per_size: dict[int, Waits]


class Figures(Struct, frozen=True):
    """A schedule in numbers. `denied` and `ended` count by reason; `unanswered` requests still wait at the end, `held`
    leases are still held then."""

    requests: int
    granted: int
    denied: dict[str, int]
    unanswered: int
    ended: dict[str, int]
    held: int
    wait_ms: WaitsBy
    mean_bounded_slowdown: float | None
    utilisation: float | None
    began_at_ms: int
    until_ms: int


def figures_of(schedule: Schedule) -> Figures:
    """All figures of a schedule, by the definitions above."""
    outcomes = schedule.outcomes
    granted = [outcome for outcome in outcomes if outcome.granted_at_ms is not None]
    others = [outcome for outcome in outcomes if outcome.granted_at_ms is None]
    return Figures(
        requests=len(outcomes),
        granted=len(granted),
        denied=_by_reason(others),
        unanswered=sum(outcome.ended_at_ms is None for outcome in others),
        ended=_by_reason(granted),
        held=sum(outcome.ended_at_ms is None for outcome in granted),
        wait_ms=WaitsBy(
            all=waits_of(wait_ms for _, wait_ms in waited(schedule)),
            per_class=_ordered(waits_by(schedule, lambda job: job.request.priority), PRIORITIES),
            per_size=dict(sorted(waits_by(schedule, lambda job: job.size_mib).items())),
        ),
        mean_bounded_slowdown=_mean_bounded_slowdown(schedule),
        utilisation=_utilisation(schedule),
        began_at_ms=schedule.began_at_ms,
        until_ms=schedule.until_ms,
    )


def waited(schedule: Schedule) -> Iterator[tuple[Job, int]]:
    """The jobs that were granted, each with its wait in ms."""
    for job, outcome in zip(schedule.jobs, schedule.outcomes, strict=True):
        if outcome.granted_at_ms is not None:
            yield job, outcome.granted_at_ms - job.submit_ms


def waits_of(waits_ms: Iterable[int]) -> Waits:
    """The figures of some waits."""
    ordered = sorted(waits_ms)
    if not ordered:
        return Waits(0, None, None, None, None)
    mean = sum(ordered) // len(ordered)
    return Waits(len(ordered), mean, nearest_rank(ordered, 50), nearest_rank(ordered, 99), ordered[-1])


def waits_by(schedule: Schedule, key: Callable[[Job], Group]) -> dict[Group, Waits]:
    """The figures of the waits of each group of jobs; of none, where none was granted, as well."""
    groups: dict[Group, list[int]] = {key(job): [] for job in schedule.jobs}
    for job, wait_ms in waited(schedule):
        groups[key(job)].append(wait_ms)
    return {group: waits_of(waits_ms) for group, waits_ms in groups.items()}


def nearest_rank(ordered: Sequence[int], percent: int) -> int:
    """The least of some ascending numbers that `percent` of them do not exceed."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def leased_steps(schedule: Schedule) -> list[tuple[int, int]]:
    """How many MiB are leased on all devices together, from each ms on at which that changes."""
    changes: Counter[int] = Counter()
    for job, outcome in zip(schedule.jobs, schedule.outcomes, strict=True):
        if outcome.granted_at_ms is not None:
            changes[outcome.granted_at_ms] += job.size_mib
            if outcome.ended_at_ms is not None:
                changes[outcome.ended_at_ms] -= job.size_mib
    steps, leased_mib = [], 0
    for at_ms, change_mib in sorted(changes.items()):
        leased_mib += change_mib
        steps.append((at_ms, leased_mib))
    return steps


def _by_reason(outcomes: Iterable[Outcome]) -> dict[str, int]:
    return dict(sorted(Counter(outcome.reason for outcome in outcomes if outcome.ended_at_ms is not None).items()))


def _ordered(groups: dict[str, Waits], order: Sequence[str]) -> dict[str, Waits]:
    return {name: groups[name] for name in order if name in groups}


def _mean_bounded_slowdown(schedule: Schedule) -> float | None:
    slowdowns = []
    for job, outcome in zip(schedule.jobs, schedule.outcomes, strict=True):
        if outcome.granted_at_ms is not None and outcome.ended_at_ms is not None:
            whole_ms = outcome.ended_at_ms - job.submit_ms
            held_ms = outcome.ended_at_ms - outcome.granted_at_ms
            slowdowns.append(max(1.0, whole_ms / max(held_ms, BOUND_MS)))
    return round(sum(slowdowns) / len(slowdowns), 3) if slowdowns else None


def _utilisation(schedule: Schedule) -> float | None:
    began_at_ms, until_ms = schedule.began_at_ms, schedule.until_ms
    could_mib_ms = _area(schedule.capacity, began_at_ms, until_ms)
    return round(_area(leased_steps(schedule), began_at_ms, until_ms) / could_mib_ms, 4) if could_mib_ms else None


def _area(steps: Sequence[tuple[int, int]], from_ms: int, until_ms: int) -> int:
    """The sum over time of what `steps` say, between two moments."""
    ends = [*steps, (until_ms, 0)]
    return sum(mib * max(0, min(end, until_ms) - max(begin, from_ms)) for (begin, mib), (end, _) in pairwise(ends))
