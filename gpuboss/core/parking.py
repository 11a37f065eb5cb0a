"""Which shapes are parked: those of a service with a limit that are larger than what it may still hold.

They stand in the queue, but nobody looks at them. A shape is parked by its size alone, so that a service that holds
more, or less, parks and unparks those between, and no others.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuboss.core.waitlist import Shape, Waiting


class Parking:
    """Of services with a limit: the shapes that somebody waits for, by size in MiB, and who starves."""

    def __init__(self) -> None:
        self._left_mib: dict[str, int] = {}  # what each service may still hold; nothing until it is told
        self._sizes: dict[str, list[int]] = {}
        self._shapes: dict[tuple[str, int], dict[Shape, None]] = {}
        self._moved: dict[Shape, None] = {}
        self._starving: dict[str, list[tuple[int, int, Waiting]]] = {}

    def holds(self, shape: Shape) -> bool:
        """Whether a shape is parked."""
        return shape.service is not None and shape.size_mib > self._left_mib.get(shape.service, -1)

    def enter(self, shape: Shape) -> None:
        """Somebody waits for a shape now."""
        if shape.service is None:
            return
        alike = self._shapes.get((shape.service, shape.size_mib))
        if alike is None:
            alike = self._shapes[shape.service, shape.size_mib] = {}
            insort(self._sizes.setdefault(shape.service, []), shape.size_mib)
        alike[shape] = None

    def leave(self, shape: Shape) -> None:
        """Nobody waits for a shape any more."""
        if shape.service is None:
            return
        alike = self._shapes[shape.service, shape.size_mib]
        del alike[shape]
        if not alike:
            del self._shapes[shape.service, shape.size_mib]
            sizes = self._sizes[shape.service]
            del sizes[bisect_left(sizes, shape.size_mib)]
            if not sizes:
                del self._sizes[shape.service]

    def note_starving(self, waiting: Waiting) -> None:
        """A request starves: what others of its service may take is kept for it, if that has a limit."""
        shape = waiting.shape
        if shape.service is not None:
            heapq.heappush(self._starving.setdefault(shape.service, []), (waiting.key, waiting.arrival, waiting))

    def first_starving(self, service: str) -> Waiting | None:
        """The first of a service's waiting requests that starve."""
        heap = self._starving.get(service, [])
        while heap and heap[0][2].gone:
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def move(self, service: str, left_mib: int) -> None:
        """A service may hold so much more now: what of it is larger is parked."""
        was_mib = self._left_mib.get(service, -1)
        self._left_mib[service] = left_mib
        sizes = self._sizes.get(service, [])
        low, high = sorted((bisect_right(sizes, was_mib), bisect_right(sizes, left_mib)))
        for size_mib in sizes[low:high]:
            self._moved |= self._shapes[service, size_mib]

    def take_moved(self) -> dict[Shape, None]:
        """The shapes that were parked or unparked since this was last asked."""
        moved, self._moved = self._moved, {}
        return moved
