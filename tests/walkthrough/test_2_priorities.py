"""Chapter 2: two services want the same card; who answers a user goes first."""

from collections.abc import Callable

import anyio

from gpuboss import GPUBoss

# `low` is for background work, `normal` for the usual, `high` for what a user is waiting for.


async def test_a_high_request_is_served_before_a_normal_one(
    redis_url: str, waiting_requests: Callable[[int], None]
) -> None:
    served: list[str] = []

    async def use_the_card(gpu_boss: GPUBoss, name: str, priority: str) -> None:
        async with gpu_boss.lease(vram_gb=24, device="cuda:0", priority=priority):  # type: ignore[arg-type]
            served.append(name)

    async with (
        GPUBoss(redis_url=redis_url, service="imajin-prompt") as prompt,
        GPUBoss(redis_url=redis_url, service="imajin-diffusion") as diffusion,
    ):
        busy = await diffusion.acquire(vram_gb=24, device="cuda:0")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use_the_card, diffusion, "thumbnails", "low")
            await anyio.to_thread.run_sync(waiting_requests, 1)
            tasks.start_soon(use_the_card, diffusion, "an image", "normal")
            await anyio.to_thread.run_sync(waiting_requests, 2)
            tasks.start_soon(use_the_card, prompt, "a chat", "high")
            await anyio.to_thread.run_sync(waiting_requests, 3)
            await diffusion.release(busy)
    assert served == ["a chat", "an image", "thumbnails"]


async def test_within_a_priority_it_is_first_come_first_served(
    redis_url: str, waiting_requests: Callable[[int], None]
) -> None:
    served: list[int] = []

    async def use_the_card(gpu_boss: GPUBoss, number: int) -> None:
        async with gpu_boss.lease(vram_gb=24, device="cuda:0"):
            served.append(number)

    async with GPUBoss(redis_url=redis_url, service="imajin-diffusion") as gpu_boss:
        busy = await gpu_boss.acquire(vram_gb=24, device="cuda:0")
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(use_the_card, gpu_boss, number)
                await anyio.to_thread.run_sync(waiting_requests, number + 1)
            await gpu_boss.release(busy)
    assert served == [0, 1, 2, 3, 4]


async def test_a_service_may_have_a_priority_of_its_own(
    redis_url: str, waiting_requests: Callable[[int], None]
) -> None:
    """What a client is opened with holds for every request that does not say otherwise."""
    served: list[str] = []

    async def use_the_card(gpu_boss: GPUBoss, name: str) -> None:
        async with gpu_boss.lease(vram_gb=24, device="cuda:0"):
            served.append(name)

    async with (
        GPUBoss(redis_url=redis_url, service="imajin-batch", priority="low") as batch,
        GPUBoss(redis_url=redis_url, service="imajin-prompt") as prompt,
    ):
        busy = await prompt.acquire(vram_gb=24, device="cuda:0")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use_the_card, batch, "batch")
            await anyio.to_thread.run_sync(waiting_requests, 1)
            tasks.start_soon(use_the_card, prompt, "prompt")
            await anyio.to_thread.run_sync(waiting_requests, 2)
            await prompt.release(busy)
    assert served == ["prompt", "batch"]
