"""Chapter 3: a lease that outlives a block is acquired and released by hand."""

from gpuboss import GPUBoss


async def test_acquire_and_release(gpu_boss: GPUBoss) -> None:
    lease_id = await gpu_boss.acquire(vram_gb=8)
    try:
        ...  # use the GPU
    finally:
        await gpu_boss.release(lease_id)


async def test_what_a_lease_knows(gpu_boss: GPUBoss) -> None:
    lease = await gpu_boss.acquire(vram_gb=0.5, ttl=60)
    assert str(lease) == lease.lease_id
    assert lease.device == "cuda:0"
    assert lease.uuids[0].startswith("GPU-")  # what nvidia-smi -L calls it
    assert lease.vram_mib == 512
    assert lease.expires_at_ms is not None  # on the log's clock
    assert lease.fence > 0  # grows from grant to grant: a store can refuse writes by an older holder
    await gpu_boss.release(lease)


async def test_an_id_is_enough_to_release(gpu_boss: GPUBoss) -> None:
    """Also from another process of the service, if the first one handed the id on."""
    lease_id = str(await gpu_boss.acquire(vram_gb=8))
    await gpu_boss.release(lease_id)
    await gpu_boss.release(lease_id)  # twice is as good as once


async def test_two_cards_at_once(gpu_boss: GPUBoss) -> None:
    """`gpus=2` is two cards of one host, both or none; VRAM is per card."""
    async with gpu_boss.lease(vram_gb=20, gpus=2) as device:
        assert device == "cuda:0"
        assert device.all == ("cuda:0", "cuda:1")
