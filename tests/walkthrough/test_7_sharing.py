"""Chapter 7: one card for all, one model at a time."""

from pathlib import Path

import anyio
import pytest

from gpuboss import GPUBoss, LeaseTimeout


async def test_an_exclusive_lease_shares_its_card_with_nobody(gpu_boss: GPUBoss) -> None:
    async with gpu_boss.lease(vram_gb=8, device="cuda:0", exclusive=True):
        with pytest.raises(LeaseTimeout):
            await gpu_boss.acquire(vram_gb=1, device="cuda:0", wait_timeout=0.1)
        async with gpu_boss.lease(vram_gb=8, exclusive=True) as other:
            assert other == "cuda:1"


async def test_two_models_pinned_to_one_card_take_turns(config_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    export IMAGE_GEN_PHOTOREALISTIC_DEVICE=cuda:0
    export IMAGE_GEN_ANIME_DEVICE=cuda:0
    """
    monkeypatch.setenv("IMAGE_GEN_PHOTOREALISTIC_DEVICE", "cuda:0")
    monkeypatch.setenv("IMAGE_GEN_ANIME_DEVICE", "cuda:0")
    monkeypatch.setenv("GPUBOSS_EXCLUSIVE", "true")  # or `exclusive: true` under `gpu` in config.yaml
    loaded: set[str] = set()

    async def generate(gpu_boss: GPUBoss, model: str) -> None:
        async with gpu_boss.lease(model=model):
            loaded.add(model)
            await anyio.lowlevel.checkpoint()
            assert loaded == {model}
            loaded.remove(model)

    gpu_boss = GPUBoss.from_config(config_yaml, service="imajin-diffusion")
    async with gpu_boss, anyio.create_task_group() as tasks:
        for model in ["photorealistic", "anime"] * 5:
            tasks.start_soon(generate, gpu_boss, model)
