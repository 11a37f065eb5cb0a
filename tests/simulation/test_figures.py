"""The figures of a schedule, each computed by hand."""

from __future__ import annotations

import pytest

from gpuboss.simulation.figures import Waits, figures_of, leased_steps, nearest_rank, waits_of
from gpuboss.simulation.schedule import Fact, Job, Outcome, Schedule, capacity_of
from tests.core.scenario import device_lost, observed
from tests.simulation.traces import asks

JOBS: list[Job] = [
    asks("a", 0, 100, 0, priority="high"),
    asks("b", 0, 50, 0, gpus=2),
    asks("c", 10_000, 40, 0),
    asks("d", 10_000, 40, 0),
    asks("e", 10_000, 40, 0),
]
OUTCOMES = [
    Outcome(0, 20_000, ("cuda:0",), "released"),
    Outcome(30_001, 30_002, ("cuda:0", "cuda:1"), "released"),
    Outcome(10_000, 40_000, ("cuda:1",), "expired"),
    Outcome(None, 15_000, (), "timeout"),
    Outcome(40_000, None, ("cuda:1",), ""),
]
SCHEDULE = Schedule(JOBS, OUTCOMES, [(0, 200)], 50_000)


def test_all_of_them() -> None:
    figures = figures_of(SCHEDULE)
    assert (figures.requests, figures.granted, figures.unanswered, figures.held) == (5, 4, 0, 1)
    assert (figures.denied, figures.ended) == ({"timeout": 1}, {"expired": 1, "released": 2})
    assert (figures.began_at_ms, figures.until_ms) == (0, 50_000)
    assert figures.wait_ms.all == Waits(4, 15_000, 0, 30_001, 30_001)  # 0, 0, 30,000 and 30,001: 15,000.25
    assert figures.wait_ms.per_class == {
        "high": Waits(1, 0, 0, 0, 0),
        "normal": Waits(3, 20_000, 30_000, 30_001, 30_001),
    }
    assert list(figures.wait_ms.per_class) == ["high", "normal"]
    assert figures.wait_ms.per_size == {
        40: Waits(2, 15_000, 0, 30_000, 30_000),
        100: Waits(2, 15_000, 0, 30_001, 30_001),
    }
    assert list(figures.wait_ms.per_size) == [40, 100]
    # Slowdowns: 20 s / 20 s, 30.002 s / 10 s, 30 s / 30 s; who still holds has none.
    assert figures.mean_bounded_slowdown == 1.667
    # 100 MiB for 20 s, 100 for 1 ms, 40 for 30 s, 40 for 10 s, of 200 MiB for 50 s.
    assert figures.utilisation == round((2_000_000 + 100 + 1_200_000 + 400_000) / 10_000_000, 4)


def test_nothing_at_all() -> None:
    figures = figures_of(Schedule([], [], [], 0))
    assert (figures.requests, figures.utilisation, figures.mean_bounded_slowdown) == (0, None, None)
    assert figures.wait_ms.all == Waits(0, None, None, None, None)


def test_a_short_lease_counts_as_one_of_ten_seconds() -> None:
    schedule = Schedule([asks("a", 0, 1, 0)], [Outcome(2_000, 3_000, ("cuda:0",), "released")], [], 10_000)
    assert figures_of(schedule).mean_bounded_slowdown == 1.0
    schedule = Schedule([asks("a", 0, 1, 0)], [Outcome(25_000, 25_000, ("cuda:0",), "released")], [], 10_000)
    assert figures_of(schedule).mean_bounded_slowdown == 2.5


def test_who_still_waits_is_unanswered() -> None:
    assert figures_of(Schedule([asks("a", 0, 1, 0)], [Outcome()], [], 5)).unanswered == 1


@pytest.mark.parametrize(
    ("count", "percent", "expected"),
    [(1, 50, 1), (2, 50, 1), (3, 50, 2), (100, 99, 99), (101, 99, 100), (99, 99, 99), (200, 99, 198)],
)
def test_the_nearest_rank(count: int, percent: int, expected: int) -> None:
    assert nearest_rank(range(1, count + 1), percent) == expected


def test_waits_are_ordered_first() -> None:
    assert waits_of([9, 1, 5]) == Waits(3, 5, 5, 9, 9)


def test_the_steps_of_what_is_leased() -> None:
    expected = [(0, 100), (10_000, 140), (20_000, 40), (30_001, 140), (30_002, 40), (40_000, 40)]
    assert leased_steps(SCHEDULE) == expected


def test_what_the_devices_can_hold_follows_what_is_known_of_them() -> None:
    facts = [
        Fact(5, observed(0, 1_000, reserved_mib=100, margin_mib=50)),
        Fact(5, observed(1, 500)),
        Fact(9, observed(1, 600, healthy=False)),
        Fact(20, device_lost(0)),
    ]
    assert capacity_of(facts) == [(5, 1_350), (9, 1_450), (20, 600)]


def test_utilisation_follows_the_devices_and_begins_with_the_first_submission() -> None:
    jobs, outcomes = [asks("a", 10, 100, 0)], [Outcome(10, 30, ("cuda:0",), "released")]
    schedule = Schedule(jobs, outcomes, [(0, 100), (20, 300)], 30)
    assert figures_of(schedule).utilisation == round(2_000 / (100 * 10 + 300 * 10), 4)
