"""Where the tutorial happens: a Redis, and a scheduler with two cards of 24 GB, `cuda:0` and `cuda:1`."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import redis

from gpuboss import GPUBoss
from tests.client.platforms import Platform, running
from tests.real.servers import RealServer


@pytest.fixture(scope="package")
def platform(server_process: RealServer) -> Iterator[Platform]:
    """A server and `gpuboss-scheduler --devices "cuda:0=24576,cuda:1=24576"`, for the whole tutorial."""
    with running(server_process) as platform:
        yield platform


@pytest.fixture
def redis_url(platform: Platform) -> Iterator[str]:
    """What a service needs to know. Whatever it does there, nothing may be left of it afterwards."""
    yield platform.url
    platform.wait_until_nothing_is_left()


@pytest.fixture
async def gpu_boss(redis_url: str) -> AsyncIterator[GPUBoss]:
    """The client of a service, opened as chapter 1 does it."""
    async with GPUBoss(redis_url=redis_url, service="imajin-diffusion") as gpu_boss:
        yield gpu_boss


@pytest.fixture
def redis_cli(platform: Platform) -> redis.Redis:
    """What a person at a terminal would have."""
    connection: redis.Redis = platform.redis
    return connection


@pytest.fixture
def waiting_requests(platform: Platform) -> Callable[[int], None]:
    """Returns once so many requests wait: a story needs its events in their order."""
    return platform.wait_for_queue


@pytest.fixture
def config_yaml(redis_url: str, tmp_path: Path) -> Path:
    """A configuration as a service has it."""
    path = tmp_path / "config.yaml"
    path.write_text(
        f"""
gpu:
  redis_url: "{redis_url}"
  priority: normal

models:
  deepseek-r1-70b-q4: {{vram_gb: 40}}
  photorealistic: {{vram_gb: 8, device_env: IMAGE_GEN_PHOTOREALISTIC_DEVICE}}
  anime: {{vram_gb: 8, device_env: IMAGE_GEN_ANIME_DEVICE}}
  classifier: {{vram_gb: 4, priority: low, wait_timeout: 30s}}
"""
    )
    return path
