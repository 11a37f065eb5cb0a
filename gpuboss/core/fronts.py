"""The first of each shape in the order of the queue and by size, so that a grant pass need not look at all of them.

Shapes that may be on the same devices stand in one front. Of those who pass others only who fits is looked at: a
service that asks for 10,000 different sizes, none of which fits, costs what one size does.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator

from gpuboss.core.ledger import Device
from gpuboss.core.waitlist import Shape, Waiting, Waitlist

STALE_MIN = 64  # entries of a shape's former firsts that are always borne

Entry = tuple[int, int, Shape]  # key and arrival of a shape's first, and the shape; no two have the same arrival


class Front:
    """The shapes that may be on `able`. An entry whose request is not its shape's first any more is dropped when it
    comes up."""

    def __init__(self, able: list[Device]) -> None:
        self.able = able
        self.queue: list[Entry] = []
        self._sizes: dict[bool, list[int]] = {True: [], False: []}  # in MiB, of shapes with an end and of those without
        self._shapes: dict[tuple[bool, int], dict[Shape, None]] = {}

    def first(self, waitlist: Waitlist) -> Entry | None:
        """The entry that is first now."""
        queue = self.queue
        while queue:
            entry = queue[0]
            waiting = waitlist.first(entry[2])
            if waiting is not None and waiting.arrival == entry[1]:
                return entry
            heapq.heappop(queue)
        return None

    def pass_over(self) -> Entry:
        """Take the first entry out, which is looked at, to be put back with `heapq.heappush` when all have been."""
        entry = heapq.heappop(self.queue)
        while self.queue and self.queue[0] == entry:  # it was entered more than once
            heapq.heappop(self.queue)
        return entry

    def enter(self, first: Waiting | None) -> None:
        """Somebody is the first of its shape now."""
        if first is None:
            return
        shape = first.shape
        heapq.heappush(self.queue, (first.key, first.arrival, shape))
        kind = (shape.ttl_ms is not None, shape.vram_mib)
        shapes = self._shapes.get(kind)
        if shapes is None:
            shapes = self._shapes[kind] = {}
            insort(self._sizes[kind[0]], kind[1])
        shapes[shape] = None

    def leave(self, shape: Shape) -> None:
        """Nobody waits for a shape any more."""
        kind = (shape.ttl_ms is not None, shape.vram_mib)
        shapes = self._shapes.get(kind, {})
        shapes.pop(shape, None)
        if not shapes and self._shapes.pop(kind, None) is not None:
            sizes = self._sizes[kind[0]]
            del sizes[bisect_left(sizes, kind[1])]

    def within(self, with_end_mib: int, without_mib: int) -> Iterator[Shape]:
        """The shapes that are no larger: those with an end than the first, those without one than the second."""
        for has_end, most_mib in ((True, with_end_mib), (False, without_mib)):
            sizes = self._sizes[has_end]
            for vram_mib in sizes[: bisect_right(sizes, most_mib)]:
                yield from self._shapes[has_end, vram_mib]


Head = tuple[int, int, Front]  # key and arrival of a front's first, and the front


class Fronts:
    """All fronts. They follow from who waits and from the devices, and hold nothing else."""

    def __init__(self) -> None:
        self._fronts: dict[tuple[Device, ...], Front] = {}
        self._version = -1

    def all(self, waitlist: Waitlist, version: int, candidates: Callable[[Shape], list[Device]]) -> list[Head]:
        """Each front that has anybody in it, with key and arrival of its first. `version`: of the devices;
        `candidates`: which of them could hold a shape."""
        changed = waitlist.take_changed()
        entries = sum(len(front.queue) for front in self._fronts.values())
        if version != self._version or entries > 2 * len(waitlist.by_id) + STALE_MIN:
            self._version = version
            self._fronts.clear()
            changed = list(waitlist.shapes())
        for shape in changed:
            self._follow(shape, waitlist.first(shape), candidates)
        firsts = []
        for front in self._fronts.values():
            entry = front.first(waitlist)
            if entry is not None:
                firsts.append((entry[0], entry[1], front))
        return firsts

    def _follow(self, shape: Shape, first: Waiting | None, candidates: Callable[[Shape], list[Device]]) -> None:
        able = candidates(shape)
        places = tuple(able)
        front = self._fronts.get(places)
        if front is None:
            front = self._fronts[places] = Front(able)
        if first is None:
            front.leave(shape)
        else:
            front.enter(first)
