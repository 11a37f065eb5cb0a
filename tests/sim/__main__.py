"""`scripts/sim`: runs seeds of the simulated world."""

from __future__ import annotations

import sys
import time

from tests.sim.world import World


def main() -> None:
    seed = int(sys.argv[1])
    began = time.perf_counter()
    world = World(seed, tell=print if "--trace" in sys.argv else None).run()
    took = time.perf_counter() - began
    print(world.settings)
    print(world.problems, world.counts, world.told, f"asked {world.asked} loaded {world.loaded}",
          f"steps {world.timeline.steps} {world.timeline.steps/took:.0f}/s sim {world.timeline.now_us/1e6:.1f}s", world.digest[:12])


main()
