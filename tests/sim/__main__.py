"""Runs the real client and scheduler in a simulated world, by seed: `scripts/sim`.

A seed decides everything that happens: sizes, requests, and which faults at which moments. The same seed is the same
run, to the byte. Of one seed the trace can be printed; of many the summary is.
"""

from __future__ import annotations

import argparse
import sys

from tests.sim.campaign import Campaign, run_seeds
from tests.sim.guards import SWITCHES, Guards
from tests.sim.world import World


def main() -> int:
    """Returns 1 if a promise was broken, or, without a guard, if it was not."""
    arguments = _arguments()
    if arguments.seeds is None:
        return _run_one(arguments)
    first, _, behind = arguments.seeds.partition("..")
    campaign = Campaign()
    for outcome in run_seeds(
        range(int(first), int(behind)), arguments.jobs, arguments.without, is_short=arguments.short
    ):
        campaign.add(outcome)
        if outcome.problems and arguments.without is None:
            print(
                f"seed {outcome.seed}: {outcome.problems[0]}\n  again: scripts/sim {outcome.seed} --trace", flush=True
            )
    print(campaign.summary())
    if arguments.without is None:
        return 1 if campaign.failed else 0
    first_seed = min((outcome.seed for outcome in campaign.failed), default=None)
    print(f"without {arguments.without}: caught in {len(campaign.failed)} seeds, first in {first_seed}")
    return 0 if campaign.failed else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/sim", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", help="run this one")
    parser.add_argument("--short", action="store_true", help="as the tests have it: faults for a third of the time")
    parser.add_argument("--trace", action="store_true", help="print all that happens in it")
    parser.add_argument("--seeds", metavar="FIRST..BEHIND", help="run many, the last one not included")
    parser.add_argument("--jobs", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument("--without", choices=sorted(SWITCHES), help="switch this guard off; it should be missed")
    arguments = parser.parse_args()
    if (arguments.seed is None) == (arguments.seeds is None):
        parser.error("expected a seed, or --seeds FIRST..BEHIND, for example --seeds 0..500")
    return arguments


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
