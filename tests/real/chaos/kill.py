"""kill -9 of the scheduler at every step that it takes, under traffic.

Schedulers run in pairs, one leading and one standing by, each armed to die by SIGKILL at a named point. Whoever dies
is replaced, until enough have died; the last one is not armed and must clear up. All the while the log is trimmed, and
archived before. Then the whole of it is verified, audited, and compared with what a witness saw.
"""

from __future__ import annotations

import contextlib
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.real.chaos.outcome import Outcome
from tests.real.log_check import faults_of, whole
from tests.real.redis_view import RedisView
from tests.real.schedulers import DEADLINE_S, SchedulerProcess
from tests.real.servers import RealServer
from tests.real.traffic import PATIENCE_S, Traffic
from tests.real.witness import Witness

# How often a point is passed before the kill: at random up to this, where it is passed often enough under traffic.
PASSES_MOST = {
    "batch-read": 30,
    "batch-decided": 30,
    "commit-built": 30,
    "commit-sent": 30,
    "committed": 30,
    "tick-appended": 4,
}
SNAPSHOT_EVERY = 20
RETAINED = 100
# The more ended leases a log remembers, the rarer its snapshots: a new log after some of them.
KILLS_OF_A_ROUND = {"snapshot-written": 3}
PAIR = 2  # a leader and a standby
PATIENCE_OF_A_KILL_S = 5  # where each one dies before it decides anything, on a busy machine


def kill_at(server: RealServer, point: str, kills: int, seed: int, namespace: str = "gpuboss") -> Outcome:
    """Kill `kills` schedulers at `point` in empty namespaces, and see what is left."""
    outcome = Outcome()
    while outcome.faults < kills:
        round_kills = min(KILLS_OF_A_ROUND.get(point, kills), kills - outcome.faults)
        outcome.add(_kill_at(server, point, round_kills, seed, f"{namespace}-{outcome.faults}"))
    return outcome


def _kill_at(server: RealServer, point: str, kills: int, seed: int, namespace: str) -> Outcome:
    chance = random.Random(f"{seed}/{point}/{namespace}")
    armed = [f"{point}:{chance.randint(1, PASSES_MOST.get(point, 1))}" for _ in range(kills)]
    patience_s = PATIENCE_S + PATIENCE_OF_A_KILL_S * kills
    with (
        tempfile.TemporaryDirectory() as folder,
        Witness(server, namespace) as witness,
        Traffic(server, seed, services=4, namespace=namespace, patience_s=patience_s) as traffic,
        contextlib.ExitStack() as stack,
    ):
        config, archive = Path(folder) / "config.yaml", Path(folder) / "archive"
        config.write_text(f"scheduler: {{snapshot_every: {SNAPSHOT_EVERY}, retention: {{count: {RETAINED}}}}}\n")

        def start(where: str) -> SchedulerProcess:
            environ = {"GPUBOSS_FAILPOINT": where}
            process = SchedulerProcess(
                server.url, config=str(config), archive=str(archive), namespace=namespace, environ=environ
            )
            return stack.enter_context(process)

        takeovers_ms = _die_in_turn(start, armed)
        start("").wait_leading()
        traffic.stop()
        with server.client() as client:
            view = RedisView(client, namespace)
            faults = faults_of(view, archive) + witness.contradicts(whole(view, archive))
            if view.rows("leases") or view.rows("queue"):
                faults.append("rows of leases or requests are left that are over")
    return Outcome(kills, takeovers_ms, traffic.asked, faults, traffic.lost)


def _die_in_turn(start: Callable[[str], SchedulerProcess], armed: list[str]) -> list[int]:
    """Start one scheduler for each of `armed`, two of them at a time, and wait until all are dead. Returns how long
    each standby took, that stood by when its leader died and did not die itself, until it led (ms)."""
    takeovers_ms: list[int] = []
    to_start, living = list(armed), list[SchedulerProcess]()
    heir, died_s = None, 0.0
    until_s = time.monotonic() + DEADLINE_S
    while living or to_start:
        while to_start and len(living) < PAIR:
            living.append(start(to_start.pop()))
        for each in list(living):
            if each is heir and _leads(each):
                takeovers_ms.append(round((time.monotonic() - died_s) * 1000))
                heir = None
            if each.process is not None and each.process.poll() is not None:
                assert each.wait() == -signal.SIGKILL, f"not killed, but ended by itself:\n{each.stderr}"
                living.remove(each)
                until_s = time.monotonic() + DEADLINE_S
                ready = [other for other in living if _leads(each) and "standing by" in other.stderr]
                heir, died_s = (ready[0], time.monotonic()) if ready else (None, 0.0)
        assert time.monotonic() < until_s, f"nobody died, of: {[each.stderr for each in living]}"
        time.sleep(0.002)
    return takeovers_ms


def _leads(scheduler: SchedulerProcess) -> bool:
    """Whether it has ever led."""
    return "leading epoch=" in scheduler.stderr
