"""What a server has written and may still lose: the way back from each step since the last sync."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

Undo = tuple[Callable[..., object], *tuple[Any, ...]]  # what to call, and with what, to take one change back


_Step = tuple[int, list[Undo]]  # when, and the way back


class Journal:
    """Steps that are not synced yet, the oldest first. A step is one command, or one script: it is kept whole or lost
    whole, as the append-only file has it."""

    def __init__(self) -> None:
        self._steps: deque[_Step] = deque()

    def append(self, at_us: int, undo: list[Undo]) -> None:
        """A step was taken; `undo` holds a way back for each change, in the order of the changes."""
        self._steps.append((at_us, undo))

    def sync(self, before_us: int) -> None:
        """Steps before this time can no longer be lost."""
        steps = self._steps
        while steps and steps[0][0] < before_us:
            steps.popleft()

    def sync_all(self) -> None:
        """Nothing can be lost any more."""
        self._steps.clear()

    def steps_since(self, at_us: int) -> int:
        """How many steps were taken from this time on that may be lost."""
        return sum(step_us >= at_us for step_us, _ in self._steps)

    def take_back(self, count: int) -> None:
        """Undo the last so many steps; those before them are synced with it."""
        for _ in range(count):
            for undo, *about in reversed(self._steps.pop()[1]):
                undo(*about)
        self._steps.clear()
