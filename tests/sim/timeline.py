"""Virtual time: one heap of what is going to happen, in whole microseconds, and the clock that moves along it."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

Happening = Callable[[], object]

# [when (us), number, what happens, or None once it is called off]. A list, because heaps compare lists fastest; the
# number keeps what is due at one time in the order in which it was planned.
Due = list[Any]


class Timeline:
    """What happens next. `steps` counts what has happened, `steps_max` is when it ends."""

    def __init__(self, steps_max: int) -> None:
        self.now_us = 0
        self.steps = 0
        self.steps_max = steps_max
        self._heap: list[Due] = []
        self._planned = 0

    def after(self, delay_us: int, happening: Happening) -> Due:
        """Plan something; returns what `call_off` takes."""
        return self.at(self.now_us + delay_us, happening)

    def at(self, at_us: int, happening: Happening) -> Due:
        """The same for a moment, which may be past: then it is next."""
        self._planned = number = self._planned + 1
        due = [at_us if at_us > self.now_us else self.now_us, number, happening]
        heappush(self._heap, due)
        return due

    def run_past(self, moment_us: int) -> bool:
        """Let things happen until one does after this moment; False if it ended before."""
        heap = self._heap
        while heap and self.steps < self.steps_max:
            at_us, _, happening = heappop(heap)
            if happening is not None:
                self.now_us = at_us
                self.steps += 1
                happening()
                if at_us > moment_us:
                    return True
        return False

    def end(self) -> None:
        """Nothing happens any more, whatever is planned."""
        self.steps_max = 0

    def forget(self) -> None:
        """Nothing of what is planned happens."""
        self._heap.clear()


def call_off(due: Due | None) -> None:
    """It does not happen after all."""
    if due is not None:
        due[2] = None
