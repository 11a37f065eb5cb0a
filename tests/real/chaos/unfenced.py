"""The control run: the same pauses of leaders whose scripts lack the fence. Each of them must promise twice."""

from __future__ import annotations

import contextlib
import signal

from tests.real.chaos.outcome import Outcome
from tests.real.chaos.stage import Stage
from tests.real.redis_view import RedisView
from tests.real.schedulers import eventually
from tests.real.servers import RealServer
from tests.verdict.log import granted_twice


def pause_unfenced(server: RealServer, faults: int, seed: int, namespace: str = "gpuboss") -> Outcome:
    """`faults` pauses of a leader, each in a namespace of its own, since no log survives them. `doubled` holds one line
    for each pause that did promise twice."""
    outcome = Outcome(faults=faults)
    for number in range(faults):
        with Stage(server, seed + number, namespace=f"{namespace}-{number}", scheduler="tests.real.unfenced") as stage:
            outcome.doubled += _pause(stage)[:1]
            outcome.requests += len([note for note in stage.history() if note.what == "asked"])
    return outcome


def _pause(stage: Stage) -> list[str]:
    """What was granted twice once the paused one goes on."""
    stage.start_scheduler().wait_for("standing by")
    leader = stage.await_leader()
    stage.await_grants(3)
    leader.signal(signal.SIGSTOP)
    stage.await_leader(not_=leader)
    stage.await_grants(3)
    leader.signal(signal.SIGCONT)
    with stage.server.client() as client:
        view = RedisView(client, stage.namespace)
        found: list[str] = []

        def doubled() -> bool:
            found[:] = granted_twice(view.entries())
            return bool(found)

        with contextlib.suppress(AssertionError):  # then that is what this run shows
            eventually(doubled, "a promise that was made already")
    return found
