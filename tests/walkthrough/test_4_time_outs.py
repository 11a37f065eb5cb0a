"""Chapter 4: not to wait for ever, and what to do when there is no GPU."""

from pathlib import Path

import pytest

from gpuboss import GPUBoss, LeaseDenied, LeaseImpossible, LeaseTimeout, SchedulerUnavailable


async def test_a_request_waits_as_long_as_it_says(gpu_boss: GPUBoss) -> None:
    async with gpu_boss.lease(vram_gb=24, device="cuda:0"):
        with pytest.raises(LeaseTimeout):
            async with gpu_boss.lease(vram_gb=8, device="cuda:0", wait_timeout=0.1):
                pytest.fail("there is no room")


async def test_a_web_service_answers_503(gpu_boss: GPUBoss) -> None:
    """One `except` is enough: whatever the reason, no lease was granted, and nothing is left of the request."""

    async def generate(gpu_boss: GPUBoss, vram_gb: float) -> int:
        try:
            async with gpu_boss.lease(vram_gb=vram_gb, device="cuda:0", wait_timeout=0.1):
                return 200
        except (LeaseDenied, SchedulerUnavailable):
            return 503

    assert await generate(gpu_boss, vram_gb=8) == 200
    async with gpu_boss.lease(vram_gb=24, device="cuda:0"):
        assert await generate(gpu_boss, vram_gb=8) == 503


async def test_what_no_card_could_ever_hold_is_denied_at_once(gpu_boss: GPUBoss) -> None:
    with pytest.raises(LeaseImpossible, match="24576"):  # the message has the numbers
        await gpu_boss.acquire(vram_gb=70)


async def test_without_redis_or_a_scheduler_nothing_is_granted(redis_url: str, tmp_path: Path) -> None:
    """It never goes on without a lease in silence."""
    with pytest.raises(SchedulerUnavailable, match="does not answer"):
        async with GPUBoss(redis_url=f"unix://{tmp_path}/redis.sock", service="imajin-prompt", connect_timeout=0.1):
            pytest.fail("there is no Redis")
    async with GPUBoss(redis_url=redis_url, service="imajin-prompt", namespace="unattended") as gpu_boss:
        with pytest.raises(SchedulerUnavailable, match="no scheduler leads"):
            await gpu_boss.acquire(vram_gb=8)
