"""Logs that are cut or lost under traffic: power fails with a part of the AOF not on the disk, or all data are gone."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tests.real.chaos.outcome import Outcome
from tests.real.chaos.stage import Stage
from tests.real.servers import RealServer, last_aof

LAST_PART_BYTES = 3_000  # some dozens of commits: what a power failure may cut off under everysec
GRANTS_BETWEEN = 5


def cut(server: RealServer, faults: int, seed: int, namespace: str = "gpuboss") -> Outcome:
    """`faults` power failures: the server is killed, its AOF truncated somewhere in its last part, and started again.
    What is timed: from when it serves again until something is granted."""
    chance = random.Random(f"{seed}/cut")
    return _lose_some(server, faults, seed, namespace, lambda: _cut_tail(server, chance))


def lose(server: RealServer, faults: int, seed: int, namespace: str = "gpuboss") -> Outcome:
    """`faults` times all data are gone: in turn with a kill, and by FLUSHALL. Timed is the same."""
    turns = iter(range(faults))
    return _lose_some(server, faults, seed, namespace, lambda: _lose_all(server, with_a_kill=next(turns) % 2 == 0))


def _lose_some(server: RealServer, faults: int, seed: int, namespace: str, strike: Callable[[], None]) -> Outcome:
    took_ms = []
    with Stage(server, seed, namespace=namespace) as stage:
        for _ in range(faults):
            stage.await_grants(GRANTS_BETWEEN)
            strike()
            took_ms.append(stage.await_grant(time.monotonic()))
        return stage.judge(faults, took_ms)


def _cut_tail(server: RealServer, chance: random.Random) -> None:
    server.kill()
    file = last_aof(server)
    size = file.stat().st_size
    with file.open("r+b") as aof:
        aof.truncate(size - chance.randint(0, min(size, LAST_PART_BYTES)))
    server.start()


def _lose_all(server: RealServer, *, with_a_kill: bool) -> None:
    if with_a_kill:
        server.kill()
        shutil.rmtree(Path(server.folder) / "appendonlydir")
        server.start()
    else:
        with server.client() as client:
            client.flushall()
