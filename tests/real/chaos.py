"""Kills the scheduler at every step that it takes, under traffic, and audits what is left: `scripts/chaos`.

Schedulers run in pairs, one leading and one standing by, each armed to die by SIGKILL at a named point. Whoever dies
is replaced, until enough have died; the last one is not armed and must clear up. All the while the log is trimmed, and
archived before. Then the whole of it is verified, audited, and compared with what a witness saw.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gpuboss_scheduler.failpoints import NAMES
from tests.real.log_check import faults_of, whole
from tests.real.redis_view import RedisView
from tests.real.schedulers import DEADLINE_S, SchedulerProcess
from tests.real.servers import RealServer, available_servers
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


class Outcome(NamedTuple):
    """What a chain of kills at one point left. `takeovers_ms`: from a leader's death until the next one led."""

    kills: int
    takeovers_ms: list[int]
    requests: int
    faults: list[str]
    lost: list[str]


def kill_at(server: RealServer, point: str, kills: int, seed: int, namespace: str = "gpuboss") -> Outcome:
    """Kill `kills` schedulers at `point` in empty namespaces, and see what is left."""
    whole = Outcome(0, [], 0, [], [])
    while whole.kills < kills:
        round_kills = min(KILLS_OF_A_ROUND.get(point, kills), kills - whole.kills)
        part = _kill_at(server, point, round_kills, seed, f"{namespace}-{whole.kills}")
        whole = Outcome(
            whole.kills + part.kills,
            whole.takeovers_ms + part.takeovers_ms,
            whole.requests + part.requests,
            whole.faults + part.faults,
            whole.lost + part.lost,
        )
    return whole


def _kill_at(server: RealServer, point: str, kills: int, seed: int, namespace: str) -> Outcome:
    chance = random.Random(f"{seed}/{point}/{namespace}")
    armed = [f"{point}:{chance.randint(1, PASSES_MOST.get(point, 1))}" for _ in range(kills)]
    with (
        tempfile.TemporaryDirectory() as folder,
        Witness(server, namespace) as witness,
        Traffic(server, seed, services=4, namespace=namespace, patience_s=PATIENCE_S + 2 * kills) as traffic,
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


def main() -> int:
    """Kill at every point on every kind of server, and print a table. Returns 1 if anything was lost or doubled."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    kills = int(os.environ.get("GPUBOSS_TEST_KILLS", "20"))
    parser.add_argument("--kills", type=int, default=kills, help="kills at each point on each server (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the traffic (default: any)")
    parser.add_argument("points", nargs="*", metavar="POINT", help=f"of {', '.join(NAMES)} (default: all)")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    print(f"{'server':8}{'killed at':18}", end="")
    print(f"{'kills':>6}{'requests':>10}{'takeover p50':>14}{'max':>9}{'faults':>8}{'lost':>6}")
    wrong = 0
    for kind in available_servers():
        for point in arguments.points or NAMES:
            with tempfile.TemporaryDirectory() as folder, RealServer(Path(folder), kind) as server:
                outcome = kill_at(server, point, arguments.kills, arguments.seed)
            wrong += len(outcome.faults) + len(outcome.lost)
            print(_line(kind, point, outcome), flush=True)
            for problem in [*outcome.faults, *outcome.lost]:
                print(f"    {problem}")
    return 1 if wrong else 0


def _line(kind: str, point: str, outcome: Outcome) -> str:
    taken = sorted(outcome.takeovers_ms)
    p50, most = (f"{taken[len(taken) // 2]} ms", f"{taken[-1]} ms") if taken else ("-", "-")
    counts = f"{outcome.kills:6}{outcome.requests:10}{p50:>14}{most:>9}{len(outcome.faults):8}{len(outcome.lost):6}"
    return f"{kind:8}{point:18}{counts}"


if __name__ == "__main__":
    sys.exit(main())
