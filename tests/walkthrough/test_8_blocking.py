"""Chapter 8: the same for code without an event loop."""

from pathlib import Path

import pytest
import redis

from gpuboss import LeaseImpossible, LeaseLost, LeaseTimeout
from gpuboss.blocking import GPUBoss


def test_a_script_borrows_a_gpu(redis_url: str) -> None:
    with GPUBoss(redis_url=redis_url, service="imajin-batch") as gpu_boss:
        for _ in range(3):
            with gpu_boss.lease(vram_gb=8, priority="low") as device:
                assert device == "cuda:0"


def test_acquire_and_release(redis_url: str) -> None:
    with GPUBoss(redis_url=redis_url, service="imajin-batch") as gpu_boss:
        lease = gpu_boss.acquire(vram_gb=8, ttl=30)
        gpu_boss.renew(lease, ttl=60)
        gpu_boss.release(lease)


def test_a_model_from_the_configuration(config_yaml: Path) -> None:
    with GPUBoss.from_config(config_yaml, service="imajin-batch") as gpu_boss:
        lease = gpu_boss.acquire(model="classifier")
        assert lease.vram_mib == 4096


def test_the_errors_are_the_same(redis_url: str) -> None:
    with GPUBoss(redis_url=redis_url, service="imajin-batch") as gpu_boss:
        with pytest.raises(LeaseImpossible):
            gpu_boss.acquire(vram_gb=70)
        with gpu_boss.lease(vram_gb=24, device="cuda:0"), pytest.raises(LeaseTimeout):
            gpu_boss.acquire(vram_gb=8, device="cuda:0", wait_timeout=0.1)


def test_a_thread_cannot_be_cancelled_so_it_looks_for_itself(redis_url: str, redis_cli: redis.Redis) -> None:
    """Between two steps of its work it looks at `is_lost`; if it does not, it is told at the end of the block."""
    with GPUBoss(redis_url=redis_url, service="imajin-batch") as gpu_boss:
        steps = 0
        with pytest.raises(LeaseLost), gpu_boss.lease(vram_gb=8) as device:
            redis_cli.hdel("gpuboss:leases", device.lease.lease_id)
            while not device.lease.is_lost:
                steps += 1  # a step of the work
        assert steps > 0
