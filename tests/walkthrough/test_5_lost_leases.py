"""Chapter 5: a lease may end before its holder is done; then the holder is stopped, and told."""

import json

import anyio
import pytest
import redis

from gpuboss import GPUBoss, LeaseLost


async def test_a_lease_with_a_time_to_live_ends_by_itself(gpu_boss: GPUBoss) -> None:
    with pytest.raises(LeaseLost) as lost:
        async with gpu_boss.lease(vram_gb=8, ttl=0.1):
            await anyio.sleep_forever()  # the block is cancelled here
    assert lost.value.reason == "expired"


async def test_a_renewal_gives_it_more_time(gpu_boss: GPUBoss) -> None:
    async with gpu_boss.lease(vram_gb=8, ttl=5) as device:
        before_ms = device.lease.expires_at_ms
        await gpu_boss.renew(device.lease, ttl=60)
        assert device.lease.expires_at_ms > before_ms  # type: ignore[operator]


async def test_an_operator_takes_a_lease_away(gpu_boss: GPUBoss, redis_cli: redis.Redis) -> None:
    """What `gpuboss revoke LEASE_ID` does is an event in the log like any other."""
    with pytest.raises(LeaseLost) as lost:
        async with gpu_boss.lease(vram_gb=8) as device:
            revoked = {"lease_id": device.lease.lease_id, "reason": "maintenance", "by": "alice"}
            redis_cli.xadd("gpuboss:events", {"type": "LeaseRevoked", "data": json.dumps(revoked)})
            await anyio.sleep_forever()
    assert lost.value.reason == "revoked"


async def test_a_lease_by_hand_says_when_it_is_lost(gpu_boss: GPUBoss, redis_cli: redis.Redis) -> None:
    """Nobody cancels what holds a lease by hand; it looks at `is_lost`, or waits for it."""
    lease = await gpu_boss.acquire(vram_gb=8)
    redis_cli.hdel("gpuboss:leases", lease.lease_id)  # the documented force release
    with anyio.fail_after(10):
        assert await lease.wait_lost() == "revoked"
    assert lease.is_lost
    await gpu_boss.release(lease)  # does nothing


async def test_a_lease_that_is_asked_back_can_be_given_back_in_time(gpu_boss: GPUBoss, redis_cli: redis.Redis) -> None:
    """With a grace, the holder is asked first; it unloads its model, releases, and has lost nothing."""
    lease = await gpu_boss.acquire(vram_gb=8)
    revoked = {"lease_id": lease.lease_id, "reason": "maintenance", "by": "alice", "grace_ms": 15_000}
    redis_cli.xadd("gpuboss:events", {"type": "LeaseRevoked", "data": json.dumps(revoked)})
    with anyio.fail_after(10):
        deadline = await lease.wait_asked_back()
    assert 0 < deadline - anyio.current_time() <= 15
    await gpu_boss.release(lease)
    assert not lease.is_lost
