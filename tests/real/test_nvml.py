"""Reading GPUs through NVML: the real binding and the real scheduler, on a stand-in for the driver's library."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.real.redis_view import Entry, RedisView, Service
from tests.real.schedulers import SchedulerProcess
from tests.real.servers import RealServer

SOURCE = Path(__file__).parent / "nvml" / "standin.c"
COMPILER = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
MIB = 1024 * 1024

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler on PATH")

H100 = "GPU-5b2a9e1c-0f5d-4d62-9b56-1f0d3c9a7e11"
RTX = "GPU-c3d8f7a2-77aa-4b0e-8f10-20d5a9b1c2d3"
# 81,559 MiB and a bit, of which the driver keeps 551 MiB and a byte.
GPUS = f"NVIDIA H100 80GB HBM3|{H100}|{81_559 * MIB + 7}|{551 * MIB + 1};NVIDIA RTX 3090|{RTX}|{24_576 * MIB}|0"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the stand-in."""
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libnvidia-ml.so.1"
    command = [str(COMPILER), "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True, timeout=60)
    return str(folder)


def scheduler_on(server_url: str, driver: str, gpus: str = GPUS, fail: str = "") -> SchedulerProcess:
    environ = {"LD_LIBRARY_PATH": driver, "STANDIN_GPUS": gpus, "STANDIN_FAIL": fail}
    return SchedulerProcess(server_url, devices=None, environ=environ)


def test_the_gpus_are_shown_as_nvml_has_them(own_server: RealServer, driver: str) -> None:
    with own_server, own_server.client() as client, scheduler_on(own_server.url, driver) as scheduler:
        scheduler.wait_leading()
        view = RedisView(client)
        margin_mib = 81_559 // 100
        assert view.rows("devices") == {
            "node-a/cuda:0": {
                "uuid": H100,
                "name": "NVIDIA H100 80GB HBM3",
                "total_mib": 81_559,
                "leased_mib": 0,
                "reclaiming_mib": 0,
                "foreign_mib": 0,
                "free_mib": 81_559 - 552 - margin_mib,
                "healthy": True,
            },
            "node-a/cuda:1": {
                "uuid": RTX,
                "name": "NVIDIA RTX 3090",
                "total_mib": 24_576,
                "leased_mib": 0,
                "reclaiming_mib": 0,
                "foreign_mib": 0,
                "free_mib": 24_576 - 256,  # 1 % would be less
                "healthy": True,
            },
        }
        observed = {entry.data["device"]: entry.data for entry in view.of_type("DeviceObserved")}
        assert (observed["cuda:0"]["reserved_mib"], observed["cuda:0"]["margin_mib"]) == (552, margin_mib)
        assert not observed["cuda:0"]["simulated"]
        service = Service(view, "worker")
        granted = service.answer(service.lease(8192, device=RTX)).data
        assert (granted["device"], granted["uuids"]) == ("cuda:1", [RTX])
        refused = service.answer(service.request(24_576, device=RTX)).data
        assert refused["reason"] == "impossible"
        assert str(24_576 - 256) in refused["detail"]


def test_memory_of_a_real_gpu_is_reclaimed_before_it_is_lent_again(own_server: RealServer, driver: str) -> None:
    with own_server, own_server.client() as client, scheduler_on(own_server.url, driver) as scheduler:
        scheduler.wait_leading()
        view = RedisView(client)
        assert view.of_type("PolicySet")[0].data["lock_delay_ms"] == 60_000
        service = Service(view, "worker")
        lease_id = service.lease(8192, ttl_ms=50)
        assert service.told(lease_id, "LeaseEnded").data["freed"] is False
        assert view.rows("leases")[lease_id]["state"] == "reclaiming"


class Used:
    """What the stand-in says is used on the first GPU (MiB), or what else it does when it is asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.says(0)

    def says(self, used: int | str) -> None:
        """From now on, at once: whoever reads it finds the old or the new."""
        new = self.path.with_suffix(".new")
        new.write_text(f"{used if isinstance(used, str) else used * MIB}\n0\n")
        new.replace(self.path)


@pytest.fixture
def used(tmp_path: Path) -> Used:
    return Used(tmp_path / "used")


def settling_on(server_url: str, driver: str, used: Used, settle_ms: int) -> SchedulerProcess:
    policy = used.path.with_name("policy.yaml")
    policy.write_text(f"settle_ms: {settle_ms}\n")
    environ = {"LD_LIBRARY_PATH": driver, "STANDIN_GPUS": GPUS, "STANDIN_USED": str(used.path)}
    return SchedulerProcess(server_url, devices=None, environ=environ, policy=str(policy))


def given_back(view: RedisView) -> str:
    """One service gave back what another waits for, which is told that it is not free yet; returns the latter's
    lease_id."""
    worker = Service(view, "worker")
    lease_id = worker.lease(60_000, device=H100)
    waiting = worker.request(60_000, device=H100)
    worker.release(lease_id)
    assert worker.told(lease_id, "LeaseEnded").data["freed"] is False
    assert view.rows("leases")[lease_id]["state"] == "reclaiming"
    return waiting


def how_it_came_back(view: RedisView, waiting: str) -> str:
    """How the log says that memory is back, once it is lent again."""
    Service(view, "worker").told(waiting, "LeaseGranted")
    [reclaimed] = view.of_type("VramReclaimed")
    return str(reclaimed.data["how"])


def test_memory_that_was_given_back_is_lent_again_once_nvml_shows_it(
    own_server: RealServer, driver: str, used: Used
) -> None:
    with own_server, own_server.client() as client, settling_on(own_server.url, driver, used, 60_000) as scheduler:
        scheduler.wait_leading()
        view = RedisView(client)
        used.says(60_000)
        waiting = given_back(view)
        time.sleep(1.0)
        assert view.of_type("VramReclaimed") == [], "it is still used"
        used.says(81_559 // 100)  # a context stays, within the margin
        assert how_it_came_back(view, waiting) == "nvml"


@pytest.mark.parametrize("says", [60_000, "fail", "hang"])
def test_where_nvml_does_not_show_it_time_does(
    own_server: RealServer, driver: str, used: Used, says: int | str
) -> None:
    with own_server, own_server.client() as client, settling_on(own_server.url, driver, used, 1_000) as scheduler:
        scheduler.wait_leading()
        view = RedisView(client)
        used.says(says)
        assert how_it_came_back(view, given_back(view)) == "settled"
        [ended], [reclaimed] = view.of_type("LeaseEnded"), view.of_type("VramReclaimed")
        assert 1_000 <= milliseconds(reclaimed) - milliseconds(ended) < 3_000
        assert scheduler.terminate() == 0, "also while a look at the devices hangs"


def milliseconds(entry: Entry) -> int:
    return int(entry.id.partition("-")[0])


def test_a_driver_too_old_to_tell_what_it_keeps(own_server: RealServer, driver: str) -> None:
    fails = "nvmlDeviceGetMemoryInfo_v2=13"
    with own_server, own_server.client() as client, scheduler_on(own_server.url, driver, fail=fails) as scheduler:
        scheduler.wait_leading()
        [first, _] = [entry.data for entry in RedisView(client).of_type("DeviceObserved")]
        assert (first["total_mib"], first["reserved_mib"]) == (81_559, 0)


def refusal(server: RealServer, driver: str, gpus: str = GPUS, fail: str = "") -> str:
    """The one line that a scheduler says which cannot read its GPUs."""
    with scheduler_on(server.url, driver, gpus, fail) as scheduler:
        assert scheduler.wait() == 3, scheduler.stderr
        [line] = scheduler.lines
        assert '--devices "cuda:0=24576"' in line
        return line


def test_no_gpu_is_said_so(own_server: RealServer, driver: str) -> None:
    assert "NVML sees no GPU" in refusal(own_server, driver, gpus="")


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        ("nvmlInit=9", "install the NVIDIA driver"),
        ("nvmlDeviceGetCount=999", "nvidia-smi"),
        ("nvmlDeviceGetHandleByIndex=15", "nvidia-smi"),
        ("nvmlDeviceGetName=4", "nvidia-smi"),
        ("nvmlDeviceGetUUID=15", "nvidia-smi"),
        ("nvmlDeviceGetMemoryInfo_v2=15;nvmlDeviceGetMemoryInfo=15", "nvidia-smi"),
        ("nvmlDeviceGetName=4;nvmlShutdown=999", "nvidia-smi"),
    ],
)
def test_every_failure_of_nvml_is_told_in_one_line(own_server: RealServer, driver: str, fail: str, said: str) -> None:
    line = refusal(own_server, driver, fail=fail)
    assert said in line
    assert "NVML" in line


def test_a_failing_goodbye_harms_nobody(own_server: RealServer, driver: str) -> None:
    with own_server, scheduler_on(own_server.url, driver, fail="nvmlShutdown=999") as scheduler:
        scheduler.wait_leading()
