"""Clients on a real scheduler: many at once, several of one service, and the contract's sentences end to end."""

import asyncio
from collections.abc import AsyncIterator

import anyio
import pytest

from gpuboss import GPUBoss, Lease, LeaseDenied, LeaseImpossible, LeaseLost, LeaseTimeout, SchedulerUnavailable
from tests.client.by_hand import until, until_ended
from tests.client.platforms import Platform


@pytest.fixture
async def boss(platform: Platform) -> AsyncIterator[GPUBoss]:
    async with GPUBoss(platform.url, "painter") as boss:
        yield boss


async def test_a_lease_is_what_the_scheduler_shows(boss: GPUBoss, platform: Platform) -> None:
    lease = await boss.acquire(vram_gb=8, ttl=60, device="cuda:1")
    row = platform.leases()[lease.lease_id]
    assert (row["device"], row["vram_mib"], row["node"]) == (lease.device, lease.vram_mib, lease.node)
    assert (row["expires_at_ms"], row["fence"]) == (lease.expires_at_ms, lease.fence)
    assert row["session"] == boss._open_session().desk.session
    await boss.release(lease)
    await until("the release", lambda: not platform.leases())


async def test_fences_only_grow(boss: GPUBoss) -> None:
    fences = []
    for _ in range(5):
        async with boss.lease(vram_gb=1) as device:
            fences.append(device.lease.fence)
    assert fences == sorted(set(fences))


async def test_500_concurrent_requests_on_one_client_are_all_answered(boss: GPUBoss, platform: Platform) -> None:
    begun = len(platform.log("LeaseGranted"))

    async def use() -> Lease:
        async with boss.lease(vram_gb=4) as device:
            await anyio.lowlevel.checkpoint()
            return device.lease

    with anyio.fail_after(30):
        leases = await asyncio.gather(*[use() for _ in range(500)])
    assert len({lease.lease_id for lease in leases}) == 500
    assert len(platform.log("LeaseGranted")) - begun == 500


async def test_clients_of_one_service_on_one_reply_stream_each_get_their_own(platform: Platform) -> None:
    async def use(boss: GPUBoss) -> set[str]:
        mine = set()
        for _ in range(20):
            async with boss.lease(vram_gb=8) as device:
                assert platform.leases()[device.lease.lease_id]["session"] == boss._open_session().desk.session
                mine.add(device.lease.lease_id)
        return mine

    async with GPUBoss(platform.url, "painter") as one, GPUBoss(platform.url, "painter") as other:
        ones, others = await asyncio.gather(use(one), use(other))
    assert len(ones | others) == 40


async def test_an_instance_is_answered_on_a_stream_of_its_own(platform: Platform) -> None:
    async with (
        GPUBoss(platform.url, "painter", instance="replica-1") as boss,
        boss.lease(vram_gb=8) as device,
    ):
        answers = platform.redis.xrevrange(platform.keys.replies("painter:replica-1"))
        assert device.lease.lease_id.encode() in answers[0][1][b"data"]


async def test_a_namespace_is_a_world_of_its_own(platform: Platform) -> None:
    async with GPUBoss(platform.url, "painter", namespace="elsewhere") as boss:
        with pytest.raises(SchedulerUnavailable, match="no scheduler leads"):
            await boss.acquire(vram_gb=8)


async def test_a_gang_has_all_its_devices_or_none(boss: GPUBoss) -> None:
    async with boss.lease(vram_gb=8, gpus=2) as device:
        assert device.lease.devices == ["cuda:0", "cuda:1"]
        assert device.all == ("cuda:0", "cuda:1")
        assert len(set(device.lease.uuids)) == 2
        with pytest.raises(LeaseTimeout):
            await boss.acquire(vram_gb=20, gpus=2, wait_timeout=0.05)


@pytest.mark.parametrize("wish", [{"vram_gb": 80}, {"vram_gb": 1, "device": "cuda:7"}, {"vram_gb": 1, "gpus": 3}])
async def test_what_can_never_be_is_denied_at_once(boss: GPUBoss, wish: dict[str, object]) -> None:
    with pytest.raises(LeaseImpossible):
        await boss.acquire(**wish)  # type: ignore[arg-type]


async def test_a_node_is_taken_from_the_environment(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUBOSS_NODE", "node-z")
    async with GPUBoss(platform.url, "painter") as boss:
        with pytest.raises(LeaseImpossible):
            await boss.acquire(vram_gb=1)
        async with boss.lease(vram_gb=1, node="node-a") as device:
            assert device.lease.node == "node-a"


async def test_a_renewed_lease_outlives_its_first_ttl(boss: GPUBoss) -> None:
    lease = await boss.acquire(vram_gb=8, ttl=0.3)
    first_ms = lease.expires_at_ms
    assert first_ms is not None
    await boss.renew(lease, ttl=60)
    assert lease.expires_at_ms is not None
    assert lease.expires_at_ms > first_ms + 59_000
    await boss.release(lease)


async def test_an_expired_lease_is_lost_and_its_place_free(boss: GPUBoss, platform: Platform) -> None:
    with pytest.raises(LeaseLost, match="expired"):
        async with boss.lease(vram_gb=24, device="cuda:0", ttl=0.1):
            await until_ended()
    async with boss.lease(vram_gb=24, device="cuda:0", wait_timeout=5):
        pass


async def test_a_revoked_lease_is_lost(boss: GPUBoss, platform: Platform) -> None:
    with pytest.raises(LeaseLost, match="revoked"):
        async with boss.lease(vram_gb=8) as device:
            platform.revoke(device.lease.lease_id)
            await until_ended()


async def test_a_lease_is_released_for_another_process_by_its_id(boss: GPUBoss, platform: Platform) -> None:
    async with GPUBoss(platform.url, "painter") as other:
        lease = await boss.acquire(vram_gb=8)
        await other.release(lease.lease_id)
        with anyio.fail_after(5):
            assert await lease.wait_lost() == "released"


async def test_a_cancelled_request_by_id_is_denied(boss: GPUBoss, platform: Platform) -> None:
    async with boss.lease(vram_gb=24, device="cuda:0"):
        waiting = asyncio.create_task(boss.acquire(vram_gb=24, device="cuda:0"))
        await until("the request to wait", platform.queue)
        [lease_id] = platform.queue()
        await boss.release(lease_id)
        with anyio.fail_after(5), pytest.raises(LeaseDenied, match="cancelled"):
            await waiting


async def test_a_hundred_waits_cancelled_at_random_leave_nothing(boss: GPUBoss, platform: Platform) -> None:
    async def hurry(number: int) -> None:
        with anyio.move_on_after(number / 4000):
            async with boss.lease(vram_gb=12):
                await until_ended()

    with anyio.fail_after(30):
        await asyncio.gather(*[hurry(number) for number in range(100)])
    await until("everything to be free", lambda: not platform.leases() and not platform.queue())


# ---------------------------------------------------------------- things that break


async def test_connections_cut_again_and_again_lose_nothing_and_double_nothing(platform: Platform) -> None:
    granted = len(platform.log("LeaseGranted"))
    done = 0

    async def cut(scope: anyio.CancelScope) -> None:
        with scope:
            while True:
                await until("some more leases", lambda seen=done: done > seen + 10)  # type: ignore[misc]
                for connection in platform.redis.client_list():
                    if connection["name"] == "gpuboss:painter":
                        platform.redis.client_kill_filter(_id=connection["id"])

    async def use(boss: GPUBoss) -> None:
        nonlocal done
        async with boss.lease(vram_gb=8):
            await anyio.lowlevel.checkpoint()
        done += 1

    async with GPUBoss(platform.url, "painter") as boss:
        cutting = anyio.CancelScope()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cut, cutting)
            with anyio.fail_after(30):
                await asyncio.gather(*[use(boss) for _ in range(200)])
            cutting.cancel()
    assert len(platform.log("LeaseGranted")) - granted == 200
