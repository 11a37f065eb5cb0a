"""The core in virtual time: schedules computed by hand, the order at one ms, and nothing lost or promised twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpuboss.core.state import State
from gpuboss.core.verification import Verifier
from gpuboss.events import LeaseIdled, LeaseRenewed
from gpuboss.fields import MS_MAX
from gpuboss.simulation.figures import leased_steps
from gpuboss.simulation.virtual_time import run
from tests.core.auditor import audit
from tests.core.scenario import Entry, padded
from tests.simulation.traces import asks, became, drawn, facts_of, outcome_of, simulated


def test_one_after_the_other() -> None:
    jobs = [asks("a", 0, 100, 10), asks("b", 0, 100, 5), asks("c", 2, 100, 1)]
    assert became(simulated(jobs, 100)) == {
        "a": (0, 10, "released"),
        "b": (10, 15, "released"),
        "c": (15, 16, "released"),
    }


def test_side_by_side_where_there_is_room() -> None:
    jobs = [asks("a", 7, 60, 10), asks("b", 8, 60, 10), asks("c", 9, 40, 10)]
    schedule = simulated(jobs, 100, 60)
    assert [outcome.granted_at_ms for outcome in schedule.outcomes] == [7, 8, 9]
    assert [outcome.devices for outcome in schedule.outcomes] == [("cuda:1",), ("cuda:0",), ("cuda:0",)]


def test_the_classes_have_their_head_starts() -> None:
    jobs = [asks("a", 0, 100, 10), asks("b", 1, 100, 10, priority="low"), asks("c", 2, 100, 10, priority="high")]
    assert [granted for granted, _, _ in became(simulated(jobs, 100)).values()] == [0, 20, 10]


def test_a_gang_takes_all_its_devices_at_once() -> None:
    jobs = [asks("a", 0, 100, 10), asks("gang", 1, 100, 10, gpus=2), asks("huge", 2, 101, 10)]
    schedule = simulated(jobs, 100, 100)
    assert (outcome_of(schedule, "gang").granted_at_ms, outcome_of(schedule, "gang").devices) == (
        10,
        ("cuda:0", "cuda:1"),
    )
    assert became(schedule)["huge"] == (None, 2, "impossible")


def test_a_lease_ends_by_its_ttl_where_that_comes_first() -> None:
    jobs = [asks("a", 0, 100, 10, ttl_ms=4), asks("b", 0, 100, 4, ttl_ms=4), asks("c", 0, 100, 4, ttl_ms=9)]
    assert became(simulated(jobs, 100)) == {
        "a": (0, 4, "expired"),
        "b": (4, 8, "expired"),
        "c": (8, 12, "released"),
    }


def test_a_wait_ends_by_its_time_out_or_when_it_is_taken_back() -> None:
    jobs = [
        asks("a", 5, 100, 10),
        asks("b", 5, 100, 1, wait_ms=3),
        asks("c", 5, 100, 1, patience_ms=4),
        asks("d", 5, 100, 3, patience_ms=11),
    ]
    assert became(simulated(jobs, 100)) == {
        "a": (5, 15, "released"),
        "b": (None, 8, "timeout"),
        "c": (None, 9, "cancelled"),
        "d": (15, 18, "released"),
    }


def test_what_is_said_of_a_lease_is_said_as_long_after_its_grant() -> None:
    renewed = LeaseRenewed(padded("b"), "imajin", 10)
    jobs = [asks("a", 0, 100, 7), asks("b", 1, 100, 50, ttl_ms=5, said=((4, renewed),))]
    log: list[Entry] = []
    assert became(simulated(jobs, 100, log=log))["b"] == (7, 21, "expired")
    idled = LeaseIdled(padded("b"), "imajin")
    jobs = [asks("b", 1, 100, 50, ttl_ms=5, said=((6, idled),))]
    log.clear()
    simulated(jobs, 100, log=log)
    assert b"LeaseIdled" not in [entry.fields[1] for entry in log], "its holder knows that it is over"


def test_a_lease_that_nobody_gives_back_is_held_at_the_end() -> None:
    schedule = simulated([asks("a", 0, 100, None), asks("b", 1, 100, 1), asks("late", 90, 1, 1)], 100)
    assert became(schedule) == {"a": (0, None, ""), "b": (None, None, ""), "late": (None, None, "")}
    assert schedule.until_ms == 1 + 1_800_000, "the last that is decided: `b` starves"


def test_an_expiry_is_decided_before_the_inputs_of_its_ms() -> None:
    jobs = [
        asks("a", 0, 100, 99, ttl_ms=10),
        asks("waits", 5, 100, 3, priority="low"),
        asks("comes", 10, 100, 1, priority="high"),
    ]
    log: list[Entry] = []
    granted = {name: at_ms for name, (at_ms, _, _) in became(simulated(jobs, 100, log=log)).items()}
    assert granted == {"a": 0, "comes": 10, "waits": 11}, "who waits is looked at once for both"
    at_10 = [entry.fields[1].decode() for entry in log if entry.id.startswith("10-")]
    assert at_10[:4] == ["ClockTicked", "LeaseEnded", "LeaseRequested", "LeaseGranted"]


def test_who_waits_is_looked_at_also_where_nobody_has_anything_to_say_at_the_ms_of_an_expiry() -> None:
    jobs = [asks("a", 0, 100, 10, ttl_ms=10), asks("b", 1, 100, 5), asks("c", 2, 100, 5, patience_ms=8)]
    assert became(simulated(jobs, 100)) == {
        "a": (0, 10, "expired"),
        "b": (10, 15, "released"),
        "c": (None, 10, "cancelled"),
    }
    assert became(simulated(jobs[:2], 100))["b"] == (10, 15, "released")


def test_submissions_come_before_releases() -> None:
    jobs = [
        asks("a", 0, 100, 10),
        asks("waits", 5, 100, 3, priority="low"),
        asks("comes", 10, 100, 1, priority="high"),
    ]
    granted = {name: at_ms for name, (at_ms, _, _) in became(simulated(jobs, 100)).items()}
    assert granted == {"a": 0, "waits": 11, "comes": 10}


def test_submissions_of_one_ms_come_in_the_order_of_the_jobs() -> None:
    jobs = [asks(name, 3, 100, 1) for name in ("zz", "mm", "aa")]
    assert [granted for granted, _, _ in became(simulated(jobs, 100)).values()] == [3, 4, 5]


def test_releases_of_one_ms_come_in_the_order_of_the_grants() -> None:
    """The first lease has the greater id and the later place among the jobs."""
    jobs = [asks("aa", 1, 100, 9), asks("zz", 0, 100, 10), asks("next", 2, 100, 1)]
    schedule = simulated(jobs, 100, 100)
    assert outcome_of(schedule, "zz").devices == ("cuda:0",)
    assert (outcome_of(schedule, "next").granted_at_ms, outcome_of(schedule, "next").devices) == (10, ("cuda:0",))


def test_a_trace_starts_at_its_own_first_submission() -> None:
    log: list[Entry] = []
    simulated([asks("b", 900, 1, 0), asks("a", 800, 1, 0)], 100, log=log)
    assert log[0].id == "800-0"
    log.clear()
    simulated([asks("a", 0, 1, 0)], 100, log=log)
    assert log[0].id == "0-1", "0-0 is no entry's id"


def test_whoever_watches_sees_the_submissions_one_by_one_in_their_order() -> None:
    jobs = [asks("b", 9, 1, 1), asks("a", 8, 1, 1)]
    seen: list[int] = []

    def watched(order: Iterator[int]) -> Iterator[int]:
        for index in order:
            seen.append(index)
            yield index

    assert run(jobs, facts_of(jobs, 100), watched=watched).outcomes == simulated(jobs, 100).outcomes
    assert seen == [1, 0]


def test_no_jobs_at_all() -> None:
    assert simulated([], 100).until_ms == 0


def test_it_ends_where_the_logs_clock_does() -> None:
    jobs = [asks("a", MS_MAX - 5, 100, 10, ttl_ms=20), asks("b", MS_MAX - 5, 100, 1, wait_ms=5)]
    assert became(simulated(jobs, 100)) == {"a": (MS_MAX - 5, None, ""), "b": (None, MS_MAX, "timeout")}


@pytest.mark.parametrize("seed", range(6))
def test_every_request_ends_once_and_nothing_is_promised_twice(seed: int) -> None:
    log: list[Entry] = []
    schedule = simulated(drawn(seed), 24_576, 24_576, 8_192, log=log)
    assert audit(log) == []
    verifier = Verifier(State(), frozenset)
    for entry in log:
        verifier.feed(*entry)
    assert (verifier.finish(), verifier.divergences) == (0, [])
    answers = [entry.fields[1] for entry in log if entry.fields[1] in (b"LeaseGranted", b"LeaseDenied")]
    ends = [entry.fields[1] for entry in log if entry.fields[1] == b"LeaseEnded"]
    assert len(answers) == len(schedule.jobs)
    assert len(ends) == answers.count(b"LeaseGranted") > 30
    assert all(outcome.ended_at_ms is not None and outcome.reason for outcome in schedule.outcomes)
    assert max(mib for _, mib in leased_steps(schedule)) <= 24_576 + 24_576 + 8_192
    assert leased_steps(schedule)[-1][1] == 0
    assert b"EventRejected" not in [entry.fields[1] for entry in log]


def test_the_same_jobs_give_the_same_log() -> None:
    logs: list[list[Entry]] = [[], []]
    for log in logs:
        simulated(drawn(1), 24_576, 24_576, log=log)
    assert logs[0] == logs[1]
    simulated(drawn(2), 24_576, 24_576, log=logs[1])
    assert logs[0] != logs[1]
