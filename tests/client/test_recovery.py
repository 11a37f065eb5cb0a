"""Clients when processes die, on a server and a scheduler of their own."""

import asyncio
import signal
import time
from pathlib import Path

import anyio
import pytest

from gpuboss import GPUBoss, SchedulerUnavailable
from tests.client.by_hand import until
from tests.client.platforms import killed_and_back, running
from tests.client.processes import Service
from tests.real.servers import RealServer

PAUSED = """
    import asyncio, sys
    from gpuboss import GPUBoss, LeaseLost

    async def main():
        async with GPUBoss(sys.argv[1], "sleeper") as boss:
            try:
                async with boss.lease(vram_gb=24, device="cuda:0"):
                    print("holds", flush=True)
                    await asyncio.sleep(60)
            except LeaseLost as error:
                print(error.reason, flush=True)
            async with boss.lease(vram_gb=24, device="cuda:0") as device:
                print(device, flush=True)

    asyncio.run(main())
"""


async def test_a_process_that_was_paused_for_too_long_lost_its_lease_and_goes_on(server: RealServer) -> None:
    with running(server, session_ttl="500ms") as platform, Service(PAUSED, platform.url) as service:
        assert service.line() == "holds"
        service.signal(signal.SIGSTOP)
        async with GPUBoss(platform.url, "painter") as boss:
            async with boss.lease(vram_gb=24, device="cuda:0"):  # only now, that the paused one is dead
                service.signal(signal.SIGCONT)
                assert await anyio.to_thread.run_sync(service.line) == "session_lost"
            assert await anyio.to_thread.run_sync(service.line) == "cuda:0"
        assert service.wait() == 0


def generate() -> None:
    """What a model does that computes in the event loop's own thread."""
    time.sleep(1.5)


async def test_a_loop_that_computes_for_longer_than_a_session_ttl_keeps_its_lease(server: RealServer) -> None:
    with running(server, session_ttl="600ms") as platform:
        async with GPUBoss(platform.url, "painter") as boss, boss.lease(vram_gb=8) as device:
            generate()
            await boss.renew(device.lease, ttl=60)
            assert list(platform.leases()) == [device.lease.lease_id]
        assert platform.log("SessionLost") == []
        asked = [event["lease_id"] for event in platform.log("LeaseRequested")]
        assert asked == [device.lease.lease_id]


KILLED = """
    import sys
    from gpuboss.blocking import GPUBoss

    with GPUBoss(sys.argv[1], "sleeper") as boss:
        boss.acquire(vram_gb=24, device="cuda:0")
"""


async def test_a_process_that_is_killed_while_it_waits_is_never_granted_anything(server: RealServer) -> None:
    with running(server, session_ttl="500ms") as platform, Service(KILLED, platform.url) as service:
        async with GPUBoss(platform.url, "painter") as boss:
            async with boss.lease(vram_gb=24, device="cuda:0") as device:
                await until("the request to wait", platform.queue)
                [dead] = platform.queue()
                service.signal(signal.SIGKILL)
                await until("the request to be gone", lambda: not platform.queue())
            async with boss.lease(vram_gb=24, device="cuda:0") as again:
                granted = [event["lease_id"] for event in platform.log("LeaseGranted")]
        assert granted == [device.lease.lease_id, again.lease.lease_id]
        assert [(event["lease_id"], event["reason"]) for event in platform.log("LeaseDenied")] == [
            (dead, "session_lost")
        ]


async def test_a_killed_schedulers_successor_is_found(server: RealServer) -> None:
    with running(server) as platform:
        async with GPUBoss(platform.url, "painter") as boss:
            held = await boss.acquire(vram_gb=24, device="cuda:0")
            waiting = asyncio.create_task(boss.acquire(vram_gb=24, device="cuda:0"))
            await until("the request to wait", platform.queue)
            platform.scheduler.kill()
            platform.scheduler.start()
            await anyio.to_thread.run_sync(platform.scheduler.wait_leading)
            await boss.release(held)
            with anyio.fail_after(10):
                await boss.release(await waiting)


async def test_a_killed_scheduler_without_a_successor_is_missed(tmp_path: Path) -> None:
    """On one kind of server: it takes the seconds that the contract gives a leader."""
    with RealServer(tmp_path) as server, running(server) as platform:
        async with GPUBoss(platform.url, "painter") as boss:
            async with boss.lease(vram_gb=24, device="cuda:0"):
                platform.scheduler.kill()
                with anyio.fail_after(15), pytest.raises(SchedulerUnavailable, match="silent for 5 s"):
                    await boss.acquire(vram_gb=24, device="cuda:0")
            released = [event["lease_id"] for event in platform.log("LeaseReleased")]
            assert sorted(released) == sorted(event["lease_id"] for event in platform.log("LeaseRequested"))


async def test_a_redis_that_was_killed_and_came_back_is_gone_on_with(server: RealServer) -> None:
    with running(server) as platform:
        async with GPUBoss(platform.url, "painter") as boss:
            held = await boss.acquire(vram_gb=24, device="cuda:0")
            waiting = asyncio.create_task(boss.acquire(vram_gb=24, device="cuda:0"))
            await until("the request to wait", platform.queue)
            await anyio.to_thread.run_sync(killed_and_back, server)
            await boss.release(held)
            with anyio.fail_after(20):
                lease = await waiting
            assert list(platform.leases()) == [lease.lease_id]
