"""Chapter 1: a service borrows a GPU, uses it, and gives it back."""

import json

import pytest
import redis

from gpuboss import GPUBoss


async def test_a_service_borrows_a_gpu(redis_url: str) -> None:
    """A client is opened once, for as long as the service lives; a lease is held for as long as the GPU is used."""
    async with GPUBoss(redis_url=redis_url, service="imajin-diffusion") as gpu_boss:
        for _ in ("a lighthouse", "a harbour"):
            async with gpu_boss.lease(vram_gb=8, priority="normal") as device:
                assert device == "cuda:0"
                # model = load_model(device)
                # result = model.generate(...)


async def test_whoever_wants_to_know_can_see_it(gpu_boss: GPUBoss, redis_cli: redis.Redis) -> None:
    """`redis-cli hgetall "gpuboss:leases"` shows who holds what."""
    async with gpu_boss.lease(vram_gb=8) as device:
        [(lease_id, row)] = redis_cli.hgetall("gpuboss:leases").items()
        shown = json.loads(row)
        assert lease_id.decode() == device.lease.lease_id
        assert (shown["service"], shown["device"], shown["vram_mib"]) == ("imajin-diffusion", "cuda:0", 8192)


async def test_several_leases_share_a_card_and_spill_over_to_the_next(gpu_boss: GPUBoss) -> None:
    """Three times 8 GB fill a card of 24 GB; the fourth goes to the other card."""
    leases = [await gpu_boss.acquire(vram_gb=8) for _ in range(4)]
    assert [lease.device for lease in leases] == ["cuda:0", "cuda:0", "cuda:0", "cuda:1"]
    # What is still held when the client is closed is given back: nothing to forget.


async def test_an_exception_gives_the_gpu_back(gpu_boss: GPUBoss) -> None:
    with pytest.raises(ValueError, match="a bad prompt"):
        async with gpu_boss.lease(vram_gb=24, device="cuda:0"):
            raise ValueError("a bad prompt")
    async with gpu_boss.lease(vram_gb=24, device="cuda:0") as device:
        assert device == "cuda:0"
