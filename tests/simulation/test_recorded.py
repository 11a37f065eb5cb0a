"""A recorded log read back as a schedule: what it says, what it leaves open, what is known without its beginning."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gpuboss.cli.look_ahead import forged_ids
from gpuboss.core import snapshot
from gpuboss.core.state import State
from gpuboss.events import ClockTicked, LeaseGranted, LeaseReleased, LeaseRenewed, LeaseRequested
from gpuboss.log import Entry as LogEntry
from gpuboss.simulation.recorded import Recording
from gpuboss.simulation.schedule import Job, Outcome, Schedule
from tests.core.scenario import START_MS, Entry, Scenario, idled, padded, renewed, session_lost
from tests.simulation.traces import drawn, simulated


def recording_of(entries: list[Entry], start: State | None) -> Recording:
    read = [LogEntry(*entry) for entry in entries]
    recording = Recording(start)
    recording.collect(read, forged_ids(iter(read)))
    return recording


def recorded(log: Scenario) -> dict[str, tuple[Job, Outcome]]:
    """What a story records, by the short names of its requests."""
    schedule = recording_of(log.entries, State()).schedule()
    return {
        job.request.lease_id.rstrip("_"): (job, outcome)
        for job, outcome in zip(schedule.jobs, schedule.outcomes, strict=True)
    }


@pytest.mark.parametrize("seed", range(4))
def test_a_simulated_log_says_what_was_simulated(seed: int) -> None:
    log: list[Entry] = []
    schedule = simulated(drawn(seed), 24_576, 24_576, 8_192, log=log)
    found = recording_of(log, State())
    assert found.left_out == set()
    by_id = dict(zip([job.request.lease_id for job in schedule.jobs], schedule.outcomes, strict=True))
    again = found.schedule()
    assert {job.request.lease_id: outcome for job, outcome in zip(again.jobs, again.outcomes, strict=True)} == by_id
    assert {job.request for job in again.jobs} == {job.request for job in schedule.jobs}
    assert (again.began_at_ms, again.until_ms) == (schedule.began_at_ms, schedule.until_ms)
    assert again.capacity == schedule.capacity


def test_a_lease_is_held_as_long_as_it_was() -> None:
    log = Scenario(24_576, lock_delay_ms=5_000)
    log.request("given", 1)
    log.now_ms += 700
    log.request("taken", 1, ttl_ms=60_000)
    log.request("lost", 1, session="session")
    log.request("expired", 1, ttl_ms=300)
    log.request("held", 1)
    log.now_ms += 200
    log.release("given")
    log.revoke("taken")
    log.happens(session_lost("session"))
    log.tick(after_ms=150)
    found = recorded(log)
    assert {name: job.hold_ms for name, (job, _) in found.items()} == {
        "given": 900,
        "taken": 200,
        "lost": 200,
        "expired": 350,
        "held": None,
    }
    assert {name: outcome.reason for name, (_, outcome) in found.items()} == {
        "given": "released",
        "taken": "revoked",
        "lost": "session_lost",
        "expired": "expired",
        "held": "",
    }
    assert [job.submit_ms - START_MS for job, _ in found.values()] == [0, 700, 700, 700, 700]


def test_what_was_said_of_a_lease_counts_from_its_grant() -> None:
    log = Scenario(100)
    log.request("first", 100)
    log.request("second", 100, ttl_ms=1_000, reclaimable=True)
    log.now_ms += 50
    log.release("first")
    log.now_ms += 30
    log.says(renewed("second", 5_000))
    log.says(renewed("second", 5_000, service="stranger"))
    log.says(idled("second"))
    job, outcome = recorded(log)["second"]
    assert outcome.granted_at_ms == START_MS + 50
    assert job.said == ((30, LeaseRenewed(padded("second"), "imajin", 5_000)), (30, idled("second")))


def test_who_gave_up_does_so_again_and_the_hold_of_others_is_the_median_of_their_service() -> None:
    log = Scenario(100)
    for name, held_ms in (("a", 10), ("b", 20), ("c", 90)):
        log.request(name, 100)
        log.now_ms += held_ms
        log.release(name)
    log.request("other", 100, service="ollama")
    log.now_ms += 7
    log.release("other", service="ollama")
    log.request("holds", 100)
    log.request("patient", 100)
    log.request("hasty", 100, service="ollama")
    log.request("times", 100, service="whisper", wait_ms=5)
    log.request("huge", 101, service="whisper", ttl_ms=3)
    log.request("lost", 100, service="whisper", session="session")
    log.now_ms += 4
    log.release("hasty", service="ollama")
    log.happens(session_lost("session", service="whisper"))
    log.tick(after_ms=1)
    found = recorded(log)
    assert {name: (found[name][0].hold_ms, found[name][0].patience_ms) for name in list(found)[5:]} == {
        "patient": (20, None),
        "hasty": (7, 4),
        "times": (10, None),
        "huge": (10, None),
        "lost": (10, 4),
    }
    assert [found[name][1].reason for name in ("patient", "hasty", "times", "huge")] == [
        "",
        "cancelled",
        "timeout",
        "impossible",
    ]


def test_where_no_lease_ever_ended_a_hold_is_the_ttl() -> None:
    log = Scenario(100)
    log.request("huge", 101, ttl_ms=3)
    log.request("vast", 102)
    assert [job.hold_ms for job, _ in recorded(log).values()] == [3, 0]


def test_what_others_wrote_in_the_schedulers_name_does_not_count() -> None:
    log = Scenario(100)
    log.request("first", 100)
    log.request("second", 100)
    granted = next(told.decision for told in log.heard if isinstance(told.decision, LeaseGranted))
    log.forges(replace(granted, lease_id=padded("second")), epoch=1, seq=99)
    log.writes(b"LeaseRequested", b'{"lease_id":"third___","service":"imajin","vram_mib":0}')
    found = recorded(log)
    assert list(found) == ["first", "second"]
    assert found["second"][1].granted_at_ms is None


def test_an_end_counts_when_its_cause_was_there_however_late_it_was_committed() -> None:
    log = Scenario(100)
    log.request("first", 100)
    log.write(LeaseReleased(padded("first"), "imajin"))
    log.now_ms += 50
    log.write(LeaseRequested(padded("second"), "imajin", 1))
    log.settle()
    assert recorded(log)["first"][1].ended_at_ms == START_MS


def test_the_clock_is_the_logs_also_where_ids_stand_still() -> None:
    log = Scenario(100)
    log.request("first", 100, ttl_ms=300)
    log.happens(ClockTicked(START_MS + 400))  # the server's clock went back: ids wait for it, ticks go on
    log.request("second", 100)
    found = recorded(log)
    assert found["first"][1].ended_at_ms == START_MS + 400
    assert found["second"][0].submit_ms == START_MS + 400


def halves(log: Scenario, at: str) -> tuple[list[Entry], list[Entry]]:
    """The log up to and with an entry, and what comes behind it."""
    number = [entry.id for entry in log.entries].index(at) + 1
    return log.entries[:number], log.entries[number:]


def story() -> Scenario:
    """Before its cut: one lease is over, one held and renewed, one waits."""
    log = Scenario(100, 100)
    log.request("over", 100)
    log.request("held", 100, ttl_ms=50)
    log.now_ms += 10
    log.says(renewed("held", 500))
    log.release("over")
    log.request("also", 100)
    log.now_ms += 5
    log.request("waits", 100)
    return log


def finish(log: Scenario) -> Scenario:
    """After its cut: all are released, and a new one comes."""
    log.now_ms += 20
    log.release("held")
    log.release("also")
    log.now_ms += 20
    log.release("waits")
    log.request("new", 50)
    log.now_ms += 1
    log.release("new")
    return log


def test_with_a_snapshot_those_who_held_or_waited_then_are_known() -> None:
    log = story()
    state = snapshot.load(snapshot.dump(log.state))
    cut = log.entries[-1].id
    _, behind = halves(finish(log), cut)
    found = recording_of(behind, state)
    schedule = found.schedule()
    assert found.left_out == set()
    assert outcomes_by_name(schedule) == {
        "held": (0, 0, 35),
        "also": (10, 10, 35),
        "waits": (15, 35, 55),
        "new": (55, 55, 56),
    }
    [held] = [job for job in schedule.jobs if job.request.lease_id == padded("held")]
    assert held.said == ((10, LeaseRenewed(padded("held"), "imajin", 500)),)
    assert schedule.capacity == [(START_MS, 200)]


def test_a_lease_that_had_ended_by_then_is_over_also_where_its_memory_was_not_back() -> None:
    log = Scenario(100, lock_delay_ms=5_000)
    log.request("ended", 100)
    log.revoke("ended")
    assert log.state.ledger.leases
    assert recording_of([], log.state).schedule().jobs == []


def test_without_one_what_began_before_is_left_out() -> None:
    log = story()
    cut = log.entries[-1].id
    log.device(0, 100, foreign_mib=1)
    log.now_ms += 3
    log.device(0, 200)
    _, behind = halves(finish(log), cut)
    found = recording_of(behind, None)
    assert outcomes_by_name(found.schedule()) == {"new": (58, 58, 59)}
    assert found.left_out == {padded("held"), padded("also"), padded("waits")}
    assert found.schedule().capacity == [(START_MS + 15, 100), (START_MS + 18, 200)]


def test_a_device_that_is_seen_late_was_there_from_the_first_entry_on() -> None:
    log = story()
    cut = log.entries[-1].id
    log.request("next", 1)
    log.now_ms += 9
    log.device(2, 300)
    log.device(2, 400)
    _, behind = halves(log, cut)
    assert recording_of(behind, None).schedule().capacity == [(START_MS + 15, 300), (START_MS + 24, 400)]
    assert recording_of(log.entries, State()).schedule().capacity == [(START_MS, 200), (START_MS + 24, 600)]


def test_an_id_that_is_used_again_a_day_later_is_left_out() -> None:
    log = Scenario(100)
    log.request("again", 100)
    log.release("again")
    log.now_ms += 25 * 3_600_000
    log.request("again", 100)
    log.release("again")
    found = recording_of(log.entries, State())
    assert outcomes_by_name(found.schedule()) == {"again": (0, 0, 0)}
    assert found.left_out == {padded("again")}


def outcomes_by_name(schedule: Schedule) -> dict[str, tuple[int, int | None, int | None]]:
    """Submission, grant and end of each, from the start of the story on."""
    return {
        job.request.lease_id.rstrip("_"): (
            job.submit_ms - START_MS,
            None if outcome.granted_at_ms is None else outcome.granted_at_ms - START_MS,
            None if outcome.ended_at_ms is None else outcome.ended_at_ms - START_MS,
        )
        for job, outcome in zip(schedule.jobs, schedule.outcomes, strict=True)
    }
