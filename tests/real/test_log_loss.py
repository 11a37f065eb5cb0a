"""A log that was lost: it is noticed, and nothing is lent that somebody may still hold."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gpuboss.connection import connect
from gpuboss.keys import Keys
from gpuboss.log import LogReader
from gpuboss_scheduler.election import claim, look
from gpuboss_scheduler.known_log import Known, KnownLog
from gpuboss_scheduler.recovery import recover
from tests.real.lost_logs import OPTIONS, TTL_MS, assert_granted_late, elected_anew, ms_of, row_of
from tests.real.redis_view import RedisView, Service
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer

LONG_TTL_MS = 20_000
LONG: dict[str, Any] = OPTIONS | {"session_ttl": f"{LONG_TTL_MS}ms"}  # a recovery in which another process may start


@pytest.fixture
def leader(server: RealServer) -> Iterator[SchedulerProcess]:
    """A scheduler with one card, and a session TTL that is soon over."""
    with SchedulerProcess(server.url, **OPTIONS) as process:
        process.wait_leading()
        yield process


def test_an_emptied_server_is_noticed_and_holders_keep_what_they_hold(
    view: RedisView, server: RealServer, leader: SchedulerProcess
) -> None:
    holder, other = Service(view, "holder"), Service(view, "other")
    held = holder.lease(20_000)
    row, before = row_of(view, held), view.scheduler()
    view.client.flushall()
    elected = elected_anew(view)
    assert view.scheduler()["incarnation"] != before["incarnation"]
    assert int(view.scheduler()["epoch"]) > int(before["epoch"])
    assert elected.data["lost"]["fence"] > row["fence"]
    view.append("LeaseReasserted", **row)
    small, large = other.request(4_000), other.request(20_000)
    assert row_of(view, held) == row
    assert holder.told(held, "LeaseGranted").data["fence"] == row["fence"]
    granted = assert_granted_late(other, small, elected)
    assert granted.data["fence"] > elected.data["lost"]["fence"]
    holder.release(held)
    assert holder.told(held, "LeaseEnded").data["reason"] == "released"
    assert other.answer(large).type == "LeaseGranted"


def test_what_is_reasserted_as_over_before_the_last_tick_ends_at_the_next(
    view: RedisView, server: RealServer, leader: SchedulerProcess
) -> None:
    """As after a jump of the server's clock: the next tick must not wait for a deadline behind the last one."""
    holder, other = Service(view, "holder"), Service(view, "other")
    held = holder.lease(4_000, ttl_ms=600_000)
    row = row_of(view, held)
    view.client.flushall()
    elected = elected_anew(view)
    waiting = other.request(4_000)
    other.request(4_000, wait_ms=20)
    eventually(lambda: view.of_type("ClockTicked"), "a tick")
    view.append("LeaseReasserted", **row | {"expires_at_ms": ms_of(elected) - 60_000})
    assert_granted_late(other, waiting, elected)
    assert holder.told(held, "LeaseEnded").data["reason"] == "expired"


def test_it_is_said_while_it_recovers(view: RedisView, server: RealServer) -> None:
    with SchedulerProcess(server.url, **LONG) as leader:
        leader.wait_leading()
        view.client.flushall()
        elected = elected_anew(view)
        eventually(lambda: "recovering_until_ms" in view.scheduler(), "the end of recovery to be shown")
        assert int(view.scheduler()["recovering_until_ms"]) == ms_of(elected) + LONG_TTL_MS
        told = subprocess.run(
            [sys.executable, "-m", "gpuboss", "status", "--redis-url", server.url],
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert "entries of the log were lost" in told.stdout


def test_it_is_said_no_more_once_it_has_recovered(view: RedisView, leader: SchedulerProcess) -> None:
    view.client.flushall()
    elected_anew(view)
    eventually(lambda: "recovering_until_ms" in view.scheduler(), "the end of recovery to be shown")
    eventually(lambda: "recovering_until_ms" not in view.scheduler(), "recovery to end")


def test_whoever_waits_is_told_why(view: RedisView, server: RealServer) -> None:
    with SchedulerProcess(server.url, **LONG) as leader:
        leader.wait_leading()
        view.client.flushall()
        elected_anew(view)
        waiting = Service(view, "service").request(1)
        eventually(lambda: view.rows("queue").get(waiting, {}).get("reason") == "recovering", "the reason to be shown")


def test_only_the_stream_may_be_gone(view: RedisView, leader: SchedulerProcess) -> None:
    holder, other = Service(view, "holder"), Service(view, "other")
    held = holder.lease(20_000)
    row = row_of(view, held)
    view.client.delete(view.key("events"))
    elected = elected_anew(view)
    view.append("LeaseReasserted", **row)
    small = other.request(4_000)
    assert_granted_late(other, small, elected)
    assert view.rows("leases").keys() == {held, small}


@pytest.mark.parametrize("lost", ["the stream", "everything"])
def test_a_log_that_is_written_on_at_once_is_lost_all_the_same(
    view: RedisView, leader: SchedulerProcess, lost: str
) -> None:
    """What the leader reads next is there: it is in the new log."""
    holder = Service(view, "holder")
    row = row_of(view, holder.lease(20_000))
    with view.client.pipeline(transaction=True) as at_once:
        if lost == "everything":
            at_once.flushall()
        else:
            at_once.delete(view.key("events"))
        asked = {"lease_id": "lease-early", "service": "early", "vram_mib": 20_000}
        at_once.xadd(view.key("events"), {"type": "LeaseRequested", "data": json.dumps(asked)})
        at_once.execute()
    elected_anew(view)
    view.append("LeaseReasserted", **row)
    eventually(lambda: view.rows("leases").keys() == {row["lease_id"]}, "the lease to be known again")
    holder.release(row["lease_id"])
    assert Service(view, "early").answer("lease-early").type == "LeaseGranted"


def test_a_stream_that_was_trimmed_of_everything_is_a_lost_log(view: RedisView, leader: SchedulerProcess) -> None:
    holder = Service(view, "holder")
    row = row_of(view, holder.lease(20_000))
    view.client.xtrim(view.key("events"), maxlen=0, approximate=False)
    elected = elected_anew(view)
    waiting = holder.request(20_000)
    view.append("LeaseReasserted", **row)
    view.append("LeaseReleased", lease_id=row["lease_id"], service="holder")
    assert_granted_late(holder, waiting, elected)


def test_a_standby_that_saw_the_log_notices_too(view: RedisView, server: RealServer, leader: SchedulerProcess) -> None:
    service = Service(view, "service")
    with SchedulerProcess(server.url, **OPTIONS) as standby:
        standby.wait_for("standing by")
        held = row_of(view, service.lease(20_000))
        at = view.scheduler()["fence"]
        eventually(lambda: view.scheduler()["fence"] != at, "a beat after the grant")
        leader.signal(signal.SIGSTOP)
        view.client.flushall()
        elected = elected_anew(view)
        assert elected.data["lost"]["fence"] > held["fence"]
        waiting = service.request(20_000)
        assert_granted_late(service, waiting, elected)


def test_whoever_saw_the_log_before_its_first_entry_misses_nothing(view: RedisView, server: RealServer) -> None:
    """As a standby may that looks while the first leader begins."""
    first, second = (view.append("LeaseReleased", lease_id="lease-none", service="nobody") for _ in range(2))
    known_log = KnownLog()
    with closing(connect(server.url)) as client:
        log = LogReader(client, Keys())
        for last_id in ("0-0", first):
            known_log.note(Known("name", 1, last_id, 0))
            assert known_log.missed("name", 1, log) is None
        known_log.note(Known("name", 1, second, 0))
        view.client.xdel(view.key("events"), first)
        assert known_log.missed("name", 1, log) is not None


def test_a_fresh_scheduler_on_an_empty_server_begins_at_once(view: RedisView, server: RealServer) -> None:
    with SchedulerProcess(server.url, **OPTIONS) as scheduler:
        scheduler.wait_leading()
        Service(view, "service").lease(20_000)
        scheduler.terminate()
    view.client.flushall()
    with SchedulerProcess(server.url, **OPTIONS) as scheduler:
        scheduler.wait_leading()
        granted = Service(view, "service")
        granted.lease(20_000)
        assert all("lost" not in entry.data for entry in view.of_type("SchedulerElected"))


def test_what_only_the_snapshot_remembers_is_noticed_too(view: RedisView, server: RealServer) -> None:
    service = Service(view, "service")
    with SchedulerProcess(server.url, **OPTIONS) as scheduler:
        scheduler.wait_leading()
        service.lease(20_000)
        scheduler.terminate()  # it keeps a snapshot when it goes
    view.client.xtrim(view.key("events"), maxlen=0, approximate=False)
    with SchedulerProcess(server.url, **OPTIONS) as scheduler:
        scheduler.wait_leading()
        assert_granted_late(service, service.request(20_000), elected_anew(view))


def test_a_log_that_is_emptied_while_it_is_read_is_not_claimed(view: RedisView, server: RealServer) -> None:
    keys, client = Keys(view.namespace), view.client
    with SchedulerProcess(server.url, **OPTIONS) as scheduler:
        scheduler.wait_leading()
        scheduler.terminate()
    seen, _ = look(client, keys)
    recovered = recover(LogReader(client, keys), seen.cursor)
    about = {"leader": "late", "version": "0", "durability": "none", "run_id": "", "session_ttl_ms": TTL_MS}
    client.xtrim(keys.events, maxlen=0, approximate=False)
    assert claim(client, keys, seen, recovered, None, [], about) is None
    assert view.scheduler()["epoch"] == seen.epoch


def test_with_a_memory_file_a_restart_notices_too(view: RedisView, server: RealServer, tmp_path: Path) -> None:
    file = tmp_path / "deeper" / "known-log.json"
    service = Service(view, "service")
    with SchedulerProcess(server.url, memory_file=str(file), **OPTIONS) as scheduler:
        scheduler.wait_leading()
        row = row_of(view, service.lease(20_000))
        eventually(lambda: json.loads(file.read_bytes())["fence"] == row["fence"], "the grant to be remembered")
        scheduler.kill()
    view.client.flushall()
    with SchedulerProcess(server.url, memory_file=str(file), **OPTIONS) as scheduler:
        scheduler.wait_leading()
        waiting = service.request(20_000)
        assert_granted_late(service, waiting, elected_anew(view))
        scheduler.terminate()
    with SchedulerProcess(server.url, memory_file=str(file), **OPTIONS) as scheduler:
        scheduler.wait_leading()  # what it remembers is the new log now
        assert len([entry for entry in view.of_type("SchedulerElected") if "lost" in entry.data]) == 1


def test_a_memory_file_that_cannot_be_read_is_said_and_does_no_harm(
    view: RedisView, server: RealServer, tmp_path: Path
) -> None:
    file = tmp_path / "known-log.json"
    file.write_text("{")
    with SchedulerProcess(server.url, memory_file=str(file), **OPTIONS) as scheduler:
        scheduler.wait_leading()
        assert "known-log.json" in scheduler.stderr


def test_a_memory_file_that_cannot_be_written_is_named_at_once(server: RealServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with SchedulerProcess(server.url, memory_file=str(tmp_path / "file" / "log.json"), **OPTIONS) as scheduler:
        assert scheduler.wait() == 3
        assert "--memory-file" in scheduler.stderr


def test_an_embedded_server_without_its_data_is_noticed(tmp_path: Path) -> None:
    options = OPTIONS | {"embedded": True, "data_dir": str(tmp_path / "data")}
    with SchedulerProcess(None, **options) as scheduler:
        scheduler.wait_leading()
        scheduler.terminate()
    shutil.rmtree(tmp_path / "data" / "appendonlydir")
    with SchedulerProcess(None, **options) as scheduler:
        scheduler.wait_leading()
        scheduler.wait_for("entries of the log are gone")
        scheduler.terminate()


def test_the_log_begun_anew_can_be_taken_over(view: RedisView, server: RealServer) -> None:
    options = OPTIONS | {"session_ttl": "8s"}
    with SchedulerProcess(server.url, **options) as leader:
        leader.wait_leading()
        holder = Service(view, "holder")
        row = row_of(view, holder.lease(20_000))
        view.client.flushall()
        elected = elected_anew(view)
        view.append("LeaseReasserted", **row)
        waiting = holder.queue(4_000)
        leader.kill()  # amid recovery: the next one goes on with it
    with SchedulerProcess(server.url, **options) as scheduler:
        scheduler.wait_leading()
        assert_granted_late(holder, waiting, elected, 8_000)
        assert view.rows("leases").keys() == {row["lease_id"], waiting}
        assert elected_anew(view) == elected
