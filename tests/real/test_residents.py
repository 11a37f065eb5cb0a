"""Resident models of several processes on one card: whatever happens to them, never two models on the same bytes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gpuboss.blocking import GPUBoss
from tests.real.log_check import faults_of
from tests.real.redis_view import RedisView
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer
from tests.verdict.history import Note, double_promises
from tests.verdict.log import granted_twice

CARD = "node-a/cuda:0"
CARD_MIB = 24_576
END_S = 30.0


class Process:
    """One process of `tests.real.resident_worker`."""

    def __init__(self, server: RealServer, name: str, folder: Path, *options: str) -> None:
        self.name = name
        self.history = folder / f"{name}.history"
        self.history.touch()
        command = [sys.executable, "-m", "tests.real.resident_worker", server.url, name, str(self.history), *options]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def notes(self) -> list[Note]:
        """When which model was on the card, as it saw it."""
        lines = self.history.read_text().rpartition("\n")[0].splitlines()
        return [
            Note(at_s, what, name, tuple(devices), mib) for at_s, what, name, devices, mib in map(json.loads, lines)
        ]

    def loads(self) -> int:
        return len([note for note in self.notes() if note.what == "granted"])

    def stop(self) -> dict[str, int]:
        """Have it end as a service does; returns what its users lived through."""
        said, complained = self.process.communicate("", timeout=END_S)
        assert self.process.returncode == 0, complained[-3000:]
        assert "Traceback" not in complained, complained[-3000:]
        lived: dict[str, int] = json.loads(said)
        return lived

    def end(self) -> None:
        """Whatever it does, it is over."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture
def processes(server: RealServer, tmp_path: Path) -> Iterator[list[Process]]:
    """Filled by the test, ended here."""
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.end()


def scheduler_of(server: RealServer) -> SchedulerProcess:
    """One card; what was not given back may still be on it for as long as an unload could take."""
    return SchedulerProcess(server.url, devices=f"cuda:0={CARD_MIB}", lock_delay="1s", session_ttl="3s")


def held_or_idle(view: RedisView) -> list[str]:
    rows: list[dict[str, Any]] = list(view.rows("leases").values())
    return sorted(row["lease_id"] for row in rows if row["state"] in ("held", "idle"))


def revoke(view: RedisView, lease_id: str, grace_ms: int) -> None:
    data = json.dumps({"lease_id": lease_id, "reason": "stress", "by": "a test", "grace_ms": grace_ms})
    view.client.xadd(view.key("events"), {"type": "LeaseRevoked", "data": data})


def judge(server: RealServer, processes: list[Process]) -> None:
    """What was on the card, and what the log says, are in order; nothing is left."""
    notes = [note for process in processes for note in process.notes()]
    assert double_promises(notes, {CARD: CARD_MIB}) == []
    loaded = [note.request for note in notes if note.what == "granted"]
    assert sorted(loaded) == sorted(note.request for note in notes if note.what == "over")
    with server.client() as client:
        view = RedisView(client)
        eventually(lambda: not view.rows("leases") and not view.rows("queue"), "all rows to go")
        assert faults_of(view) + granted_twice(view.entries()) == []


def test_models_that_are_idle_make_room_for_those_who_wait(
    server: RealServer, tmp_path: Path, processes: list[Process]
) -> None:
    """Four models take turns on a card that holds two; nobody but the scheduler asks any back, and none is lost."""
    with scheduler_of(server) as scheduler:
        scheduler.wait_leading()
        for number in (0, 1):
            processes.append(Process(server, f"artist-{number}", tmp_path, "--users", "4"))
        eventually(lambda: min(process.loads() for process in processes) >= 10, "each to load ten times")
        lived = [process.stop() for process in processes]
        judge(server, processes)
    assert all(each["uses"] and "lost" not in each for each in lived), lived


def test_a_model_in_use_makes_room_for_a_higher_class_when_its_users_are_done(
    server: RealServer, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("scheduler: {policy: {preemption: lower, preempt_after_ms: {high: 50}, min_run_ms: 50}}\n")
    loaded: list[str] = []

    def load(device: str) -> str:
        loaded.append(device)
        return device

    with SchedulerProcess(server.url, devices=f"cuda:0={CARD_MIB}", config=str(config)) as scheduler:
        scheduler.wait_leading()
        with (
            GPUBoss(server.url, "batch", priority="low") as batch,
            GPUBoss(server.url, "urgent", priority="high") as urgent,
            ThreadPoolExecutor(1) as thread,
        ):
            resident = batch.resident(load=load, unload=loaded.remove, vram_gb=20)
            with resident.use():
                wanted = thread.submit(urgent.acquire, vram_gb=20)
                assert resident.lease is not None
                assert resident.lease.wait_asked_back(timeout=END_S) > 0
                assert (loaded, wanted.done()) == (["cuda:0"], False)
            urgent.release(wanted.result(END_S))
            assert loaded == []
            with resident.use():
                assert loaded == ["cuda:0"]


@pytest.mark.parametrize("seed", [1])
def test_whatever_happens_no_two_models_are_on_the_same_bytes(
    server: RealServer, tmp_path: Path, processes: list[Process], seed: int
) -> None:
    """Two processes with two models each, of which the card holds two, and fifty users who are cancelled at random.
    Leases are asked back and taken away at random, and the scheduler is killed."""
    chance = random.Random(seed)
    with scheduler_of(server) as scheduler, server.client() as client:
        scheduler.wait_leading()
        view = RedisView(client)
        for number in (0, 1):
            processes.append(Process(server, f"artist-{number}", tmp_path, "--seed", f"{seed}"))
        eventually(lambda: any(process.loads() for process in processes), "the first load")
        for turn in range(45):
            loads = sum(process.loads() for process in processes)
            if leases := held_or_idle(view):
                revoke(view, chance.choice(leases), chance.choice([0, 20, 200, 1_000]))
            if turn in (15, 30):
                scheduler.kill()
                scheduler.start().wait_leading()
            if leases and turn % 3 == 0:
                eventually(lambda: sum(process.loads() for process in processes) > loads, "another load")  # noqa: B023
            time.sleep(chance.uniform(0, 0.05))
        lived = [process.stop() for process in processes]
        judge(server, processes)
    assert all(each["uses"] and each["cancelled"] for each in lived), lived
    assert sum(each["loads"] for each in lived) > 10, lived
    assert sum(each.get("lost", 0) for each in lived) > 0, lived
