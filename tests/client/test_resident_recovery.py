"""A resident model when the scheduler is killed and when the log is lost: it stays where it is, and is what it was."""

import anyio
import pytest

from gpuboss import GPUBoss
from tests.client.by_hand import until
from tests.client.platforms import running
from tests.client.residents import Card, states, until_idle, use
from tests.real.servers import RealServer


async def test_a_killed_schedulers_successor_lets_it_go_on(server: RealServer, card: Card) -> None:
    with running(server) as platform:
        async with GPUBoss(platform.url, "painter") as boss:
            resident = boss.resident(load=card.load, unload=card.unload, vram_gb=8)
            await use(resident)
            await until_idle(platform)
            platform.scheduler.kill()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(use, resident)
                platform.scheduler.start()
                await anyio.to_thread.run_sync(platform.scheduler.wait_leading)
            await until_idle(platform)
        assert (card.loads, card.unloads) == (1, 1)


@pytest.mark.parametrize("when", ["idle", "used"])
async def test_a_log_that_was_begun_anew_is_told_what_it_is(server: RealServer, card: Card, when: str) -> None:
    with running(server, session_ttl="2s") as platform:
        async with GPUBoss(platform.url, "painter") as boss:
            resident = boss.resident(load=card.load, unload=card.unload, vram_gb=8)
            await use(resident)
            await until_idle(platform)
            if when == "used":
                async with resident.use():
                    await anyio.to_thread.run_sync(platform.redis.flushall)
                    await until("the lease in the new log", lambda: states(platform) == ["held"], deadline_s=15)
            else:
                await anyio.to_thread.run_sync(platform.redis.flushall)
                await until("the lease in the new log", lambda: states(platform) == ["idle"], deadline_s=15)
                await use(resident)
            await until_idle(platform)
        assert (card.loads, card.unloads) == (1, 1)
