"""The guards of the promise, each of which can be switched off to see that the simulator misses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.sim.settings import Settings

if TYPE_CHECKING:
    from tests.sim.bindings import Bindings
    from tests.sim.world import World


class Guards:
    """All of them on, but maybe one."""

    def __init__(self, without: str | None = None) -> None:
        if without is not None and without not in SWITCHES:
            raise ValueError(f"{without} is no guard; there are {', '.join(SWITCHES)}")
        self.without = without

    def lock_delay_ms(self, settings: Settings) -> int:
        """What the scheduler is told to wait for memory that may still be on a card."""
        return 0 if self.without == "reclaiming" else settings.lock_delay_ms

    def switch_off(self, bindings: Bindings, world: World) -> None:
        """Take the guard away."""
        if self.without is not None:
            SWITCHES[self.without](bindings, world)


SWITCHES: dict[str, Callable[[Bindings, World], None]] = {
    "reclaiming": lambda bindings, world: None,
}
