"""A server whose disk is full: whoever writes is told so, nothing that was answered is lost or promised twice, and once
there is room again all goes on. On a small file system of its own, which takes root and Linux."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from gpuboss import GPUBoss, SchedulerUnavailable
from tests.real.log_check import faults_of
from tests.real.redis_view import RedisView, Service
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer, available_servers, wait_for

DISK = "8m"
CARD = "cuda:0=24576"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with a disk of its own."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root on Linux")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(params=available_servers())
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of server."""
    return str(request.param)


class Ballast:
    """What fills a disk to the last byte."""

    def __init__(self, disk: Path) -> None:
        self._file = disk / "ballast"

    def load(self) -> None:
        """From here on there is no room."""
        with self._file.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def drop(self) -> None:
        """There is room again."""
        self._file.unlink()


def write_until_refused(view: RedisView) -> list[str]:
    """Write until the server refuses, or ends; returns the ids of what was answered."""
    ids: list[str] = []
    with contextlib.suppress(redis.RedisError):
        while len(ids) < 1_000_000:
            entry_id: Any = view.client.xadd(view.key("others"), {"some": "thing"})
            ids.append(entry_id.decode())
    return ids


@pytest.mark.anyio
async def test_synced_each_second_it_refuses_and_then_goes_on(disk: Path, kind: str) -> None:
    server = RealServer(disk, kind, flags={"appendfsync": "everysec", "auto-aof-rewrite-percentage": "0"})
    ballast = Ballast(disk)
    with server, server.client() as client, SchedulerProcess(server.url, devices=CARD, node="node-a") as scheduler:
        view = RedisView(client)
        scheduler.wait_leading()
        async with GPUBoss(redis_url=server.url, service="imajin") as gpu_boss:
            lease = await gpu_boss.acquire(vram_gb=24)
            ballast.load()
            await asyncio.to_thread(write_until_refused, view)
            assert "MISCONF" in await asyncio.to_thread(scheduler.wait_for, "refuses")
            with pytest.raises(SchedulerUnavailable, match="cannot write its disk"):
                await gpu_boss.acquire(vram_gb=1)
            await gpu_boss.release(lease)  # it is delivered later
            ballast.drop()
            await asyncio.to_thread(scheduler.wait_for, "leading epoch=2")
            async with gpu_boss.lease(vram_gb=24, wait_timeout=15) as device:
                assert device == "cuda:0"
        eventually(lambda: view.rows("leases") == {}, "all to be given back")
        scheduler.terminate()
        told = view.raw()
        server.kill()
        server.start()
        assert view.raw() == told
        assert faults_of(view) == []


@pytest.mark.anyio
async def test_synced_always_it_ends_and_has_all_that_it_answered(disk: Path, kind: str) -> None:
    server = RealServer(disk, kind, flags={"appendfsync": "always", "auto-aof-rewrite-percentage": "0"})
    ballast = Ballast(disk)
    with server, server.client() as client, SchedulerProcess(server.url, devices=CARD, node="node-a") as scheduler:
        view = RedisView(client)
        scheduler.wait_leading()
        async with GPUBoss(redis_url=server.url, service="imajin") as gpu_boss:
            lease = await gpu_boss.acquire(vram_gb=20)
            before = view.raw()
            ballast.load()
            answered = await asyncio.to_thread(write_until_refused, view)
            await asyncio.to_thread(wait_for, "the server to end", lambda: not server.is_running)
            await asyncio.to_thread(scheduler.wait_for, "does not answer")
            ballast.drop()
            server.start()
            await asyncio.to_thread(scheduler.wait_for, "leading epoch=2")
            assert view.raw()[: len(before)] == before
            kept = [entry_id for entry_id, _ in view.raw("others")]
            assert kept[: len(answered)] == answered
            assert list(view.rows("leases")) == [lease.lease_id]
            assert not lease.is_lost
            waiting = Service(view, "other").queue(20_000)
            await gpu_boss.release(lease)
            answer = await asyncio.to_thread(Service(view, "other").answer, waiting)
            assert answer.type == "LeaseGranted"
        assert faults_of(view) == []
