"""What the scheduler says when something around it is not as it must be, and with which code it ends."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.real.redis_view import RedisView, Service
from tests.real.schedulers import DEADLINE_S, SchedulerProcess, eventually
from tests.real.servers import RealServer, available_servers

KIND = available_servers()[0]


def ended(scheduler: SchedulerProcess) -> tuple[int, str]:
    """Run it to its end: the exit code, and the one line that it says."""
    with scheduler:
        code = scheduler.wait()
        [line] = scheduler.lines
        assert scheduler.printed == []
        return code, line


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for an embedded server, whose socket lies in it too; what runs there is ended after the test."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("GPUBOSS_SERVER_BINARY", raising=False)
    yield tmp_path / "data"
    for left_over in tmp_path.glob("gpuboss/*.sock"):
        with redis.Redis(unix_socket_path=str(left_over)) as client, contextlib.suppress(redis.RedisError):
            client.shutdown(nosave=True)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-lru"])
def test_a_server_that_may_evict_the_log_is_refused(tmp_path: Path, policy: str) -> None:
    with RealServer(tmp_path, KIND, flags={"maxmemory-policy": policy}) as server:
        code, line = ended(SchedulerProcess(server.url))
        assert code == 3
        assert f"maxmemory-policy is {policy}" in line
        assert "config set maxmemory-policy noeviction" in line
        with server.client() as client:
            assert client.keys("*") == []


@pytest.mark.parametrize("url", ["unix:///nowhere/at-all.sock", "redis://127.0.0.1:1"])
def test_without_redis_one_line_says_so_at_once(url: str) -> None:
    began_s = time.monotonic()
    code, line = ended(SchedulerProcess(url))
    assert time.monotonic() - began_s < 5.0
    assert code == 69
    assert url in line
    assert "--wait" in line
    assert "--embedded" in line


def await_a_try(server: RealServer) -> None:
    """Wait until somebody tries to reach a server that does not run."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(server.socket_path))
        listener.listen()
        listener.settimeout(DEADLINE_S)
        listener.accept()[0].close()
    server.socket_path.unlink()


def test_it_waits_for_redis_as_long_as_it_is_told(own_server: RealServer) -> None:
    with SchedulerProcess(own_server.url, wait="20s") as scheduler:
        await_a_try(own_server)
        own_server.start()
        assert scheduler.wait_leading() == 1
        assert scheduler.terminate() == 0
    own_server.stop()
    began_s = time.monotonic()
    code, line = ended(SchedulerProcess(own_server.url, wait="700ms"))
    assert code == 69
    assert 0.7 <= time.monotonic() - began_s < 5.0
    assert "does not answer" in line


def test_sigterm_ends_the_wait(own_server: RealServer) -> None:
    with SchedulerProcess(own_server.url, wait="60s") as scheduler:
        await_a_try(own_server)
        assert scheduler.terminate() == 0


@pytest.mark.parametrize(
    ("flags", "durability"),
    [
        ({"appendfsync": "always"}, "strict"),
        ({"appendfsync": "everysec"}, "standard"),
        ({"appendonly": "no"}, "none"),
    ],
)
def test_how_durable_the_log_is_is_named(tmp_path: Path, flags: dict[str, str], durability: str) -> None:
    with RealServer(tmp_path, KIND, flags=flags) as server, SchedulerProcess(server.url) as scheduler:
        scheduler.wait_leading()
        with server.client() as client:
            assert RedisView(client).scheduler()["durability"] == durability
        warned = any("durability: none" in line for line in scheduler.lines)
        assert warned == (durability == "none")


def test_a_server_with_a_password(tmp_path: Path) -> None:
    with RealServer(tmp_path, KIND) as server, server.client() as client:
        wrong = server.url.replace("unix://", "unix://:not-the-one@")
        code, line = ended(SchedulerProcess(wrong))
        assert code == 3
        assert "not-the-one" not in line
        client.config_set("requirepass", "hunter22")
        for url in (server.url, wrong):
            code, line = ended(SchedulerProcess(url))
            assert code == 3
            assert "refuses" in line
            assert "not-the-one" not in line
        with SchedulerProcess(server.url.replace("unix://", "unix://:hunter22@")) as scheduler:
            scheduler.wait_leading()
            assert scheduler.terminate() == 0


def test_a_full_server_does_not_keep_the_scheduler_from_answering(own_server: RealServer) -> None:
    with own_server, own_server.client() as client, SchedulerProcess(own_server.url) as scheduler:
        scheduler.wait_leading()
        view = RedisView(client)
        service = Service(view, "worker")
        held = service.lease(1000)
        scheduler.signal(signal.SIGSTOP)
        service.request(1000, lease_id=held)  # its answer is but a reply, the first thing that a full server refuses
        client.config_set("maxmemory", 1)
        scheduler.signal(signal.SIGCONT)
        eventually(lambda: len(view.replies("worker")) == 2, "the grant to be told again")
        client.config_set("maxmemory", 0)
        service.release(held)
        service.told(held, "LeaseEnded")


def test_the_embedded_server_prints_its_url_and_keeps_everything(data_dir: Path) -> None:
    options: dict[str, Any] = {"embedded": True, "data_dir": str(data_dir)}
    for epoch in (1, 2):
        with SchedulerProcess(None, **options) as scheduler:
            assert scheduler.wait_leading() == epoch
            url = scheduler.wait_for("unix://")
            with redis.Redis.from_url(url, protocol=2) as client:
                view = RedisView(client)
                service = Service(view, "worker")
                if epoch == 1:
                    held = service.lease(20_000)
                    assert view.scheduler()["durability"] == "standard"
                assert view.rows("leases").keys() == {held}
            assert scheduler.terminate() == 0
            assert scheduler.printed == [url]
        with redis.Redis.from_url(url) as client, pytest.raises(redis.ConnectionError):
            client.ping()


def test_the_embedded_server_outlives_a_kill_of_its_scheduler(data_dir: Path) -> None:
    with SchedulerProcess(None, embedded=True, data_dir=str(data_dir)) as scheduler:
        scheduler.wait_leading()
        url = scheduler.wait_for("unix://")
        with redis.Redis.from_url(url, protocol=2) as client:
            held = Service(RedisView(client), "worker").lease(1000)
        scheduler.kill()
    with SchedulerProcess(None, embedded=True, data_dir=str(data_dir)) as scheduler:
        scheduler.wait_for("leading epoch=2")
        assert scheduler.wait_for("unix://") == url
        with redis.Redis.from_url(url, protocol=2) as client:
            assert RedisView(client).rows("leases").keys() == {held}
        assert scheduler.terminate() == 0


def test_the_embedded_server_can_be_strict(data_dir: Path) -> None:
    with SchedulerProcess(None, embedded=True, data_dir=str(data_dir), durability="strict") as scheduler:
        scheduler.wait_leading()
        url = scheduler.wait_for("unix://")
        with redis.Redis.from_url(url, protocol=2) as client:
            assert RedisView(client).scheduler()["durability"] == "strict"
        assert scheduler.terminate() == 0


def test_without_a_gpu_and_without_devices_both_ways_out_are_named(own_server: RealServer) -> None:
    with own_server:
        code, line = ended(SchedulerProcess(own_server.url, devices=None, environ={"LD_LIBRARY_PATH": ""}))
        assert code == 3
        assert "install the NVIDIA driver" in line
        assert '--devices "cuda:0=24576"' in line


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"devices": "gpu0=24576"}, 3, "gpu0"),
        ({"node": "Not A Node"}, 3, "Not A Node"),
        ({"http": "8003"}, 3, "HOST:PORT"),
        ({"session_ttl": "soon"}, 3, "soon"),
        ({"wait": "long"}, 3, "long"),
        ({"config": "/nowhere/config.yaml"}, 3, "/nowhere/config.yaml"),
        ({"policy": "/nowhere/policy.yaml"}, 3, "/nowhere/policy.yaml"),
        ({"frobnicate": "1"}, 2, "frobnicate"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], code: int, said: str) -> None:
    with SchedulerProcess("unix:///nowhere.sock", **options) as scheduler:
        assert scheduler.wait() == code
        assert said in scheduler.stderr
        assert "Traceback" not in scheduler.stderr


def test_a_wrong_url_is_refused_without_its_password() -> None:
    for url in ("http://user:hunter22@host", "redis://user:hunter22@host:port"):
        code, line = ended(SchedulerProcess(url))
        assert code == 3
        assert "hunter22" not in line
        assert "redis://" in line


def test_what_the_policy_says_stands_in_the_log(own_server: RealServer, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "head_start_ms: {low: 1, normal: 2, high: 3}\nmargin_mib: 512\nmax_waiting: 7\n"
        "services: {ollama: {max_waiting: 3}, imajin: {}}\n"
    )
    options: dict[str, Any] = {"policy": str(policy), "session_ttl": "2", "lock_delay": "500ms"}
    with own_server, own_server.client() as client, SchedulerProcess(own_server.url, **options) as scheduler:
        scheduler.wait_leading()
        view = RedisView(client)
        [recorded] = view.of_type("PolicySet")
        assert {key: recorded.data[key] for key in recorded.data if key not in ("epoch", "seq")} == {
            "head_start_ms": {"low": 1, "normal": 2, "high": 3},
            "margin_mib": 512,
            "session_ttl_ms": 2000,
            "lock_delay_ms": 500,
            "reservations": 4,
            "backfill_order": "key",
            "starve_ms": 1_800_000,
            "preemption": "idle",
            "preempt_after_ms": {"high": 5000, "normal": 60_000},
            "grace_ms": 15_000,
            "settle_ms": 5_000,
            "min_run_ms": 60_000,
            "max_waiting": 7,
            "services": {"ollama": {"max_waiting": 3}, "imajin": {"max_waiting": 7}},
        }
        assert {row["free_mib"] for row in view.rows("devices").values()} == {24_576 - 512}
        assert view.scheduler()["session_ttl_ms"] == "2000"
        assert json.loads(client.hvals("gpuboss:devices")[0])["total_mib"] == 24_576
