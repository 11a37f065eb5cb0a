"""What a client is opened with: arguments over variables over the file, and which mistakes are told how."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import gpuboss
from gpuboss import ConfigError, GPUBoss
from gpuboss.blocking import GPUBoss as BlockingGPUBoss
from gpuboss.client import Settings, Wish

NOWHERE = "unix:///nowhere/at-all.sock"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        """
gpu: {redis_url: redis://from-file:6379, service: from-file, priority: low, node: file-node}
models:
  anime: {vram_gb: 8}
"""
    )
    return path


def test_what_is_left_out_has_the_contracts_defaults() -> None:
    gpu = GPUBoss(service="painter")._config.gpu
    assert (gpu.redis_url, gpu.namespace, gpu.priority) == ("redis://localhost:6379", "gpuboss", "normal")
    assert (gpu.instance, gpu.node) == (None, None)


def test_every_argument_counts() -> None:
    gpu = GPUBoss(
        redis_url="redis://here:1", service="painter", namespace="n", instance="i", node="node-x", priority="high"
    )._config.gpu
    assert (gpu.redis_url, gpu.service, gpu.namespace) == ("redis://here:1", "painter", "n")
    assert (gpu.instance, gpu.node, gpu.priority) == ("i", "node-x", "high")


@pytest.mark.parametrize("kind", [GPUBoss, BlockingGPUBoss])
def test_arguments_beat_variables_beat_the_file(
    config: Path, monkeypatch: pytest.MonkeyPatch, kind: type[GPUBoss] | type[BlockingGPUBoss]
) -> None:
    monkeypatch.setenv("GPUBOSS_SERVICE", "from-variable")
    monkeypatch.setenv("GPUBOSS_NODE", "variable-node")
    boss = kind.from_config(config, service="from-argument")
    inner = boss if isinstance(boss, GPUBoss) else boss._boss
    gpu = inner._config.gpu
    assert (gpu.service, gpu.node, gpu.priority) == ("from-argument", "variable-node", "low")
    assert gpu.redis_url == "redis://from-file:6379"
    assert inner._config.models["anime"].vram_mib == 8192


def test_the_file_may_be_named_by_a_variable(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUBOSS_CONFIG", str(config))
    assert GPUBoss()._config.gpu.service == "from-file"


@pytest.mark.parametrize("kind", [GPUBoss, BlockingGPUBoss])
def test_a_service_has_a_name(kind: type[GPUBoss] | type[BlockingGPUBoss]) -> None:
    with pytest.raises(ConfigError, match=r"the service has no name; expected service=.*GPUBOSS_SERVICE"):
        kind("redis://localhost")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"service": "Imajin Diffusion"}, "service.*'Imajin Diffusion'.*for example imajin-diffusion|such as imajin"),
        ({"redis_url": "localhost:6379"}, "redis_url.*'localhost:6379'.*redis://"),
        ({"priority": "urgent"}, "priority.*'urgent'.*low, normal, high"),
        ({"namespace": "a b"}, "namespace.*'a b'"),
        ({"connect_timeout": 0}, "connect_timeout.*0"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GPUBoss(**{"service": "painter", **settings})  # type: ignore[arg-type]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no-such\.yaml"):
        GPUBoss.from_config(tmp_path / "no-such.yaml", service="painter")


async def test_other_loops_than_asyncios_are_refused_in_clear_words() -> None:
    with pytest.raises(Exception, match=r"runs on asyncio.*trio.*gpuboss\.blocking"):
        outside_of_asyncio(GPUBoss("redis://localhost", "painter").__aenter__().send)


def outside_of_asyncio(send: Callable[[None], object]) -> None:
    """Run a coroutine's first step in a thread without an event loop of asyncio, as trio would."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        thread.submit(send, None).result(5)


async def test_a_url_that_is_none_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"redis_url.*'http://localhost'"):
        GPUBoss("http://localhost", "painter")


async def test_where_gpus_are_disabled_everything_is_granted_as_cpu_without_redis(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"gpu: {{enabled: false, redis_url: '{NOWHERE}'}}\nmodels: {{anime: {{vram_gb: 8, gpus: 2}}}}\n")
    async with GPUBoss.from_config(path, service="painter") as boss:
        async with boss.lease(vram_gb=80, ttl=0.001) as device:
            assert device == "cpu"
            assert device.lease.vram_mib == 81920
        lease = await boss.acquire(model="anime")
        assert lease.device == "cpu"
        assert str(lease) == lease.lease_id
        await boss.renew(lease, ttl=5)
        await boss.release(lease)
        with pytest.raises(ConfigError, match="exactly one of"):
            await boss.acquire()


async def test_a_disabled_gpu_is_cpu_whatever_cuda_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUBOSS_ENABLED", "false")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    async with GPUBoss(NOWHERE, "painter") as boss, boss.lease(vram_gb=8) as device:
        assert device == "cpu"


def test_the_twins_take_the_same_arguments() -> None:
    names = set(inspect.signature(GPUBoss).parameters) - {"config"}
    assert names == set(Settings.__annotations__)
    for method in ("lease", "acquire"):
        for kind in (GPUBoss, BlockingGPUBoss):
            [parameter] = list(inspect.signature(getattr(kind, method)).parameters.values())[1:]
            assert "Wish" in str(parameter.annotation)
    assert set(Wish.__annotations__) == {
        *("vram_gb", "vram_mib", "model", "priority", "device", "node", "gpus", "exclusive", "ttl", "wait_timeout"),
        *("reclaimable", "preemptible"),
    }


def test_the_package_exports_the_client() -> None:
    assert gpuboss.GPUBoss is GPUBoss
    assert {gpuboss.Lease.__name__, gpuboss.Device.__name__} == {"Lease", "Device"}


def test_redis_is_only_imported_with_the_client() -> None:
    probe = "import sys, gpuboss; assert 'redis' not in sys.modules; gpuboss.GPUBoss; assert 'redis' in sys.modules"
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=30)
