"""Single entries that somebody deletes: what nobody had read is missed, and what was read long ago is not."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from gpuboss.core.stream_ids import is_later
from gpuboss.keys import Keys
from gpuboss.log import LogReader
from gpuboss_scheduler.election import claim, look
from gpuboss_scheduler.recovery import recover
from tests.real.log_check import faults_of
from tests.real.redis_view import Entry, RedisView, Service
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer

CARD_MIB = 24_576
OPTIONS: dict[str, Any] = {"session_ttl": "1s", "devices": f"cuda:0={CARD_MIB}"}


def losses(view: RedisView) -> list[Entry]:
    return [entry for entry in view.of_type("SchedulerElected") if "lost" in entry.data]


def delete_last(view: RedisView) -> str:
    entry_id = view.entries()[-1].id
    assert view.client.xdel(view.key("events"), entry_id) == 1
    return entry_id


def wait_read_through(view: RedisView, entry_id: str) -> None:
    """Until the leader has said that what is deleted through this entry is no loss."""
    eventually(lambda: not is_later(entry_id, view.scheduler().get("read_through", "0-0")), "two beats")


def assert_noticed_once(view: RedisView, server: RealServer, leader: SchedulerProcess) -> None:
    """It was said, and whoever leads next has nothing more to say."""
    assert len(losses(view)) == 1
    leader.terminate()
    with SchedulerProcess(server.url, **OPTIONS) as scheduler:
        scheduler.wait_leading()
        Service(view, "last").lease(1)
        assert len(losses(view)) == 1


def test_a_request_that_is_deleted_before_the_leader_reads_it_is_missed(view: RedisView, server: RealServer) -> None:
    with SchedulerProcess(server.url, **OPTIONS) as leader:
        leader.wait_leading()
        holder, other = Service(view, "holder"), Service(view, "other")
        held = holder.lease(20_000)
        row = view.rows("leases")[held]
        incarnation = view.scheduler()["incarnation"]
        leader.signal(signal.SIGSTOP)
        holder.release("lease-none")  # this is what the leader waits for, and has when it goes on
        asked = other.request(4_000)
        delete_last(view)
        leader.signal(signal.SIGCONT)
        eventually(lambda: losses(view), "an election that says so")
        assert view.scheduler()["incarnation"] != incarnation
        view.append("LeaseReasserted", **row)
        other.request(4_000, lease_id=asked)  # as a client does that finds another incarnation
        assert other.answer(asked).type == "LeaseGranted"
        assert view.rows("leases").keys() == {held, asked}
        assert faults_of(view) == []
        assert_noticed_once(view, server, leader)


def test_a_request_that_is_deleted_while_nobody_leads_is_missed(view: RedisView, server: RealServer) -> None:
    with SchedulerProcess(server.url, **OPTIONS) as scheduler:
        scheduler.wait_leading()
        wait_read_through(view, Service(view, "service").release("lease-none"))
        scheduler.kill()
    service = Service(view, "service")
    asked = service.request(4_000)
    delete_last(view)
    with SchedulerProcess(server.url, **OPTIONS) as scheduler:
        scheduler.wait_leading()
        service.request(4_000, lease_id=asked)
        assert service.answer(asked).type == "LeaseGranted"
        assert faults_of(view) == []
        assert_noticed_once(view, server, scheduler)


@pytest.mark.parametrize("asks_before", [False, True])
def test_a_request_that_is_deleted_behind_a_leader_who_never_came_to_a_beat_is_missed(
    view: RedisView, server: RealServer, asks_before: bool
) -> None:
    keys, client, service = Keys(view.namespace), view.client, Service(view, "service")
    asked = service.request(4_000) if asks_before else None
    seen, _ = look(client, keys)
    about = {"leader": "first", "version": "0", "durability": "none", "run_id": "", "session_ttl_ms": 1_000}
    assert claim(client, keys, seen, recover(LogReader(client, keys), ""), None, [], about) is not None
    if asked is None:
        asked = service.request(4_000)
    [request] = view.of_type("LeaseRequested")
    assert client.xdel(keys.events, request.id) == 1
    with SchedulerProcess(server.url, **OPTIONS) as scheduler:
        scheduler.wait_leading()
        service.request(4_000, lease_id=asked)
        assert service.answer(asked).type == "LeaseGranted"
        assert faults_of(view) == []
        assert_noticed_once(view, server, scheduler)


def test_what_was_decided_and_is_deleted_at_once_stays_decided(view: RedisView, server: RealServer) -> None:
    """Whether it had been read nobody can know: it counts as if not, and what it led to is held all the same."""
    with SchedulerProcess(server.url, **OPTIONS) as leader:
        leader.wait_leading()
        holder = Service(view, "holder")
        asked = holder.request(20_000)
        request_id = view.wait_entry("LeaseRequested").id
        holder.answer(asked)
        view.client.xdel(view.key("events"), request_id)
        eventually(lambda: losses(view), "an election that says so")
        assert Service(view, "other").queue(20_000)
        assert view.rows("leases").keys() == {asked}
        leader.kill()
    with SchedulerProcess(server.url, **OPTIONS) as scheduler:
        scheduler.wait_leading()
        assert view.rows("leases").keys() == {asked}
        assert len(losses(view)) == 1
    assert request_id in faults_of(view)[0]  # a replay says what is missing
    view.client.flushall()


def test_what_was_read_long_ago_may_be_deleted(view: RedisView, server: RealServer) -> None:
    with SchedulerProcess(server.url, **OPTIONS) as leader:
        leader.wait_leading()
        service = Service(view, "service")
        released = service.release("lease-none")
        service.lease(1)
        wait_read_through(view, released)
        view.client.xdel(view.key("events"), released)
        wait_read_through(view, service.release("lease-none"))
        service.lease(1)
        assert losses(view) == []
    assert released in faults_of(view)[0]  # a replay says what is missing
    view.client.flushall()


def test_what_was_deleted_before_anybody_led_is_no_loss(view: RedisView, server: RealServer) -> None:
    service = Service(view, "service")
    service.release("lease-none")
    service.release("lease-none")
    delete_last(view)
    with SchedulerProcess(server.url, **OPTIONS) as scheduler:
        scheduler.wait_leading()
        wait_read_through(view, service.release("lease-none"))
        service.lease(1)
        assert losses(view) == []


def test_what_comes_and_goes_between_reading_and_claiming_is_missed_with_the_first_beat(
    view: RedisView, server: RealServer
) -> None:
    keys, client = Keys(view.namespace), view.client
    service = Service(view, "service")
    service.release("lease-none")
    seen, _ = look(client, keys)
    recovered = recover(LogReader(client, keys), seen.cursor)
    service.request(1)
    deleted = delete_last(view)
    about = {"leader": "new", "version": "0", "durability": "none", "run_id": "", "session_ttl_ms": 1_000}
    won = claim(client, keys, seen, recovered, None, [], about)
    assert won is not None
    _, deleted_id = won.reign.beat()
    assert deleted_id == deleted
    assert is_later(deleted_id, won.reign.read_through)
