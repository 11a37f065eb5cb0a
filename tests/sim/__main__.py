"""Runs the real client and scheduler in a simulated world, by seed: `scripts/sim`.

A seed decides everything that happens: sizes, requests, and which faults at which moments. The same seed is the same
run, to the byte. Of one seed the trace can be printed; of many the summary is, and meanwhile, on
stderr, how far they are; if they are stopped (SIGINT, SIGTERM), of those that are done.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import closing, suppress

from tests.sim.campaign import Campaign, run_seeds
from tests.sim.guards import SWITCHES, Guards
from tests.sim.world import World


def main() -> int:
    """Returns 1 if a promise was broken, or, without a guard, if it was not."""
    arguments = _arguments()
    if arguments.seeds is None:
        return _run_one(arguments)
    first, _, behind = arguments.seeds.partition("..")
    campaign = Campaign(int(behind) - int(first))
    _run_many(campaign, range(int(first), int(behind)), arguments)
    if campaign.seeds < campaign.planned:
        _say(f"stopped; what was done so far, of {campaign.planned:,} seeds:")
    _say(campaign.summary())
    if arguments.without is not None:
        first_seed = min((outcome.seed for outcome in campaign.failed), default=None)
        _say(f"without {arguments.without}: caught in {len(campaign.failed)} seeds, first in {first_seed}")
        return 0 if campaign.failed else 1
    if campaign.failed:
        return 1
    return 0 if campaign.seeds == campaign.planned else 128 + signal.SIGINT


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/sim", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", help="run this one")
    parser.add_argument("--short", action="store_true", help="as the tests have it: faults for a third of the time")
    parser.add_argument("--trace", action="store_true", help="print all that happens in it")
    parser.add_argument("--seeds", metavar="FIRST..BEHIND", help="run many, the last one not included")
    parser.add_argument("--jobs", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument(
        "--every",
        type=float,
        default=10.0,
        metavar="S",
        help="seconds from one progress line to the next (%(default)g)",
    )
    parser.add_argument("--without", choices=sorted(SWITCHES), help="switch this guard off; it should be missed")
    arguments = parser.parse_args()
    if (arguments.seed is None) == (arguments.seeds is None):
        parser.error("expected a seed, or --seeds FIRST..BEHIND, for example --seeds 0..500")
    return arguments


def _run_many(campaign: Campaign, seeds: range, arguments: argparse.Namespace) -> None:
    """Until all are done, or a signal says that it is enough; a second one ends it at once."""
    signals: list[int] = []

    def stop(number: int, _: object) -> None:
        signals.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with closing(run_seeds(seeds, arguments.jobs, arguments.without, is_short=arguments.short)) as outcomes:
        for outcome in outcomes:
            campaign.add(outcome)
            if outcome.problems and arguments.without is None:
                again = f"scripts/sim {outcome.seed}{' --short' if arguments.short else ''} --trace"
                _say(f"seed {outcome.seed}: {outcome.problems[0]}\n  again: {again}")
            if (progress := campaign.progress(arguments.every)) is not None:
                with suppress(OSError):
                    print(progress, file=sys.stderr, flush=True)
            if signals:
                return


def _say(text: str) -> None:
    """On stdout; on stderr, once nobody reads that any more: hours of work are not lost with a pipe."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        with suppress(OSError):
            print(text, flush=True)


def _run_one(arguments: argparse.Namespace) -> int:
    world = World(
        arguments.seed,
        Guards(arguments.without),
        tell=print if arguments.trace else None,
        is_short=arguments.short,
    ).run()
    print(world.settings)
    print(
        f"{world.timeline.steps} steps, {world.timeline.now_us / 1e6:.1f} s, faults {world.counts}, {world.digest[:16]}"
    )
    for problem in world.problems:
        print(f"broken: {problem}")
    return 1 if world.problems else 0


if __name__ == "__main__":
    sys.exit(main())
