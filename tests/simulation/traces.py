"""Traces to simulate: written by hand in one line a request, or drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from gpuboss.config import PolicyConfig
from gpuboss.events import LeaseRequested
from gpuboss.simulation.farm import farm
from gpuboss.simulation.schedule import Fact, Job, Outcome, Schedule
from gpuboss.simulation.virtual_time import run
from tests.core.scenario import Entry, padded

SIZES_MIB = (1, 2_048, 4_096, 8_192, 16_384, 24_576, 40_960)
DEVICES = ((0, 24_576), (1, 24_576), (2, 8_192))


def asks(name: str, submit_ms: int, vram_mib: int, hold_ms: int | None, **fields: Any) -> Job:
    """One request; `patience_ms` and `said` are the job's, further fields as in `LeaseRequested`."""
    about = {key: fields.pop(key) for key in ("patience_ms", "said") if key in fields}
    return Job(
        LeaseRequested(padded(name), fields.pop("service", "imajin"), vram_mib, **fields), submit_ms, hold_ms, **about
    )


def simulated(jobs: Sequence[Job], *sizes_mib: int, log: list[Entry] | None = None) -> Schedule:
    """What becomes of jobs on devices of these sizes; the made-up log goes into `log`."""
    return run(jobs, facts_of(jobs, *sizes_mib), keep=None if log is None else lambda *entry: log.append(Entry(*entry)))


def facts_of(jobs: Sequence[Job], *sizes_mib: int) -> list[Fact]:
    """The default rules and devices of these sizes, from the first submission on."""
    return farm(list(enumerate(sizes_mib)), PolicyConfig(), min((job.submit_ms for job in jobs), default=0))


def became(schedule: Schedule) -> dict[str, tuple[int | None, int | None, str]]:
    """Grant, end and reason of each job, by its short name."""
    return {
        job.request.lease_id.rstrip("_"): (outcome.granted_at_ms, outcome.ended_at_ms, outcome.reason)
        for job, outcome in zip(schedule.jobs, schedule.outcomes, strict=True)
    }


def outcome_of(schedule: Schedule, name: str) -> Outcome:
    """What became of the job of this short name."""
    return next(
        outcome
        for job, outcome in zip(schedule.jobs, schedule.outcomes, strict=True)
        if job.request.lease_id == padded(name)
    )


def drawn(seed: int, count: int = 150, start_ms: int = 1_700_000_000_000) -> list[Job]:
    """Jobs of all kinds, in no order of time; many at one ms."""
    random = Random(seed)
    jobs = []
    for number in range(count):
        jobs.append(
            asks(
                f"job-{number:05}",
                start_ms + random.choice((0, 0, 1_000, 10)) * random.randint(0, 60),
                random.choice(SIZES_MIB),
                random.choice((0, 1, 100, 5_000)),
                service=random.choice(("imajin", "ollama", "whisper")),
                priority=random.choice(("low", "normal", "high")),
                gpus=random.choice((1, 1, 1, 2, 3)),
                exclusive=random.random() < 0.1,
                device=random.choice(("cuda:0", "cuda:2")) if random.random() < 0.1 else None,
                ttl_ms=random.choice((50, 5_000)) if random.random() < 0.3 else None,
                wait_ms=random.choice((50, 20_000)) if random.random() < 0.3 else None,
                patience_ms=random.choice((0, 50, 9_000)) if random.random() < 0.1 else None,
            )
        )
    return jobs
