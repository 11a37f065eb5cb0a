"""The first of each shape in the order of the queue, so that a grant pass need not look at shapes that have no place.

Shapes that may be on the same devices stand in one front. Once all these devices are taken or kept for others, none
of them has a place, however many they are: a service that asks for 10,000 different sizes costs what one size does.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

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


class Fronts:
    """All fronts. `settled` is the version of the devices that every shape was looked at for: before, what is kept
    for somebody may be on a device that serves it no more."""

    def __init__(self) -> None:
        self.settled = -1
        self._fronts: dict[tuple[Device, ...], Front] = {}
        self._version = -1
        self._entries = 0

    def all(
        self, waitlist: Waitlist, version: int, candidates: Callable[[Shape], list[Device]]
    ) -> list[tuple[int, int, Front]]:
        """Each front that has anybody in it, with key and arrival of its first. `version`: of the devices;
        `candidates`: which of them could hold a shape."""
        changed = waitlist.take_changed()
        if version != self._version or self._entries > 2 * len(waitlist.by_id) + STALE_MIN:
            self._version, self._entries = version, 0
            self._fronts.clear()
            changed = list(waitlist.shapes())
        for shape in changed:
            first = waitlist.first(shape)
            if first is not None:
                self._enter(first, candidates(shape))
        firsts = []
        for front in self._fronts.values():
            entry = front.first(waitlist)
            if entry is not None:
                firsts.append((entry[0], entry[1], front))
        return firsts

    def _enter(self, first: Waiting, able: list[Device]) -> None:
        places = tuple(able)
        front = self._fronts.get(places)
        if front is None:
            front = self._fronts[places] = Front(able)
        heapq.heappush(front.queue, (first.key, first.arrival, first.shape))
        self._entries += 1
