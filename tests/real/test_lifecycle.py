"""A lease from request to end on a real server: what stands in the log, on the reply streams and in the projections."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.real.one_server import served_by
from tests.real.redis_view import DECISIONS, FACTS, RedisView, Service
from tests.real.schedulers import TWO_CARDS, SchedulerProcess, eventually
from tests.real.servers import RealServer

server_process = served_by(-1)
IDLE_MS = 3_000
REPLIES_MAX = 10_000
STREAM_NODE = 100  # a stream is trimmed by whole nodes of so many entries

LEASE_ROW = {
    "lease_id": str,
    "service": str,
    "session": (str, type(None)),
    "node": str,
    "device": str,
    "devices": list,
    "vram_mib": int,
    "priority": str,
    "state": str,
    "granted_at_ms": int,
    "expires_at_ms": (int, type(None)),
    "fence": int,
}
QUEUE_ROW = {
    "lease_id": str,
    "service": str,
    "vram_mib": int,
    "priority": str,
    "requested_at_ms": int,
    "place": int,
    "reason": str,
    "blocked_by": list,
}
DEVICE_ROW = {
    "uuid": str,
    "name": str,
    "total_mib": int,
    "leased_mib": int,
    "reclaiming_mib": int,
    "foreign_mib": int,
    "free_mib": int,
    "healthy": bool,
}


@pytest.fixture
def service(view: RedisView, scheduler: SchedulerProcess) -> Service:
    return Service(view, "imajin-diffusion")


def assert_shaped(row: dict[str, Any], shape: dict[str, Any]) -> None:
    assert row.keys() == shape.keys()
    for name, kind in shape.items():
        assert isinstance(row[name], kind), name
        assert not isinstance(row[name], bool) or kind is bool, name


def ms_of(entry_id: str) -> int:
    return int(entry_id.partition("-")[0])


def free_mib(view: RedisView) -> list[int]:
    return [row["free_mib"] for _, row in sorted(view.rows("devices").items())]


def test_a_grant_is_told_logged_and_shown(service: Service, view: RedisView) -> None:
    lease_id = service.request(8192, session="session-1", ttl_ms=60_000)
    told = service.answer(lease_id)
    [logged] = view.of_type("LeaseGranted")
    [requested] = view.of_type("LeaseRequested")
    stamp = {name: logged.data[name] for name in ("epoch", "seq")}
    assert told.data | stamp == logged.data | {"now_ms": told.data["now_ms"]}, "the stamp is the log's alone"
    assert told.data["now_ms"] == ms_of(requested.id)
    expected = {
        "cause": requested.id,
        "session": "session-1",
        "lease_id": lease_id,
        "service": "imajin-diffusion",
        "node": "node-a",
        "device": "cuda:0",
        "devices": ["cuda:0"],
        "uuids": [view.rows("devices")["node-a/cuda:0"]["uuid"]],
        "vram_mib": 8192,
        "granted_at_ms": told.data["now_ms"],
        "expires_at_ms": told.data["now_ms"] + 60_000,
        "waited_ms": 0,
        "fence": 1,
    }
    assert {name: logged.data[name] for name in expected} == expected
    assert logged.data.keys() - expected.keys() == {"epoch", "seq"}


def test_the_rows_are_as_the_contract_has_them(service: Service, view: RedisView, scheduler: SchedulerProcess) -> None:
    first = service.lease(20_000, priority="high")
    other = service.lease(24_576)
    waiting = service.queue(10_000, device="cuda:0")
    eventually(lambda: "place" in view.rows("queue")[waiting], "the wait to be explained")
    leases, queue, devices = view.rows("leases"), view.rows("queue"), view.rows("devices")
    assert leases.keys() == {first, other}
    for row in leases.values():
        assert_shaped(row, LEASE_ROW)
    told = service.answer(first).data
    assert leases[first] == {
        **{name: told[name] for name in LEASE_ROW if name in told},
        "session": None,
        "priority": "high",
        "state": "held",
    }
    assert_shaped(queue[waiting], QUEUE_ROW)
    assert queue[waiting]["place"] == 1
    assert queue[waiting]["reason"] == "pinned_device_full"
    assert queue[waiting]["blocked_by"] == [first]
    assert devices.keys() == {"node-a/cuda:0", "node-a/cuda:1"}
    for row in devices.values():
        assert_shaped(row, DEVICE_ROW)
        assert row["total_mib"] == row["leased_mib"] + row["free_mib"]
    assert [row["leased_mib"] for _, row in sorted(devices.items())] == [20_000, 24_576]
    shown = view.scheduler()
    pid = scheduler.process.pid if scheduler.process else 0
    assert re.fullmatch(rf"node-a:{pid}:[0-9a-f]{{8}}", shown["leader"])
    assert shown["epoch"] == "1"
    assert shown["session_ttl_ms"] == "15000"
    assert shown["durability"] == "standard"
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", shown["version"])
    assert re.fullmatch(r"[0-9a-f]{16}", shown["incarnation"])
    assert re.fullmatch(r"\d+-\d+", shown["cursor"])
    seconds, _ = view.client.time()
    assert 0 <= int(shown["alive_until_ms"]) - seconds * 1000 <= 5_000


def test_there_are_no_other_keys_than_the_contracts(service: Service, view: RedisView) -> None:
    service.lease(20_000)
    service.queue(24_576, device="cuda:0")
    Service(view, "imajin-prompt", instance="b", session="session-b").lease(100)
    keys = {key.decode() for key in view.client.keys("*")}
    optional = {"gpuboss:snapshot"}
    assert keys - optional == {
        *(f"gpuboss:{name}" for name in ("events", "leases", "queue", "devices", "sessions", "scheduler")),
        "gpuboss:replies:imajin-diffusion",
        "gpuboss:replies:imajin-prompt:b",
    }


def test_whoever_waits_gets_what_is_released(service: Service, view: RedisView) -> None:
    first = service.lease(20_000, device="cuda:0")
    second = service.queue(20_000, device="cuda:0")
    released = service.release(first)
    ended = service.told(first, "LeaseEnded").data
    granted = service.told(second, "LeaseGranted").data
    assert (ended["reason"], ended["freed"], ended["cause"]) == ("released", True, released)
    assert granted["cause"] == released
    assert granted["waited_ms"] == granted["granted_at_ms"] - ms_of(view.of_type("LeaseRequested")[1].id)
    assert granted["fence"] == 2
    assert view.rows("leases").keys() == {second}
    assert view.rows("queue") == {}
    service.release(first)  # once more, which is no mistake
    service.release(second)
    service.told(second, "LeaseEnded")
    assert len(view.of_type("LeaseEnded")) == 2
    assert view.of_type("EventRejected") == []
    assert free_mib(view) == [24_576, 24_576]


def test_everything_the_scheduler_writes_is_numbered_without_a_gap(service: Service, view: RedisView) -> None:
    for _ in range(5):
        service.release(service.lease(1000))
    view.append_fields(["nonsense", "1"])
    view.wait_entry("EventRejected")
    written = [entry for entry in view.entries() if entry.type in DECISIONS | FACTS]
    assert [entry.data["seq"] for entry in written] == list(range(1, len(written) + 1))
    assert {entry.data["epoch"] for entry in written} == {1}
    assert [entry.type for entry in written[:2]] == ["SchedulerElected", "PolicySet"]


def test_a_higher_priority_is_served_first(service: Service) -> None:
    blocker = service.lease(24_576, device="cuda:0")
    low, normal, high = [service.queue(24_576, device="cuda:0", priority=each) for each in ("low", "normal", "high")]
    order = []
    holder = blocker
    for _ in range(3):
        service.release(holder)
        holder = next(each for each in (high, normal, low) if each not in order)
        assert service.answer(holder).type == "LeaseGranted"
        order.append(holder)
    assert order == [high, normal, low]


def test_a_waiting_request_is_taken_back(service: Service, view: RedisView) -> None:
    service.lease(24_576, device="cuda:0")
    waiting = service.queue(24_576, device="cuda:0")
    service.release(waiting)
    answer = service.answer(waiting)
    assert (answer.type, answer.data["reason"]) == ("LeaseDenied", "cancelled")
    assert view.rows("queue") == {}


def test_a_lease_ends_with_its_ttl_and_the_log_says_when(service: Service, view: RedisView) -> None:
    lease_id = service.lease(8192, ttl_ms=150)
    ended = service.told(lease_id, "LeaseEnded").data
    [tick] = view.of_type("ClockTicked")
    assert (ended["reason"], ended["freed"], ended["cause"]) == ("expired", True, tick.id)
    granted = service.answer(lease_id).data
    assert granted["expires_at_ms"] <= tick.data["now_ms"] <= granted["expires_at_ms"] + 1000
    assert free_mib(view) == [24_576, 24_576]


def test_a_renewal_moves_the_end(service: Service, view: RedisView) -> None:
    lease_id = service.lease(8192, ttl_ms=400)
    first_end_ms = service.answer(lease_id).data["expires_at_ms"]
    renewed = view.append("LeaseRenewed", lease_id=lease_id, service=service.name, ttl_ms=60_000)
    extended = service.told(lease_id, "LeaseExtended").data
    assert extended["cause"] == renewed
    assert extended["expires_at_ms"] == ms_of(renewed) + 60_000
    assert view.rows("leases")[lease_id]["expires_at_ms"] == extended["expires_at_ms"]
    # Another lease that outlives the first end shows that it passed without effect.
    other = service.lease(100, ttl_ms=600)
    ended = service.told(other, "LeaseEnded").data
    assert ended["now_ms"] > first_end_ms
    assert lease_id in view.rows("leases")


def test_a_wait_has_an_end(service: Service, view: RedisView) -> None:
    service.lease(24_576, device="cuda:0")
    waiting = service.request(24_576, device="cuda:0", wait_ms=150)
    answer = service.answer(waiting)
    assert (answer.type, answer.data["reason"]) == ("LeaseDenied", "timeout")
    assert "150 ms" in answer.data["detail"]
    assert view.of_type("ClockTicked")[-1].id == answer.data["cause"]


def test_an_exclusive_device_is_shared_with_nobody(service: Service, view: RedisView) -> None:
    alone = service.lease(1000, exclusive=True)
    other = service.lease(1000)
    assert service.answer(alone).data["device"] != service.answer(other).data["device"]
    second = service.queue(1000, exclusive=True)
    eventually(lambda: view.rows("queue")[second].get("reason") == "exclusive_busy", "the wait to be explained")
    service.release(other)
    assert service.answer(second).data["device"] == service.answer(other).data["device"]


def test_several_devices_come_all_at_once_or_not_at_all(service: Service, view: RedisView) -> None:
    blocker = service.lease(10_000)
    both = service.queue(20_000, gpus=2)
    assert view.rows("leases").keys() == {blocker}
    service.release(blocker)
    granted = service.answer(both).data
    assert granted["devices"] == ["cuda:0", "cuda:1"]
    assert granted["device"] == "cuda:0"
    assert len(set(granted["uuids"])) == 2
    assert free_mib(view) == [4_576, 4_576]
    service.release(both)
    service.told(both, "LeaseEnded")
    assert free_mib(view) == [24_576, 24_576]


def test_a_device_can_be_named_by_place_and_by_uuid(service: Service, view: RedisView) -> None:
    uuid = view.rows("devices")["node-a/cuda:1"]["uuid"]
    assert service.answer(service.request(100, device="cuda:1")).data["device"] == "cuda:1"
    assert service.answer(service.request(100, device=uuid)).data["device"] == "cuda:1"
    assert service.answer(service.request(100, device="cuda:1", node="node-a")).data["node"] == "node-a"


IMPOSSIBLE: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"vram_mib": 24_577}, ("24577", "24576")),
    ({"vram_mib": 100, "gpus": 3}, ("3", "2")),
    ({"vram_mib": 100, "device": "cuda:7"}, ("cuda:7",)),
    ({"vram_mib": 100, "node": "elsewhere"}, ("elsewhere",)),
    ({"vram_mib": 100, "device": "GPU-00000000-0000-0000-0000-000000000000"}, ("GPU-0000",)),
]


def test_what_no_device_could_hold_is_denied_at_once(service: Service) -> None:
    for wish, numbers in IMPOSSIBLE:
        answer = service.answer(service.request(**wish))
        assert (answer.type, answer.data["reason"]) == ("LeaseDenied", "impossible"), wish
        assert all(number in answer.data["detail"] for number in numbers), answer.data["detail"]


def test_a_repeated_request_is_told_again_and_granted_once(service: Service, view: RedisView) -> None:
    lease_id = service.lease(8192)
    service.request(8192, lease_id=lease_id, pid=7, model="other", traceparent="x", unknown={"a": 1})
    eventually(lambda: len(view.replies(service.name)) == 2, "the grant to be told again")
    first, again = view.replies(service.name)
    assert again.type == "LeaseGranted"
    stamps = {"epoch", "seq", "now_ms"}
    assert {k: v for k, v in again.data.items() if k not in stamps} == {
        k: v for k, v in first.data.items() if k not in stamps
    }
    service.release(lease_id)
    service.told(lease_id, "LeaseEnded")
    service.request(8192, lease_id=lease_id)
    eventually(lambda: len(view.replies(service.name)) == 5, "grant and end to be told again")
    assert [entry.type for entry in view.replies(service.name)][3:] == ["LeaseGranted", "LeaseEnded"]
    assert len(view.of_type("LeaseGranted")) == 1
    service.request(8193, lease_id=lease_id)
    rejected = service.told(lease_id, "EventRejected").data
    assert rejected["reason"] == "duplicate"
    stranger = Service(view, "imajin-prompt")
    stranger.request(8192, lease_id=lease_id)
    assert stranger.told(lease_id, "EventRejected").data["reason"] in ("duplicate", "not_owner")


def test_a_reply_stream_is_capped_and_ends_when_nobody_uses_it(service: Service, view: RedisView) -> None:
    lease_id = service.lease(100)
    key = view.key(f"replies:{service.name}")
    assert 0 < view.client.pttl(key) <= 24 * 60 * 60 * 1000
    request = {"lease_id": lease_id, "service": service.name, "vram_mib": 100}
    again: dict[Any, Any] = {"type": "LeaseRequested", "data": json.dumps(request)}
    for _ in range(11):
        pipeline = view.client.pipeline(transaction=False)
        for _ in range(REPLIES_MAX // 10):
            pipeline.xadd(view.key("events"), again)
        pipeline.execute()
    service.release(lease_id)
    service.told(lease_id, "LeaseEnded")
    assert REPLIES_MAX <= view.client.xlen(key) <= REPLIES_MAX + STREAM_NODE


def test_instances_have_streams_of_their_own(view: RedisView, scheduler: SchedulerProcess) -> None:
    plain = Service(view, "worker")
    named = [Service(view, "worker", instance=name) for name in ("a", "b")]
    held = [service.lease(100) for service in (plain, *named)]
    named[0].release(held[1])
    named[0].told(held[1], "LeaseEnded")
    assert [entry.type for entry in view.replies("worker")] == ["LeaseGranted"]
    assert [entry.type for entry in view.replies("worker:a")] == ["LeaseGranted", "LeaseEnded"]
    assert [entry.data["lease_id"] for entry in view.replies("worker:b")] == [held[2]]


def test_an_idle_scheduler_writes_nothing(own_server: RealServer) -> None:
    with own_server, own_server.client() as client, SchedulerProcess(own_server.url) as scheduler:
        scheduler.wait_leading()
        view = RedisView(client)
        service = Service(view, "worker")
        service.lease(20_000, ttl_ms=600_000)
        service.queue(24_576, wait_ms=600_000, device="cuda:0")
        last_id = view.raw()[-1][0]
        alive = view.scheduler()["alive_until_ms"]
        assert not client.xread({view.key("events"): last_id}, block=IDLE_MS)
        assert int(view.scheduler()["alive_until_ms"]) >= int(alive) + IDLE_MS - 1000  # it goes on leading


@pytest.mark.parametrize("namespace", ["other", "{gpuboss}"])
def test_a_namespace_has_its_keys_to_itself(server: RealServer, view: RedisView, namespace: str) -> None:
    there = RedisView(view.client, namespace)
    with SchedulerProcess(server.url) as here, SchedulerProcess(server.url, namespace=namespace) as other:
        here.wait_leading()
        assert other.wait_leading() == 1
        asked = [Service(each, "worker", session="session-1") for each in (view, there)]
        for service in asked:
            assert service.lease(24_576, device="cuda:0", lease_id="the-same-id")
    prefixes = {key.decode().rpartition(f"{namespace}:")[0] for key in view.client.keys(f"{namespace}:*")}
    assert prefixes == {""}
    for key in view.client.keys("*"):
        assert key.decode().rpartition(":")[0].removesuffix(":replies") in ("gpuboss", namespace)
    assert len(there.of_type("LeaseGranted")) == len(view.of_type("LeaseGranted")) == 1


def test_requests_wait_while_no_device_is_known(server: RealServer, view: RedisView) -> None:
    """Asked before any scheduler ever led: answered once one does."""
    service = Service(view, "early")
    lease_id = service.request(8192)
    too_large = service.request(99_999)
    with SchedulerProcess(server.url, devices=TWO_CARDS) as scheduler:
        scheduler.wait_leading()
        assert service.answer(lease_id).type == "LeaseGranted"
        assert service.answer(too_large).data["reason"] == "impossible"
