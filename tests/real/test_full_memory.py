"""A server at its `maxmemory`: requests are refused and say why, everything that is held lives on and can be given
back, and once there is memory again all goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gpuboss import GPUBoss, SchedulerUnavailable
from tests.cli.console import Console
from tests.real.redis_view import RedisView, Service
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer, available_servers

TTL_MS = 1_500
CARD = "cuda:0=24576"


@pytest.fixture(params=available_servers())
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RealServer]:
    """A server of each kind whose memory a test may limit."""
    with RealServer(tmp_path, request.param) as server:
        yield server


@pytest.fixture
def client(small: RealServer) -> Iterator[redis.Redis]:
    """A connection to it."""
    with small.client() as client:
        yield client


def fill(client: redis.Redis) -> None:
    """From here on the server has no memory for anybody."""
    client.config_set("maxmemory", 1)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        client.xadd("anything", {"a": "b"})


@pytest.mark.anyio
async def test_a_lease_outlives_the_session_ttl_and_is_given_back(small: RealServer, client: redis.Redis) -> None:
    view = RedisView(client)
    with SchedulerProcess(small.url, devices=CARD, session_ttl=f"{TTL_MS}ms") as scheduler:
        scheduler.wait_leading()
        async with GPUBoss(redis_url=small.url, service="imajin") as gpu_boss:
            lease = await gpu_boss.acquire(vram_gb=24, ttl=60)
            fill(client)
            members = client.zscore(view.key("sessions"), f"imajin/{view.rows('leases')[lease.lease_id]['session']}")
            assert members is not None
            await until_beaten(client, view, lease.lease_id, members + 2 * TTL_MS)
            assert not lease.is_lost
            await gpu_boss.renew(lease, ttl=60)
            with pytest.raises(SchedulerUnavailable, match="its memory is full; raise its `maxmemory`"):
                await gpu_boss.acquire(vram_gb=1)
            assert gpu_boss._session is not None
            assert gpu_boss._session.desk.waiting == {}, "it would be asked again"
            await gpu_boss.release(lease)
            eventually(lambda: view.rows("leases") == {}, "the lease to be given back")
            assert view.rows("devices")["node-a/cuda:0"]["free_mib"] == 24_576
            client.config_set("maxmemory", 0)
            async with gpu_boss.lease(vram_gb=24) as device:
                assert device == "cuda:0"
        eventually(lambda: view.rows("leases") == {}, "the second to be given back")
        assert scheduler.stderr.count("leading") == 1, "it led all the time"
    assert [entry.type for entry in view.of_type("LeaseGranted", "LeaseEnded", "SessionLost")] == [
        "LeaseGranted",
        "LeaseEnded",
    ] * 2


async def until_beaten(client: redis.Redis, view: RedisView, lease_id: str, score_ms: float) -> None:
    """Wait until the session of a lease lives beyond `score_ms`."""
    member = f"imajin/{view.rows('leases')[lease_id]['session']}"
    async with asyncio.timeout(20):
        while (client.zscore(view.key("sessions"), member) or 0) < score_ms:
            await asyncio.sleep(0.02)


def test_what_was_asked_before_is_decided_and_timers_fire(small: RealServer, client: redis.Redis) -> None:
    view = RedisView(client)
    with SchedulerProcess(small.url, devices=CARD) as scheduler:
        scheduler.wait_leading()
        service = Service(view, "worker")
        expiring = service.lease(20_000, ttl_ms=1_000)
        waiting = service.queue(20_000, wait_ms=60_000)
        fill(client)
        assert service.told(expiring, "LeaseEnded").data["reason"] == "expired"
        assert service.answer(waiting).type == "LeaseGranted"


def test_another_scheduler_takes_over(small: RealServer, client: redis.Redis) -> None:
    view = RedisView(client)
    with SchedulerProcess(small.url, devices=CARD) as first:
        first.wait_leading()
        held = Service(view, "worker").lease(20_000)
        fill(client)
        first.kill()
    with SchedulerProcess(small.url, devices=CARD) as second:
        second.wait_leading()
        client.hdel(view.key("leases"), held)  # what an operator without tools does
        assert Service(view, "worker").told(held, "LeaseEnded").data["reason"] == "revoked"


def test_an_operator_can_still_take_a_lease_away(small: RealServer, client: redis.Redis) -> None:
    view = RedisView(client)
    with SchedulerProcess(small.url, devices=CARD) as scheduler:
        scheduler.wait_leading()
        held = Service(view, "worker").lease(20_000)
        fill(client)
        assert Console(small.url).call("release", held).code == 0
        assert view.rows("leases") == {}
