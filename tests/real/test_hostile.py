"""Whatever anybody can do to the log and to the keys around it, while good services go about their work."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.core import hostile
from tests.core.model_decisions import Rejection
from tests.real.log_check import faults_of
from tests.real.redis_view import RedisView, Service
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer, available_servers
from tests.real.traffic import Traffic

SEED = 20
ENTRIES_LEAST = 300
OURS = {f"gpuboss:{name}" for name in ("events", "leases", "queue", "devices", "sessions", "scheduler", "snapshot")}

Case = tuple[list[bytes], Rejection]


@pytest.fixture(params=available_servers())
def telling(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RealServer]:
    """A server that tells of every key that is touched."""
    with RealServer(tmp_path, request.param, flags={"notify-keyspace-events": "KA"}) as server:
        yield server


@contextlib.contextmanager
def keys_touched(server: RealServer) -> Iterator[set[str]]:
    """Collects the names of all keys that anything happens to."""
    seen: set[str] = set()
    done = threading.Event()
    with server.client() as client, client.pubsub() as listener:
        listener.psubscribe("__keyspace@0__:*")
        listener.get_message(timeout=5)

        def collect() -> None:
            while not done.is_set():
                message = listener.get_message(timeout=0.1)
                if message is not None and message["type"] == "pmessage":
                    seen.add(message["channel"].decode("latin-1").partition(":")[2])

        thread = threading.Thread(target=collect)
        thread.start()
        try:
            yield seen
        finally:
            done.set()
            thread.join()


def cases() -> list[Case]:
    """The catalogue twice, as far as a stream can hold it, in an order that a seed decides."""
    possible = [case for case in hostile.ALL.values() if case[0] and len(case[0]) % 2 == 0]
    twice = [*possible, *possible]
    random.Random(SEED).shuffle(twice)
    return twice


def damage(client: redis.Redis) -> Iterator[None]:
    """One act of vandalism after the other, on keys whose loss the contract says to be harmless."""
    for key in ("replies:imajin", "leases", "queue", "devices", "sessions"):
        client.set(f"gpuboss:{key}", "x")
        yield
        client.delete(f"gpuboss:{key}")
        yield
        with client.pipeline(transaction=True) as at_once:  # the scheduler writes to these keys too
            at_once.delete(f"gpuboss:{key}")
            at_once.rpush(f"gpuboss:{key}", "x", "y")
            at_once.execute()
        yield
        client.delete(f"gpuboss:{key}")
    for key in ("leases", "queue", "devices"):
        client.hset(f"gpuboss:{key}", mapping={b"\xff\x00": b"\x80", "lease-0001": "no JSON", "": "", "a/b": "{}"})
        yield
    sessions: dict[Any, Any] = {b"\xff/\xfe": 0, "no-slash": 1, "/": -1, "imajin/session-99": "-inf"}
    client.zadd("gpuboss:sessions", sessions)
    yield
    client.set("gpuboss:snapshot", "x")
    yield
    client.delete("gpuboss:snapshot")


def test_hostile_entries_stop_nothing(telling: RealServer) -> None:
    expected: dict[str, Rejection] = {}
    with (
        telling.client() as client,
        keys_touched(telling) as touched,
        SchedulerProcess(telling.url) as scheduler,
    ):
        scheduler.wait_leading()
        view = RedisView(client)
        vandal = damage(client)
        with Traffic(telling, SEED, services=3) as traffic:
            for number, (fields, rejection) in enumerate(cases()):
                expected[view.append_fields(fields)] = rejection
                if number % 10 == 0:
                    next(vandal, None)
                    traffic.await_more(1)
        assert list(vandal) == []
        last = max(expected, key=lambda entry_id: tuple(map(int, entry_id.split("-"))))
        view.wait_entry("EventRejected", event_id=last)
        assert len(expected) >= ENTRIES_LEAST
        assert_rejected_once(view, expected)
        assert traffic.lost == []
        good = Service(view, "good")
        good.release(good.lease(24_576, gpus=2))  # everything is free again
        assert faults_of(view) == []
        assert scheduler.stderr.splitlines() == [scheduler.lines[0]]  # nothing to complain about
        services = {entry.data["service"] for entry in view.of_type("LeaseRequested") if "service" in entry.data}
        assert "good" in services
    allowed = OURS | {f"gpuboss:replies:{name}" for name in ("imajin", "imajin:a", "good")}
    allowed |= {f"gpuboss:replies:service-{number}" for number in range(3)}
    assert touched <= allowed


def assert_rejected_once(view: RedisView, expected: dict[str, Rejection]) -> None:
    """Each hostile entry met exactly the rejection that it should, and nothing good was rejected."""
    rejections = view.of_type("EventRejected")
    genuine = [entry for entry in rejections if entry.id not in expected]
    assert Counter(entry.data["event_id"] for entry in genuine) == Counter(list(expected))
    for entry in genuine:
        rejection = expected[entry.data["event_id"]]
        found = Rejection(
            entry.data["reason"],
            entry.data.get("lease_id"),
            entry.data.get("service"),
            entry.data.get("session"),
            rejection.address,
        )
        assert found == rejection, entry
        assert entry.data["detail"].isprintable(), entry
        assert entry.data["cause"] == entry.data["event_id"]


def test_what_is_well_formed_but_not_ones_own(view: RedisView, scheduler: SchedulerProcess) -> None:
    owner, thief = Service(view, "owner"), Service(view, "thief")
    held = owner.lease(20_000, device="cuda:0")
    waiting = owner.queue(20_000, device="cuda:0")
    over = owner.lease(100)
    owner.release(over)
    owner.told(over, "LeaseEnded")
    for lease_id in (held, waiting, over):
        for kind, more in (
            ("LeaseReleased", {}),
            ("LeaseRenewed", {"ttl_ms": 1}),
            ("LeaseIdled", {}),
            ("LeaseResumed", {}),
        ):
            entry_id = view.append(kind, lease_id=lease_id, service="thief", **more)
            assert thief.told(lease_id, "EventRejected").data["reason"] == "not_owner"
            rejected = view.wait_entry("EventRejected", event_id=entry_id).data
            assert (rejected["reason"], rejected["service"]) == ("not_owner", "thief")
    for kind, more in (("LeaseReleased", {}), ("LeaseRenewed", {"ttl_ms": 1})):
        view.append(kind, lease_id="never-asked-for", service="thief", **more)
    eventually(lambda: len(view.replies("thief")) == 14, "all to be rejected")
    assert {entry.data["reason"] for entry in view.replies("thief")[-2:]} == {"unknown_lease"}
    assert view.rows("leases").keys() == {held}
    assert view.rows("queue").keys() == {waiting}
    assert [entry.type for entry in view.replies("owner")] == ["LeaseGranted", "LeaseGranted", "LeaseEnded"]


def test_forgeries_while_nobody_leads(server: RealServer, view: RedisView) -> None:
    """Not even those that guess the next number are taken for the scheduler's."""
    service = Service(view, "worker")
    with SchedulerProcess(server.url) as scheduler:
        scheduler.wait_leading()
        held = service.lease(1000)
        assert scheduler.terminate() == 0
    seq = int(view.scheduler()["seq"])
    forged = [
        view.append("ClockTicked", now_ms=2**53 - 1, epoch=7, seq=seq + 1),
        view.append("SchedulerElected", scheduler="me", version="0", core=1, incarnation="x", epoch=1, seq=seq + 1),
        view.append("SchedulerElected", scheduler="me", version="0", core=1, incarnation="x", epoch=9, seq=seq + 2),
        view.append("LeaseEnded", lease_id=held, service="worker", reason="released", freed=True, epoch=0, seq=seq + 1),
    ]
    with SchedulerProcess(server.url) as scheduler:
        scheduler.wait_leading()
        eventually(lambda: len(view.of_type("EventRejected")) == len(forged), "all to be rejected")
        assert {entry.data["event_id"] for entry in view.of_type("EventRejected")} == set(forged)
        assert view.rows("leases").keys() == {held}
        service.release(held)
        service.told(held, "LeaseEnded")
