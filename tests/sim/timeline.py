"""Virtual time: one heap of what is going to happen, in whole microseconds, and the clock that moves along it."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

Happening = Callable[[], object]

# [when (us), number, what happens, or None once it is called off]. A list, because heaps compare lists fastest; the
# number keeps what is due at one time in the order in which it was planned.
Due = list[Any]


class Timeline:
    """What happens next. `steps` counts what has happened."""

    def __init__(self) -> None:
        self.now_us = 0
        self.steps = 0
        self._heap: list[Due] = []
        self._planned = 0

    def after(self, delay_us: int, happening: Happening) -> Due:
        """Plan something; returns what `call_off` takes."""
        return self.at(self.now_us + delay_us, happening)

    def at(self, at_us: int, happening: Happening) -> Due:
        """The same for a moment, which may be past: then it is next."""
        self._planned += 1
        due = [max(at_us, self.now_us), self._planned, happening]
        heapq.heappush(self._heap, due)
        return due

    def step(self) -> bool:
        """Let the next thing happen; False if there is none."""
        while self._heap:
            at_us, _, happening = heapq.heappop(self._heap)
            if happening is not None:
                self.now_us = at_us
                self.steps += 1
                happening()
                return True
        return False

    def forget(self) -> None:
        """Nothing happens any more."""
        self._heap.clear()


def call_off(due: Due | None) -> None:
    """It does not happen after all."""
    if due is not None:
        due[2] = None
