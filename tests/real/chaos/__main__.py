"""Faults on real processes, under traffic: kills, pauses, cuts, losses. Prints what they did, and what was promised
twice or lost by them (nothing), and how long service took to go on. Exits 1 if anything was, or, without the fence,
if a pause did no harm: then these checks see nothing."""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from gpuboss_scheduler.failpoints import NAMES
from tests.real.chaos.clock import jump
from tests.real.chaos.failover import fail_over
from tests.real.chaos.kill import kill_at
from tests.real.chaos.loss import cut, lose
from tests.real.chaos.outcome import TITLE, Outcome, line_of
from tests.real.chaos.pause import pause
from tests.real.chaos.server import restart, stall
from tests.real.chaos.unfenced import pause_unfenced
from tests.real.chaos.wire import cut_connections, half_open, partition
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
    "proxy": [
        Fault("cut connections", cut_connections, 120),
        Fault("half-open connections", half_open, 24),
        Fault("a service cut off alone", partition, 24),
    ],
    "failover": [Fault("failover to a late replica", fail_over, 40)],
    "clock": [Fault("jump of the clock", jump, 40)],
}
CONTROL = Fault("pause without a fence", pause_unfenced, 20)


def main() -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="one kind of fault (default: all)")
    parser.add_argument("--count", type=int, help="of each fault, on all servers together (default: 12 to 120)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the traffic (default: any)")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="servers at work at once (%(default)s)")
    parser.add_argument("--without-fence", action="store_true", help="the control run: each pause must promise twice")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}\n{TITLE}", flush=True)
    faults = [CONTROL] if arguments.without_fence else _of_kinds(arguments.fault or FAULTS)
    outcomes = _strike_all(faults, arguments)
    if arguments.without_fence:
        return 0 if all(len(outcome.doubled) == outcome.faults for outcome in outcomes) else 1
    return 1 if any(outcome.doubled or outcome.lost for outcome in outcomes) else 0


def _of_kinds(kinds: Iterable[str]) -> list[Fault]:
    return [fault for kind in kinds for fault in FAULTS[kind]]


def _strike_all(faults: list[Fault], arguments: argparse.Namespace) -> list[Outcome]:
    """Each on each kind of server, some at once; told as they end."""
    outcomes = []
    with ThreadPoolExecutor(arguments.at_once) as threads:
        runs = [
            (kind, fault, threads.submit(strike, kind, fault, arguments.count or fault.most, arguments.seed))
            for fault in faults
            for kind in available_servers()
        ]
        for kind, fault, running in runs:
            outcome = running.result()
            print(line_of(kind, fault.name, outcome), flush=True)
            for problem in outcome.doubled + outcome.lost:
                print(f"    {problem}")
            outcomes.append(outcome)
    return outcomes


def strike(kind: str, fault: Fault, count: int, seed: int) -> Outcome:
    """This server's share of `count` faults, on a server of their own."""
    with tempfile.TemporaryDirectory() as folder, RealServer(Path(folder), kind) as server:
        try:
            return fault.strike(server, math.ceil(count / len(available_servers())), seed)
        except AssertionError as stuck:  # the others go on, and this is told in its place
            return Outcome(lost=[str(stuck)])


if __name__ == "__main__":
    sys.exit(main())
