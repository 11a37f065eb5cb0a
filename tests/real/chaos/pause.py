"""SIGSTOP of whoever leads, until another one does, and of services, until their sessions are lost; then SIGCONT."""

from __future__ import annotations

import signal
import time

from tests.real.chaos.outcome import Outcome
from tests.real.chaos.stage import Stage
from tests.real.redis_view import RedisView
from tests.real.schedulers import eventually
from tests.real.servers import RealServer

DEPOSED = "another scheduler leads"


def pause(server: RealServer, faults: int, seed: int, namespace: str = "gpuboss") -> Outcome:
    """`faults` pauses, every other one of the leader. What is timed: until another one leads."""
    took_ms = []
    with Stage(server, seed, namespace=namespace, workers=3) as stage, server.client() as client:
        view = RedisView(client, namespace)
        stage.start_scheduler().wait_for("standing by")
        for number in range(0, faults, 2):
            worker = stage.workers[number // 2 % 2]  # the third one sees that service goes on
            last_id = view.entries()[-1].id
            worker.pause()
            if number + 1 < faults:
                took_ms.append(_pause_leader(stage))
            view.wait_entry("SessionLost", after=last_id, service=worker.name)
            stage.await_grant(time.monotonic())
            worker.resume()
        outcome = stage.judge(faults, took_ms)
    return outcome


def _pause_leader(stage: Stage) -> int:
    leader = stage.await_leader()
    paused_s = time.monotonic()
    leader.signal(signal.SIGSTOP)
    stage.await_leader(not_=leader)
    took_ms = round((time.monotonic() - paused_s) * 1000)
    stage.await_grant(paused_s)
    deposed = leader.stderr.count(DEPOSED)
    leader.signal(signal.SIGCONT)
    eventually(lambda: leader.stderr.count(DEPOSED) > deposed, "the paused leader to step down")
    return took_ms
