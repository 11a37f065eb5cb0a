"""The server's wall clock jumps by an hour: nothing is due early, nothing gets stuck, and whoever leads goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gpuboss.connection import connect
from gpuboss.keys import Keys
from gpuboss_scheduler.chores import Chores
from gpuboss_scheduler.clock import BEHIND_MS, STOOD_MS, LogClock
from gpuboss_scheduler.lease_facts import LeaseFacts
from gpuboss_scheduler.reign import Reign
from gpuboss_scheduler.sessions import Trust, lose_silent_sessions
from gpuboss_scheduler.snapshots import Snapshots
from tests.core.scenario import Scenario
from tests.real.false_clock import NOT_HERE, FalseClock, library
from tests.real.log_check import faults_of
from tests.real.redis_view import Entry, RedisView, Service
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer, binary_of
from tests.real.test_sessions import Heartbeat

HOUR_S = 3600
TTL_MS = 2_000  # of sessions
EARLY_S, LATE_S = STOOD_MS / 1000, 1.5

jumps = pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S], ids=["ahead", "back"])
needs_library = pytest.mark.skipif(library() is None or binary_of("valkey") is None, reason=NOT_HERE)


@pytest.fixture
def clock(tmp_path: Path) -> FalseClock:
    return FalseClock(tmp_path / "clock")


@pytest.fixture
def server(clock: FalseClock, tmp_path: Path) -> Iterator[RealServer]:
    """The embedded one: Redis' own allocator does not bear with the library."""
    with RealServer(tmp_path / "server", "valkey", environ=clock.environ) as server:
        yield server


@pytest.fixture
def scheduler(server: RealServer) -> Iterator[SchedulerProcess]:
    with SchedulerProcess(server.url, session_ttl=f"{TTL_MS}ms") as scheduler:
        scheduler.wait_leading()
        yield scheduler


def ended_after_s(service: Service, lease_id: str, since_s: float) -> float:
    """How long a lease lived until its holder was told of its end, which is that of its TTL."""
    assert service.told(lease_id, "LeaseEnded").data["reason"] == "expired"
    return time.monotonic() - since_s


def jump(clock: FalseClock, view: RedisView, seconds: int) -> None:
    """Have the server's clock show so much more, and wait until it does."""
    clock.set_ahead(seconds)
    eventually(lambda: abs(int(view.client.time()[0]) - time.time() - seconds) < 5, "the server's clock to jump")


def assert_on_time(lived_s: float, ttl_s: float) -> None:
    assert ttl_s - EARLY_S <= lived_s <= ttl_s + LATE_S


@needs_library
@jumps
def test_leases_end_when_they_should(
    view: RedisView, clock: FalseClock, scheduler: SchedulerProcess, jump_s: int
) -> None:
    service = Service(view, "service")
    before_s = time.monotonic()
    before = service.lease(1_000, ttl_ms=5_000)
    jump(clock, view, jump_s)
    jumped_s = time.monotonic()
    eventually(lambda: time.monotonic() > jumped_s + 2.5, "some time in which nothing happens")
    later_s = time.monotonic()
    later = service.lease(1_000, ttl_ms=4_000)
    assert_on_time(ended_after_s(service, before, before_s), 5.0)
    assert_on_time(ended_after_s(service, later, later_s), 4.0)
    again_s = time.monotonic()
    again = service.lease(1_000, ttl_ms=1_000)
    assert_on_time(ended_after_s(service, again, again_s), 1.0)
    deltas_ms = [entry.data["delta_ms"] for entry in view.of_type("ClockJumped")]
    assert deltas_ms
    assert all((delta_ms > 0) == (jump_s > 0) for delta_ms in deltas_ms)
    assert view.scheduler()["epoch"] == "1"


@needs_library
@jumps
def test_who_waits_is_denied_in_time(
    view: RedisView, clock: FalseClock, scheduler: SchedulerProcess, jump_s: int
) -> None:
    service = Service(view, "service")
    service.lease(24_576, gpus=2)
    asked_s = time.monotonic()
    waiting = service.queue(1_000, wait_ms=3_000)
    jump(clock, view, jump_s)
    assert service.answer(waiting).data["reason"] == "timeout"
    assert_on_time(time.monotonic() - asked_s, 3.0)


@needs_library
@jumps
def test_who_is_dead_is_declared_lost_and_who_lives_is_not(
    view: RedisView, server: RealServer, clock: FalseClock, scheduler: SchedulerProcess, jump_s: int
) -> None:
    living = Service(view, "living", session="living-session", ttl_ms=TTL_MS)
    mortal = Service(view, "mortal", session="mortal-session", ttl_ms=TTL_MS)
    with Heartbeat(server, ("living", "living-session"), ttl_ms=TTL_MS):
        kept, left = living.lease(1_000), mortal.lease(1_000)
        jump(clock, view, jump_s)
        jumped_s = time.monotonic()
        assert mortal.told(left, "LeaseEnded").data["reason"] == "session_lost"
        assert time.monotonic() - jumped_s <= 2 * TTL_MS / 1000 + LATE_S
        assert kept in view.rows("leases")
    assert [entry.data["service"] for entry in view.of_type("SessionLost")] == ["mortal"]


@needs_library
def test_memory_that_may_be_in_use_is_not_given_back_early(
    view: RedisView, server: RealServer, clock: FalseClock
) -> None:
    """The lock delay counts from when the lease ended, also where ids stand still."""
    with SchedulerProcess(server.url, lock_delay="3s") as scheduler:
        scheduler.wait_leading()
        service = Service(view, "service")
        held = service.lease(1_000)
        jump(clock, view, -HOUR_S)
        jumped_s = time.monotonic()
        eventually(lambda: time.monotonic() > jumped_s + 4, "more than a lock delay in which nothing happens")
        ended_s = time.monotonic()
        view.append("LeaseRevoked", lease_id=held, reason="test", by="test")
        reclaimed: Entry = view.wait_entry("VramReclaimed", lease_id=held)
        assert reclaimed.data["how"] == "lock_delay"
        assert_on_time(time.monotonic() - ended_s, 3.0)
        assert faults_of(view) == []


@needs_library
def test_nothing_is_due_early_where_the_clock_jumped_while_nobody_led(
    view: RedisView, server: RealServer, clock: FalseClock
) -> None:
    service = Service(view, "service")
    with SchedulerProcess(server.url) as leader:
        leader.wait_leading()
        with SchedulerProcess(server.url) as standby:
            standby.wait_for("standing by")
            granted_s = time.monotonic()
            held = service.lease(1_000, ttl_ms=6_000)
            leader.kill()
            jump(clock, view, HOUR_S)
            assert_on_time(ended_after_s(service, held, granted_s), 6.0)
            [jumped] = view.of_type("ClockJumped")
            assert abs(jumped.data["delta_ms"] - HOUR_S * 1000) < 1_000


@needs_library
def test_a_tick_that_would_be_the_first_to_stand_behind_a_jump_fires_nothing_early(
    view: RedisView, clock: FalseClock, scheduler: SchedulerProcess
) -> None:
    service = Service(view, "service")
    began_s = time.monotonic()
    soon, late = service.lease(1_000, ttl_ms=3_000), service.lease(1_000, ttl_ms=6_000)
    jump(clock, view, HOUR_S)
    assert_on_time(ended_after_s(service, soon, began_s), 3.0)
    assert_on_time(ended_after_s(service, late, began_s), 6.0)
    assert len(view.of_type("ClockJumped")) == 1


# ---------------------------------------------------------------- the rules behind it


def test_no_memory_is_back_by_a_clock_whose_jump_is_on_its_way(server: RealServer) -> None:
    scenario = Scenario(24_576, lock_delay_ms=5_000)
    scenario.request("held", 1_000)
    scenario.revoke("held")
    with server.client() as client, closing(connect(server.url)) as own:
        state, keys = scenario.state, Keys()
        client.hset(keys.scheduler, mapping={"epoch": state.epoch, "seq": state.seq})
        reign = Reign(own, keys, state.epoch, state.seq, "0-0")
        facts = LeaseFacts(reign, state)
        reign.tell_jump(state.now_ms + 1, HOUR_S * 1000)
        facts.reclaim(state.now_ms + HOUR_S * 1000)
        assert client.xlen(keys.events) == 1, "the jump alone"
        state.seq += 1
        facts.reclaim(state.now_ms + HOUR_S * 1000)
        assert client.xlen(keys.events) == 2
        client.delete(keys.events)  # nobody led it


def test_where_ids_tell_no_time_what_comes_next_is_never_of_the_same_moment(server: RealServer) -> None:
    scenario = Scenario(24_576)
    scenario.request("held", 1_000, ttl_ms=5_000)
    state, keys, now_s = scenario.state, Keys(), 100.0
    clock = LogClock(state.now_ms, lambda: now_s)
    clock.told(state.now_ms - HOUR_S * 1000)
    with server.client() as client, closing(connect(server.url)) as own:
        client.hset(keys.scheduler, mapping={"epoch": state.epoch, "seq": state.seq})
        reign = Reign(own, keys, state.epoch, state.seq, "0-0")
        snapshots = Snapshots(reign, state, every=10_000)
        chores = Chores(reign, state, clock, Trust(15_000), snapshots, lambda _: None, lambda *_: None)
        chores._keep_up()
        assert client.xlen(keys.events) == 0, "a jump back moves what was set before this ms, and not what was in it"
        now_s += 0.001
        chores._keep_up()
        assert client.xlen(keys.events) == 1
        client.delete(keys.events)  # nobody led it


def test_a_clock_that_was_put_back_stands_until_something_happens() -> None:
    now_s = 100.0
    clock = LogClock(1_000_000, lambda: now_s)
    clock.told(1_000_000 - BEHIND_MS)
    assert not clock.is_behind, "so much may be a late answer"
    clock.told(1_000_000 - 3_600_000)
    assert clock.is_behind
    now_s += 60.0
    assert clock.now_ms() == 1_060_000
    assert clock.stood(1_000_000) == 60_000
    assert clock.now_ms() == 1_000_000
    now_s += STOOD_MS / 1000
    assert clock.stood(1_000_000) == 0, "what is decided is read a moment later"


def test_a_late_read_is_no_clock_that_was_put_back() -> None:
    now_s = 100.0
    clock = LogClock(1_000_000, lambda: now_s)
    now_s += 60.0
    clock.told(1_060_000)
    assert clock.stood(1_000_000) == 0
    assert clock.now_ms() == 1_060_000


def test_a_clock_that_was_put_back_is_no_silence() -> None:
    now_s = 100.0
    trust = Trust(session_ttl_ms=15_000, monotonic=lambda: now_s)
    for server_ms in (4_000_000, 4_000_000 - 3_600_000):
        trust.answered(server_ms)
    assert not trust.holds()
    now_s += 15.0
    assert trust.holds()


def test_nobody_is_past_its_time_by_a_clock_that_has_just_jumped() -> None:
    now_s = 100.0
    trust = Trust(session_ttl_ms=15_000, monotonic=lambda: now_s)
    trust.answered(4_000_000)
    now_s += 0.25
    assert 4_000_250 <= trust.latest_ms() <= 4_002_000


@needs_library
def test_sessions_are_not_looked_at_by_a_clock_that_jumped_since_the_last_beat(server: RealServer) -> None:
    with server.client() as client, closing(connect(server.url)) as own:
        keys = Keys()
        seconds, _ = client.time()
        client.hset(keys.scheduler, mapping={"epoch": 1, "seq": 0})
        client.zadd(keys.sessions, {"service/session-1": seconds * 1000 - 1})
        trust = Trust(session_ttl_ms=15_000)
        trust.answered((seconds - 60) * 1000)
        reign = Reign(own, keys, 1, 0, "0-0")
        assert lose_silent_sessions(reign, ["service/session-1"], 15_000, trust) == 0
        trust.answered(seconds * 1000)
        assert lose_silent_sessions(reign, ["service/session-1"], 15_000, trust) == 1
