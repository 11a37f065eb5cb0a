"""Faults on real processes, under traffic: kills, pauses, cuts, losses. Prints what they did, and what was promised
twice or lost by them (nothing), and how long service took to go on. Exits 1 if anything was."""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from gpuboss_scheduler.failpoints import NAMES
from tests.real.chaos.kill import kill_at
from tests.real.chaos.loss import cut, lose
from tests.real.chaos.outcome import TITLE, Outcome, line_of
from tests.real.chaos.pause import pause
from tests.real.chaos.server import restart, stall
from tests.real.servers import RealServer, available_servers

AT_ONCE = 4  # servers, each with its schedulers and services: mostly they wait
Strike = Callable[[RealServer, int, int], Outcome]  # on a server of its own: how many faults, and the seed


class Fault(NamedTuple):
    """One way to strike, and how often a long run does, on all kinds of server together."""

    name: str
    strike: Strike
    most: int


def _kill_at(point: str) -> Fault:
    return Fault(f"kill at {point}", lambda server, faults, seed: kill_at(server, point, faults, seed), 52)


FAULTS: dict[str, list[Fault]] = {
    "kill": [_kill_at(point) for point in NAMES],
    "pause": [Fault("pause", pause, 120)],
    "cut": [Fault("cut AOF", cut, 120)],
    "loss": [Fault("total loss", lose, 24)],
    "server": [Fault("restart of the server", restart, 60), Fault("stall of the server", stall, 12)],
}


def main() -> int:
    """The command line. Returns 1 if anything was lost or doubled."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="one kind of fault (default: all)")
    parser.add_argument("--count", type=int, help="of each fault, on all servers together (default: 12 to 120)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the traffic (default: any)")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="servers at work at once (%(default)s)")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}\n{TITLE}", flush=True)
    wrong = 0
    with ThreadPoolExecutor(arguments.at_once) as threads:
        runs = [
            (kind, fault, threads.submit(strike, kind, fault, arguments.count or fault.most, arguments.seed))
            for name in arguments.fault or FAULTS
            for fault in FAULTS[name]
            for kind in available_servers()
        ]
        for kind, fault, running in runs:
            wrong += _tell(kind, fault, running.result())
    return 1 if wrong else 0


def strike(kind: str, fault: Fault, count: int, seed: int) -> Outcome:
    """This server's share of `count` faults, on a server of their own."""
    with tempfile.TemporaryDirectory() as folder, RealServer(Path(folder), kind) as server:
        return fault.strike(server, math.ceil(count / len(available_servers())), seed)


def _tell(kind: str, fault: Fault, outcome: Outcome) -> int:
    print(line_of(kind, fault.name, outcome), flush=True)
    for problem in outcome.doubled + outcome.lost:
        print(f"    {problem}")
    return len(outcome.doubled) + len(outcome.lost)


if __name__ == "__main__":
    sys.exit(main())
