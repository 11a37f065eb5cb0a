"""Chapter 9: loading takes longer than using, so a model stays on its card until somebody else needs the room."""

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis

from gpuboss import Device, GPUBoss, LeaseDenied, LeaseLost
from gpuboss.blocking import GPUBoss as BlockingGPUBoss

README = Path(__file__).parents[2] / "README.md"

loaded: list[str] = []


class Painter:
    """A model: `loaded` says where one is now."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, prompt: str) -> str:
        assert loaded == [self.device], "it is used while it is on its card, and only then"
        return f"{prompt} on {self.device}"


def load_model(device: Device) -> Painter:
    """It may be async; if it is not, it runs in a thread."""
    loaded.append(str(device))
    return Painter(device)


def unload_model(model: Painter) -> None:
    loaded.remove(model.device)


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.01)


def states(redis_cli: redis.Redis) -> list[str]:
    rows: dict[bytes, bytes] = redis_cli.hgetall("gpuboss:leases")  # type: ignore[assignment]
    return [json.loads(row)["state"] for row in rows.values()]


async def test_the_first_screen_of_the_readme(redis_url: str, redis_cli: redis.Redis) -> None:
    source = README.read_text().partition("```python\n")[2].partition("```")[0]
    assert source.count(".use()") == 2
    source = source.replace("redis://localhost:6379", redis_url) + "    return diffusion, image\n"
    names: dict[str, Any] = {"GPUBoss": GPUBoss, "load_model": load_model, "unload_model": unload_model}
    exec(f"async def readme():\n{textwrap.indent(source, '    ')}", names)
    diffusion, image = await names["readme"]()
    assert image == "a harbour on cuda:0"
    assert loaded == []  # the client is closed
    assert diffusion.lease is None


async def test_between_uses_it_is_warm_and_idle(gpu_boss: GPUBoss, redis_cli: redis.Redis) -> None:
    diffusion = gpu_boss.resident(load=load_model, unload=unload_model, vram_gb=8)
    assert states(redis_cli) == []  # nothing is asked for before the first use
    async with diffusion.use() as model:
        assert model("a lighthouse") == "a lighthouse on cuda:0"
        assert states(redis_cli) == ["held"]
    await until(lambda: states(redis_cli) == ["idle"])
    async with diffusion.use() as again:
        assert again is model


async def test_who_needs_its_room_gets_it_and_it_comes_again(gpu_boss: GPUBoss, redis_url: str) -> None:
    diffusion = gpu_boss.resident(load=load_model, unload=unload_model, vram_gb=20, device="cuda:0")
    async with diffusion.use() as model:
        assert diffusion.lease is not None
        first = diffusion.lease
    other = GPUBoss(redis_url=redis_url, service="imajin-prompt")
    async with other, other.lease(vram_gb=20, device="cuda:0"):
        assert loaded == []
        assert not first.is_lost  # it was asked back, and given back in time
    async with diffusion.use() as again:
        assert again is not model


async def test_whoever_uses_it_may_finish(gpu_boss: GPUBoss, redis_cli: redis.Redis) -> None:
    """An operator asks with a grace, as does somebody of a higher class where the policy lets it."""
    diffusion = gpu_boss.resident(load=load_model, unload=unload_model, vram_gb=8)
    async with diffusion.use() as model:
        assert diffusion.lease is not None
        revoked = {"lease_id": diffusion.lease.lease_id, "reason": "maintenance", "by": "alice", "grace_ms": 15_000}
        redis_cli.xadd("gpuboss:events", {"type": "LeaseRevoked", "data": json.dumps(revoked)})
        with anyio.fail_after(10):
            await diffusion.lease.wait_asked_back()
        assert model("a lighthouse") == "a lighthouse on cuda:0"
    await until(lambda: loaded == [])


async def test_many_use_it_at_once(gpu_boss: GPUBoss) -> None:
    diffusion = gpu_boss.resident(load=load_model, unload=unload_model, vram_gb=8, priority="low")
    images: list[str] = []

    async def draw(number: int) -> None:
        async with diffusion.use() as model:
            images.append(model(f"image {number}"))

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(draw, number)
    assert len(images) == 20


async def test_a_use_may_be_cut_short_as_any_lease(gpu_boss: GPUBoss, redis_cli: redis.Redis) -> None:
    diffusion = gpu_boss.resident(load=load_model, unload=unload_model, vram_gb=8)
    with pytest.raises(LeaseLost):
        async with diffusion.use():
            assert diffusion.lease is not None
            redis_cli.hdel("gpuboss:leases", diffusion.lease.lease_id)  # the documented force release
            await anyio.sleep_forever()
    await until(lambda: loaded == [])


async def test_the_same_by_hand(gpu_boss: GPUBoss, redis_cli: redis.Redis) -> None:
    """What a resident model does for you, for those who want to do it themselves."""
    lease = await gpu_boss.acquire(vram_gb=8, reclaimable=True)
    await lease.idle(reload_ms=12_000)  # from here on it may be asked back; so the model is not used
    await lease.resume()  # from here on it is ours again
    await lease.idle()
    revoked = {"lease_id": lease.lease_id, "reason": "maintenance", "by": "alice", "grace_ms": 15_000}
    redis_cli.xadd("gpuboss:events", {"type": "LeaseRevoked", "data": json.dumps(revoked)})
    with anyio.fail_after(10):
        await lease.wait_asked_back()
    with pytest.raises(LeaseDenied, match="yielding"):  # too late: unload, and
        await lease.resume()
    await gpu_boss.release(lease)


def test_the_same_without_an_event_loop(redis_url: str) -> None:
    with BlockingGPUBoss(redis_url=redis_url, service="imajin-batch") as gpu_boss:
        diffusion = gpu_boss.resident(load=load_model, unload=unload_model, vram_gb=8)
        for prompt in ("a lighthouse", "a harbour"):
            with diffusion.use() as model:
                assert model(prompt) == f"{prompt} on cuda:0"
    assert loaded == []
