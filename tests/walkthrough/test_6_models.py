"""Chapter 6: what a model needs stands in the configuration, and a variable may pin it to a card."""

from pathlib import Path

import pytest

from gpuboss import ConfigError, GPUBoss, LeaseImpossible

# models:
#   deepseek-r1-70b-q4: {vram_gb: 40}
#   photorealistic: {vram_gb: 8, device_env: IMAGE_GEN_PHOTOREALISTIC_DEVICE}
#   anime: {vram_gb: 8, device_env: IMAGE_GEN_ANIME_DEVICE}
#   classifier: {vram_gb: 4, priority: low, wait_timeout: 30s}


async def test_a_model_by_its_name(config_yaml: Path) -> None:
    async with GPUBoss.from_config(config_yaml, service="imajin-diffusion") as gpu_boss:
        lease = await gpu_boss.acquire(model="photorealistic")
        assert lease.vram_mib == 8192


async def test_two_models_on_two_cards(config_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    export IMAGE_GEN_PHOTOREALISTIC_DEVICE=cuda:0
    export IMAGE_GEN_ANIME_DEVICE=cuda:1
    """
    monkeypatch.setenv("IMAGE_GEN_PHOTOREALISTIC_DEVICE", "cuda:0")
    monkeypatch.setenv("IMAGE_GEN_ANIME_DEVICE", "cuda:1")
    async with GPUBoss.from_config(config_yaml, service="imajin-diffusion") as gpu_boss:
        one, other = await gpu_boss.acquire(model="photorealistic"), await gpu_boss.acquire(model="anime")
        assert (one.device, other.device) == ("cuda:0", "cuda:1")


async def test_a_model_that_fits_no_card(config_yaml: Path) -> None:
    async with GPUBoss.from_config(config_yaml, service="imajin-prompt") as gpu_boss:
        with pytest.raises(LeaseImpossible):
            await gpu_boss.acquire(model="deepseek-r1-70b-q4")


async def test_a_name_that_is_not_there(config_yaml: Path) -> None:
    async with GPUBoss.from_config(config_yaml, service="imajin-prompt") as gpu_boss:
        with pytest.raises(ConfigError, match="did you mean 'classifier'"):
            await gpu_boss.acquire(model="classifer")


async def test_the_device_is_what_the_process_calls_it(gpu_boss: GPUBoss, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under CUDA_VISIBLE_DEVICES=1 the second card is the process's first, and the only one that it can use."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    async with gpu_boss.lease(vram_gb=8, device="cuda:1") as device:
        assert device == "cuda:0"
        assert device.lease.device == "cuda:1"
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES='1' hides it"):
        async with gpu_boss.lease(vram_gb=8, device="cuda:0"):
            pytest.fail("the process cannot see that card")


async def test_a_laptop_without_a_gpu(tmp_path: Path) -> None:
    """`gpu.enabled: false`: every lease is granted at once, as `cpu`, without Redis and without a scheduler."""
    config = tmp_path / "config.yaml"
    config.write_text("gpu: {enabled: false}")
    gpu_boss = GPUBoss.from_config(config, service="imajin-diffusion")
    async with gpu_boss, gpu_boss.lease(vram_gb=8) as device:
        assert device == "cpu"
