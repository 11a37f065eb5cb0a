"""Ending leases by deleting their rows, and putting right whatever else is changed by hand in the projections."""

from __future__ import annotations

import time

import pytest

from tests.real.one_server import served_by
from tests.real.redis_view import RedisView, Service
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer

server_process = served_by(-1)
WITHIN_S = 1.0  # as promised, with some patience for a busy machine on top
PATIENCE_S = 1.0


def told_within(service: Service, lease_id: str, since_s: float) -> dict[str, object]:
    """What the holder is told of the end of its lease, if it is in time."""
    ended = service.told(lease_id, "LeaseEnded", deadline_s=WITHIN_S + PATIENCE_S)
    assert time.monotonic() - since_s < WITHIN_S + PATIENCE_S
    return ended.data


def test_deleting_the_hash_ends_every_lease(view: RedisView, scheduler: SchedulerProcess) -> None:
    holder, heir = Service(view, "holder"), Service(view, "heir")
    held = [holder.lease(20_000) for _ in range(2)]
    waiting = [heir.queue(24_576) for _ in range(2)]
    began_s = time.monotonic()
    view.client.delete(view.key("leases"))
    for lease_id in held:
        ended = told_within(holder, lease_id, began_s)
        assert (ended["reason"], ended["freed"]) == ("revoked", True)
    for lease_id in waiting:
        assert heir.answer(lease_id).type == "LeaseGranted"
    revoked = view.of_type("LeaseRevoked")
    assert {entry.data["lease_id"] for entry in revoked} == set(held)
    assert len(revoked) == 2  # each once
    assert {"reason", "by"} <= revoked[0].data.keys()
    assert view.rows("leases").keys() == set(waiting)


def test_deleting_one_row_ends_that_lease_alone(view: RedisView, scheduler: SchedulerProcess) -> None:
    holder, heir = Service(view, "holder"), Service(view, "heir")
    first, second = [holder.lease(24_576) for _ in range(2)]
    waiting = heir.queue(24_576)
    began_s = time.monotonic()
    view.client.hdel(view.key("leases"), first)
    assert told_within(holder, first, began_s)["reason"] == "revoked"
    assert heir.answer(waiting).type == "LeaseGranted"
    assert view.rows("leases").keys() == {second, waiting}


def test_a_row_that_is_gone_does_not_come_back_by_itself(view: RedisView, scheduler: SchedulerProcess) -> None:
    """Not even when the lease changes in the same moment."""
    holder = Service(view, "holder")
    lease_id = holder.lease(1000, ttl_ms=60_000)
    pipeline = view.client.pipeline(transaction=True)
    pipeline.hdel(view.key("leases"), lease_id)
    renewal = f'{{"lease_id":"{lease_id}","service":"holder","ttl_ms":90000}}'
    pipeline.xadd(view.key("events"), {"type": "LeaseRenewed", "data": renewal})
    pipeline.execute()
    assert holder.told(lease_id, "LeaseEnded").data["reason"] == "revoked"
    assert view.rows("leases") == {}
    assert len(view.of_type("LeaseRevoked")) == 1


def test_memory_that_may_linger_is_reclaimed_first(server: RealServer, view: RedisView) -> None:
    holder, heir = Service(view, "holder"), Service(view, "heir")
    with SchedulerProcess(server.url, lock_delay="1s") as scheduler:
        scheduler.wait_leading()
        lease_id = holder.lease(24_576, device="cuda:0")
        waiting = heir.queue(24_576, device="cuda:0")
        view.client.hdel(view.key("leases"), lease_id)
        ended = holder.told(lease_id, "LeaseEnded").data
        assert (ended["reason"], ended["freed"]) == ("revoked", False)
        assert view.rows("leases")[lease_id]["state"] == "reclaiming"
        device = view.rows("devices")["node-a/cuda:0"]
        assert (device["leased_mib"], device["reclaiming_mib"], device["free_mib"]) == (0, 24_576, 0)
        granted = heir.answer(waiting).data
        [reclaimed] = view.of_type("VramReclaimed")
        assert (reclaimed.data["lease_id"], reclaimed.data["how"]) == (lease_id, "lock_delay")
        assert granted["cause"] == reclaimed.id
        assert granted["granted_at_ms"] - ended["now_ms"] >= 1000
        assert view.rows("leases").keys() == {waiting}


def test_deleting_the_row_of_what_is_reclaimed_frees_it(server: RealServer, view: RedisView) -> None:
    holder, heir = Service(view, "holder"), Service(view, "heir")
    with SchedulerProcess(server.url, lock_delay="60s") as scheduler:
        scheduler.wait_leading()
        lease_id = holder.lease(24_576, device="cuda:0")
        waiting = heir.queue(24_576, device="cuda:0")
        view.client.delete(view.key("leases"))
        holder.told(lease_id, "LeaseEnded")
        assert view.rows("leases")[lease_id]["state"] == "reclaiming"
        view.client.delete(view.key("leases"))
        assert heir.answer(waiting, deadline_s=5.0).type == "LeaseGranted"
        assert len(view.of_type("LeaseEnded")) == 1
        # Not because time passed: the operator vouches for it, with the log saying so in one way or the other.
        assert {entry.data["how"] for entry in view.of_type("VramReclaimed")} <= {"operator"}


@pytest.mark.parametrize("snapshot", ["kept", "gone"])
def test_a_row_deleted_while_nobody_leads(server: RealServer, view: RedisView, snapshot: str) -> None:
    holder = Service(view, "holder")
    with SchedulerProcess(server.url) as scheduler:
        scheduler.wait_leading()
        first, second = holder.lease(1000), holder.lease(1000)
        scheduler.terminate()
    view.client.hdel(view.key("leases"), first)
    if snapshot == "gone":
        view.client.delete(view.key("snapshot"))
    with SchedulerProcess(server.url) as scheduler:
        scheduler.wait_leading()
        assert holder.told(first, "LeaseEnded").data["reason"] == "revoked"
        assert view.rows("leases").keys() == {second}


def test_other_projections_are_put_right(view: RedisView, scheduler: SchedulerProcess) -> None:
    service = Service(view, "worker")
    held = service.lease(24_576, device="cuda:0")
    waiting = service.queue(24_576, device="cuda:0")
    queue, devices = view.key("queue"), view.key("devices")
    before = view.rows("devices")
    view.client.delete(queue, devices)
    eventually(lambda: view.rows("queue").keys() == {waiting}, "the queue to be shown again")
    eventually(lambda: view.rows("devices") == before, "the devices to be shown again")
    view.client.hset(queue, "nobody-asked", "{}")
    view.client.hset(devices, "node-a/cuda:9", "{}")
    view.client.hset(view.key("leases"), "nobody-holds", "{}")
    eventually(lambda: not view.client.hexists(queue, "nobody-asked"), "the queue to hold what waits alone")
    eventually(lambda: view.rows("devices") == before, "the devices to be those that are there")
    eventually(lambda: view.rows("leases").keys() == {held}, "the leases to be those that are held")
    assert view.of_type("LeaseRevoked") == []
    service.release(held)
    assert service.answer(waiting).type == "LeaseGranted"


def test_an_operator_revokes_at_once_or_with_a_grace(view: RedisView, scheduler: SchedulerProcess) -> None:
    holder = Service(view, "holder")
    first, second, third = [holder.lease(1000) for _ in range(3)]
    view.append("LeaseRevoked", lease_id=first, reason="maintenance", by="alice")
    assert holder.told(first, "LeaseEnded").data["reason"] == "revoked"
    for lease_id, grace_ms in ((second, 60_000), (third, 150)):
        asked = view.append("LeaseRevoked", lease_id=lease_id, reason="maintenance", by="alice", grace_ms=grace_ms)
        told = holder.told(lease_id, "YieldRequested").data
        assert told["deadline_ms"] == int(asked.partition("-")[0]) + grace_ms
    holder.release(second)
    assert holder.told(second, "LeaseEnded").data["reason"] == "yielded"
    assert holder.told(third, "LeaseEnded").data["reason"] == "revoked"  # it was late
    view.append("LeaseRevoked", lease_id="nobody-ever-asked", reason="typo", by="alice")
    assert view.wait_entry("EventRejected").data["reason"] == "unknown_lease"
