"""Deadlines of the log's clock: a heap with lazy deletion, fired in the order (deadline, kind, id)."""

from __future__ import annotations

import heapq
from enum import IntEnum
from typing import NamedTuple


class TimerKind(IntEnum):
    """What is due. At one ms, leases end before waits time out."""

    LEASE_EXPIRY = 0
    YIELD_DEADLINE = 1
    WAIT_TIMEOUT = 2
    RECOVERY_END = 3
    STARVATION = 4
    PREEMPTION = 5


class Timer(NamedTuple):
    """One deadline. Compared field by field: the order in which timers fire."""

    deadline_ms: int
    kind: TimerKind
    lease_id: str


class Timers:
    """All deadlines that were ever set. Whether one still holds, its owner knows: `state.timer_holds`."""

    def __init__(self) -> None:
        self._heap: list[Timer] = []

    def set(self, deadline_ms: int, kind: TimerKind, lease_id: str) -> None:
        """Have `lease_id` looked at when the clock reaches `deadline_ms`."""
        heapq.heappush(self._heap, Timer(deadline_ms, kind, lease_id))

    def first(self) -> Timer | None:
        """The earliest of all."""
        return self._heap[0] if self._heap else None

    def drop_first(self) -> Timer:
        """Take the earliest out, because it is due or no longer holds."""
        return heapq.heappop(self._heap)
