"""The server's wall clock jumps by an hour, to and fro, under traffic."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.real.chaos.outcome import Outcome
from tests.real.chaos.stage import Stage
from tests.real.false_clock import FalseClock, library
from tests.real.redis_view import RedisView
from tests.real.servers import RealServer

AHEAD_S = (3600, 0, -3600, 3600)  # of the true time, in turn
GRANTS_BETWEEN = 10


def jump(server: RealServer, faults: int, seed: int, namespace: str = "gpuboss") -> Outcome:
    """`faults` jumps, on a server like the one given; none where libfaketime is not here, or the server does not bear
    it. What is timed: from a jump until something is granted."""
    if library() is None or server.kind != "valkey":
        return Outcome()
    took_ms = []
    with tempfile.TemporaryDirectory() as folder:
        clock = FalseClock(Path(folder))
        with (
            RealServer(Path(folder) / "server", server.kind, environ=clock.environ) as jumping,
            Stage(jumping, seed, namespace=namespace) as stage,
        ):
            stage.start_scheduler().wait_for("standing by")
            for number in range(faults):
                stage.await_grants(GRANTS_BETWEEN)
                clock.set_ahead(AHEAD_S[number % len(AHEAD_S)])
                took_ms.append(stage.await_grant(time.monotonic()))
            outcome = stage.judge(faults, took_ms)
            with jumping.client() as client:
                view = RedisView(client, namespace)
                lost, reigns = view.of_type("SessionLost"), view.of_type("SchedulerElected")
            outcome.lost += [f"{entry.id}: {entry.data} lives, and was declared lost" for entry in lost]
            outcome.lost += [f"{entry.id}: leadership changed" for entry in reigns[1:]]
    return outcome
