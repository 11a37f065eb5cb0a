"""The server dies and comes back with its data, or stands still for a while, under traffic."""

from __future__ import annotations

import time

from tests.real.chaos.outcome import Outcome
from tests.real.chaos.stage import Stage
from tests.real.redis_view import RedisView
from tests.real.servers import RealServer, wait_for

GRANTS_BETWEEN = 5
STALLS_S = (5, 3, 10, 60, 2, 20)  # in turn; with a session TTL of 2 s


def restart(server: RealServer, faults: int, seed: int, namespace: str = "gpuboss") -> Outcome:
    """`faults` times kill -9 of the server, and a start on the same data. What is timed: from when it serves again
    until something is granted."""
    took_ms = []
    with Stage(server, seed, namespace=namespace) as stage:
        stage.start_scheduler().wait_for("standing by")
        for _ in range(faults):
            stage.await_grants(GRANTS_BETWEEN)
            server.kill()
            server.start()
            took_ms.append(stage.await_grant(time.monotonic()))
        return _judged(stage, faults, took_ms)


def stall(server: RealServer, faults: int, seed: int, namespace: str = "gpuboss") -> Outcome:
    """`faults` times SIGSTOP of the server for longer than a session TTL, up to a minute. Timed is the same."""
    took_ms = []
    with Stage(server, seed, namespace=namespace) as stage:
        stage.start_scheduler().wait_for("standing by")
        for number in range(faults):
            stage.await_grants(GRANTS_BETWEEN)
            server.pause()
            _pass(STALLS_S[number % len(STALLS_S)])
            server.resume()
            took_ms.append(stage.await_grant(time.monotonic()))
        return _judged(stage, faults, took_ms)


def _pass(seconds: float) -> None:
    until_s = time.monotonic() + seconds
    wait_for("a stall to be over", lambda: time.monotonic() > until_s, seconds + 10)


def _judged(stage: Stage, faults: int, took_ms: list[int]) -> Outcome:
    """All processes lived: whose silence was nobody's fault is not declared dead."""
    outcome = stage.judge(faults, took_ms)
    with stage.server.client() as client:
        lost = RedisView(client, stage.namespace).of_type("SessionLost")
    outcome.lost += [f"{entry.id}: {entry.data} lives, and was declared lost" for entry in lost]
    return outcome
