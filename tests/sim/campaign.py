"""Many seeds, on several processors: what was injected, what was found, how fast."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from typing import NamedTuple

from tests.sim.guards import Guards
from tests.sim.world import World

SEEDS_OF_WORKERS = 1_000  # each world leaves a little behind in its process, which grows slow


class Outcome(NamedTuple):
    """What became of one seed."""

    seed: int
    problems: list[str]
    steps: int
    simulated_us: int
    faults: dict[str, int]
    requests: int
    loads: int
    asked_back: int
    takeovers_us: list[int]
    recoveries: int
    digest: str


def run_seed(seed: int, without: str | None = None, *, is_short: bool = False) -> Outcome:
    """One seed; `without` one of the guards."""
    world = World(seed, Guards(without), is_short=is_short).run()
    return Outcome(
        seed,
        world.problems,
        world.timeline.steps,
        world.timeline.now_us,
        world.counts,
        world.asked,
        world.loaded,
        world.asked_back,
        world.takeovers_us,
        world.judge.recoveries + world.judge.promises.recoveries,
        world.digest,
    )


def run_seeds(
    seeds: Iterable[int], jobs: int = 1, without: str | None = None, *, is_short: bool = False
) -> Generator[Outcome, None, None]:
    """All of them, as they are done."""
    if jobs == 1:
        yield from (run_seed(seed, without, is_short=is_short) for seed in seeds)
        return
    left = iter(seeds)
    while part := list(islice(left, SEEDS_OF_WORKERS)):
        yield from _run_part(part, jobs, without, is_short)


def _run_part(part: list[int], jobs: int, without: str | None, is_short: bool) -> Generator[Outcome, None, None]:
    """Seeds in worker processes of their own."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), _obey_the_parent) as pool:

        def begin(seed: int) -> Future[Outcome]:
            return pool.submit(run_seed, seed, without, is_short=is_short)

        try:
            left = iter(part)
            planned = {begin(seed) for seed in islice(left, 4 * jobs)}
            while planned:
                done, planned = wait(planned, return_when=FIRST_COMPLETED)
                planned |= {begin(seed) for seed in islice(left, len(done))}
                yield from [each.result() for each in done]
        finally:
            pool.shutdown(cancel_futures=True)


def _obey_the_parent() -> None:
    """A signal to the whole group is the parent's affair; where the parent is gone, so is the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class Campaign:
    """What many seeds came to."""

    def __init__(self, planned: int) -> None:
        self.planned = planned
        self.seeds = 0
        self.failed: list[Outcome] = []
        self._totals: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._takeovers_us: list[int] = []
        self._began_s = self._shown_s = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """One more seed."""
        self.seeds += 1
        if outcome.problems:
            self.failed.append(outcome)
        self._totals.update(
            steps=outcome.steps,
            simulated_us=outcome.simulated_us,
            requests=outcome.requests,
            loads=outcome.loads,
            asked_back=outcome.asked_back,
            recoveries=outcome.recoveries,
        )
        self._faults.update(outcome.faults)
        self._takeovers_us += outcome.takeovers_us

    def progress(self, every_s: float) -> str | None:
        """How far it is, so long after the last time; None before."""
        now_s = time.monotonic()
        if now_s - self._shown_s < every_s:
            return None
        self._shown_s = now_s
        took_s = now_s - self._began_s
        left_s = took_s / self.seeds * (self.planned - self.seeds)
        return (
            f"{self.seeds:,} of {self.planned:,} seeds, {self._totals['steps'] / took_s:,.0f} steps a second, "
            f"{len(self.failed)} broken, about {left_s / 60:,.0f} min left"
        )

    def summary(self) -> str:
        """For people."""
        took_s = max(0.001, time.monotonic() - self._began_s)
        totals, problems = self._totals, [problem for outcome in self.failed for problem in outcome.problems]
        lost = sum(problem.startswith("L") for problem in problems)
        lines = [
            f"{self.seeds:,} seeds, {totals['steps']:,} steps, {totals['simulated_us'] / 3.6e9:,.1f} simulated hours, "
            f"in {took_s:,.0f} s ({totals['steps'] / took_s:,.0f} steps a second)",
            f"{totals['requests']:,} requests, {totals['loads']:,} of them used; {totals['asked_back']:,} leases asked "
            f"back; {totals['recoveries']:,} lost logs recovered",
            f"{sum(self._faults.values()):,} faults:",
            *(f"  {count:9,} {kind}" for kind, count in sorted(self._faults.items())),
            f"takeovers: {_times(self._takeovers_us)}",
            f"promises broken: {len(problems) - lost}; answers lost: {lost}",
        ]
        return "\n".join(lines)


def _times(times_us: list[int]) -> str:
    if not times_us:
        return "none"
    ordered = sorted(times_us)
    return f"{len(ordered):,}, p50 {ordered[len(ordered) // 2] / 1000:,.0f} ms, max {ordered[-1] / 1000:,.0f} ms"
