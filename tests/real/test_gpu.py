"""On a real NVIDIA GPU: NVML is the driver's own, and services load what they were lent through CUDA."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pynvml
import pytest

from tests.real.redis_view import RedisView
from tests.real.schedulers import SchedulerProcess
from tests.real.servers import RealServer

END_S = 110.0
HOLD_S = 5.0  # both processes hold their contexts by then


def gpus() -> int:
    """How many GPUs the driver here reports."""
    try:
        pynvml.nvmlInit()
        count: int = pynvml.nvmlDeviceGetCount()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return 0
    return count


pytestmark = pytest.mark.skipif(not gpus(), reason="no NVIDIA GPU here")


@pytest.fixture
def view(own_server: RealServer) -> Iterator[RedisView]:
    """What a scheduler shows that found its devices itself."""
    with own_server, own_server.client() as client, SchedulerProcess(own_server.url, devices=None) as scheduler:
        scheduler.wait_leading()
        yield RedisView(client)


def nvidia_smi(*fields: str) -> list[list[str]]:
    """These fields of each GPU, as the driver's own tool prints them."""
    query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    said = subprocess.run(query, check=True, capture_output=True, text=True, timeout=60).stdout
    return [line.split(", ") for line in said.splitlines()]


def services(view: RedisView, url: str, model_mib: int, *options: str) -> list[str]:
    """What two services say which load a model of that size each, at the same time."""
    command = [sys.executable, "-m", "tests.real.gpu_service", url]
    processes = [
        subprocess.Popen([*command, name, str(model_mib), str(HOLD_S), *options], stdout=subprocess.PIPE, text=True)
        for name in ("imajin-prompt", "imajin-diffusion")
    ]
    return sorted(process.communicate(timeout=END_S)[0].strip() for process in processes)


def test_the_gpus_are_shown_as_the_driver_s_own_tool_has_them(view: RedisView) -> None:
    rows = view.rows("devices")
    observed = {entry.data["device"]: entry.data for entry in view.of_type("DeviceObserved")}
    told = nvidia_smi("name", "uuid", "memory.total", "memory.reserved")
    assert len(rows) == len(observed) == len(told)
    for index, (name, uuid, total_mib, reserved_mib) in enumerate(told):
        row, fact = rows[f"node-a/cuda:{index}"], observed[f"cuda:{index}"]
        assert (row["name"], row["uuid"], row["total_mib"]) == (name, uuid, int(total_mib))
        assert fact["reserved_mib"] - int(reserved_mib) in (0, 1)  # it is rounded up here
        assert fact["margin_mib"] == max(256, int(total_mib) // 100)
        assert row["free_mib"] == row["total_mib"] - fact["reserved_mib"] - fact["margin_mib"]


def test_two_models_that_do_not_fit_together_take_turns(own_server: RealServer, view: RedisView) -> None:
    if gpus() != 1:
        pytest.skip("two models fit on two GPUs")
    model_mib = view.rows("devices")["node-a/cuda:0"]["free_mib"] * 6 // 10
    [failed, loaded] = services(view, own_server.url, model_mib, "--no-lease")
    assert (failed, loaded) == ("cuMemAlloc_v2 failed with 2", "loaded")  # out of memory, as ever without leases
    assert services(view, own_server.url, model_mib) == ["loaded", "loaded"]
    first, second = view.of_type("LeaseGranted")
    [released, _] = view.of_type("LeaseReleased")
    assert first.id < released.id < second.id
