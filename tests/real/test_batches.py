"""The same inputs in batches of any size lead to the same decisions, and to a state with the digest of its replay."""

from __future__ import annotations

import json
import random
import signal
from typing import Any

import pytest

from tests.real.log_check import replayed_digest
from tests.real.one_server import served_by
from tests.real.redis_view import DECISIONS, Entry, RedisView
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer

INPUTS = 240
BATCHES = (1, 40, INPUTS)
server_process = served_by(0)
SEED = 4
BETWEEN_RUNS = ("epoch", "seq", "cause", "granted_at_ms", "waited_ms")  # what says when, and not what

Input = tuple[str, dict[str, Any]]


def inputs() -> list[Input]:
    """Requests and releases of a few services, each of which leads to something."""
    chance = random.Random(SEED)
    made: list[Input] = []
    asked: list[dict[str, Any]] = []
    while len(made) < INPUTS:
        if asked and chance.random() < 0.45:
            over = asked.pop(chance.randrange(len(asked)))
            made.append(("LeaseReleased", {key: over[key] for key in ("lease_id", "service")}))
            continue
        wish: dict[str, Any] = {
            "lease_id": f"lease-{len(made):06}",
            "service": f"service-{chance.randrange(4)}",
            "vram_mib": chance.randrange(1000, 24_000),
            "priority": chance.choice(["low", "normal", "high"]),
            "gpus": chance.choice([1, 1, 1, 2]),
            "exclusive": chance.random() < 0.1,
        }
        if chance.random() < 0.2 and wish["gpus"] == 1:
            wish["device"] = f"cuda:{chance.randrange(2)}"
        asked.append(wish)
        made.append(("LeaseRequested", wish))
    return made


def run_in_batches(server: RealServer, view: RedisView, size: int) -> list[Entry]:
    """Decide all inputs, `size` of them at a time; returns the log as it is at the clean end of the scheduler."""
    view.client.flushall()
    made = inputs()
    with SchedulerProcess(server.url) as scheduler:
        scheduler.wait_leading()
        for at in range(0, len(made), size):
            scheduler.signal(signal.SIGSTOP)
            last_id = ""
            for kind, data in made[at : at + size]:
                last_id = view.append_fields(["type", kind, "data", json.dumps(data)])
            scheduler.signal(signal.SIGCONT)
            await_decided(view, last_id)
        assert scheduler.terminate() == 0
    return view.entries()


def await_decided(view: RedisView, entry_id: str) -> None:
    eventually(lambda: order(view.scheduler()["cursor"]) >= order(entry_id), "all to be decided")


def order(entry_id: str) -> tuple[int, ...]:
    return tuple(map(int, entry_id.split("-")))


def decided(log: list[Entry]) -> list[tuple[int, str, dict[str, Any]]]:
    """What was decided: the number of the input that led to it, the type, and what does not depend on the time."""
    numbers = {entry.id: number for number, entry in enumerate(log_inputs(log))}
    return [
        (numbers[entry.data["cause"]], entry.type, {k: v for k, v in entry.data.items() if k not in BETWEEN_RUNS})
        for entry in log
        if entry.type in DECISIONS
    ]


def log_inputs(log: list[Entry]) -> list[Entry]:
    return [entry for entry in log if entry.type in ("LeaseRequested", "LeaseReleased")]


def batches_in(log: list[Entry]) -> int:
    """How many times a run of decisions ends in the log, at least as many as there were commits with decisions."""
    types = [entry.type in DECISIONS for entry in log]
    return sum(1 for this, following in zip(types, [*types[1:], False], strict=True) if this and not following)


@pytest.mark.timeout(180)
def test_the_size_of_batches_does_not_matter(server: RealServer, view: RedisView) -> None:
    logs = {}
    rows = {}
    for size in BATCHES:
        logs[size] = log = run_in_batches(server, view, size)
        rows[size] = view.rows("leases").keys(), view.rows("queue").keys(), view.rows("devices")
        stored: Any = view.client.hgetall(view.key("snapshot"))
        snapshot_id = stored[b"id"].decode()
        assert stored[b"digest"].decode() == replayed_digest(view, snapshot_id)
        assert order(snapshot_id) >= order(log_inputs(log)[-1].id)
    assert batches_in(logs[1]) > INPUTS / 2
    assert batches_in(logs[40]) == INPUTS / 40
    assert batches_in(logs[INPUTS]) == 1
    assert decided(logs[1]) == decided(logs[40]) == decided(logs[INPUTS])
    assert rows[1] == rows[40] == rows[INPUTS]
    assert {kind for _, kind, _ in decided(logs[1])} >= {"LeaseGranted", "LeaseDenied", "LeaseEnded"}


def appended(view: RedisView) -> list[str]:
    """Append all inputs; returns their ids."""
    return [view.append_fields(["type", kind, "data", json.dumps(data)]) for kind, data in inputs()]


def test_what_a_new_leader_finds_is_decided_in_one_commit(server: RealServer, view: RedisView) -> None:
    """Or who is granted a lease in one part of it may hear that before another part says that it is dead."""
    view.client.flushall()
    ids = appended(view)
    with SchedulerProcess(server.url, environ={"GPUBOSS_FAILPOINT": "committed"}) as scheduler:
        scheduler.wait()
    assert order(view.scheduler()["cursor"]) >= order(ids[-1])


def test_a_kill_between_the_parts_of_a_batch_changes_nothing(server: RealServer, view: RedisView) -> None:
    whole = decided(run_in_batches(server, view, INPUTS))
    view.client.flushall()
    # The first commit is about the devices; then come the parts.
    with SchedulerProcess(server.url, environ={"GPUBOSS_FAILPOINT": "committed:3"}) as scheduler:
        scheduler.wait_leading()
        scheduler.signal(signal.SIGSTOP)
        ids = appended(view)
        scheduler.signal(signal.SIGCONT)
        scheduler.wait()
    assert order(ids[0]) < order(view.scheduler()["cursor"]) < order(ids[-1])
    with SchedulerProcess(server.url) as scheduler:
        await_decided(view, ids[-1])
        assert scheduler.terminate() == 0
    assert decided(view.entries()) == whole
