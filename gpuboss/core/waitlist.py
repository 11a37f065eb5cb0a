"""The requests that wait: a heap for each shape, so that nothing ever walks the queue.

Requests of one shape (size, device, node, number, exclusiveness, life, and the service if it has a limit) fit in the
same places at the same time; if the first of them fits nowhere, none of them does.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gpuboss.core.parking import Parking
from gpuboss.events import LeaseRequested
from gpuboss.fields import Priority

GONE_MIN = 1_000  # of those that are gone, so many are always borne in the heaps


class Shape(NamedTuple):
    """What of a request decides where it fits, and what it may pass."""

    vram_mib: int
    gpus: int
    exclusive: bool
    device: str | None
    node: str | None
    ttl_ms: int | None
    service: str | None = None  # whose limit it counts against; None: its service has none

    @property
    def size_mib(self) -> int:
        """What it takes of all devices together."""
        return self.vram_mib * self.gpus


def shape_of(request: LeaseRequested, limits: Mapping[str, int]) -> Shape:
    """The shape of a request. `limits`: of the services that have one, in MiB."""
    # A plain tuple made into a Shape: half the price of calling the class, for something that every request needs.
    service = request.service if request.service in limits else None
    fields = (request.vram_mib, request.gpus, request.exclusive, request.device, request.node, request.ttl_ms, service)
    return tuple.__new__(Shape, fields)


@dataclass(slots=True, eq=False)
class Waiting:
    """One waiting request. `key` and then `arrival`, its number in the log, place it in the queue. `priority` is what
    it counts as: less than it claims where its service may not claim that."""

    request: LeaseRequested
    shape: Shape
    priority: Priority
    key: int
    arrival: int
    requested_at_ms: int
    wait_until_ms: int | None
    starves_at_ms: int
    starves: bool = False  # it waited so long that devices may be drained for it, and its service's limit kept
    gone: bool = False


class Waitlist:
    """All waiting requests, by id and by shape. Removal is lazy: a heap drops the gone when they come up. Shapes that
    are parked have no first, as if nobody waited for them."""

    def __init__(self) -> None:
        self.by_id: dict[str, Waiting] = {}
        self._of_service: dict[str, int] = {}  # how many wait, of those of whom anybody does
        self._heaps: dict[Shape, list[tuple[int, int, Waiting]]] = {}
        self.parking = Parking()
        self._changed: dict[Shape, None] = {}  # shapes that have another first than when they were last taken
        self._gone = 0  # how many in the heaps are

    def add(self, waiting: Waiting) -> bool:
        """Queue a request. True if it is now the first of its shape, so that a place for it must be looked for."""
        heap = self._heaps.get(waiting.shape)
        if heap is None:
            heap = self._heaps[waiting.shape] = []
            self.parking.enter(waiting.shape)
        heapq.heappush(heap, (waiting.key, waiting.arrival, waiting))
        self.by_id[waiting.request.lease_id] = waiting
        service = waiting.request.service
        self._of_service[service] = self._of_service.get(service, 0) + 1
        if waiting.starves:
            self.parking.note_starving(waiting)
        is_first = self._first(heap) is waiting and not self.parking.holds(waiting.shape)
        if is_first:
            self._changed[waiting.shape] = None
        return is_first

    def remove(self, waiting: Waiting) -> None:
        """Take a request out: it was granted, or it is over."""
        waiting.gone = True
        del self.by_id[waiting.request.lease_id]
        service = waiting.request.service
        self._of_service[service] -= 1
        if not self._of_service[service]:
            del self._of_service[service]
        self._gone += 1
        heap = self._heaps[waiting.shape]
        if heap[0][2] is waiting:
            self._changed[waiting.shape] = None
        if self._first(heap) is None:
            del self._heaps[waiting.shape]
            self.parking.leave(waiting.shape)
        if self._gone > len(self.by_id) + GONE_MIN:
            self._drop_gone()

    def count_of(self, service: str) -> int:
        """How many requests of a service wait."""
        return self._of_service.get(service, 0)

    def first(self, shape: Shape) -> Waiting | None:
        """The first waiting request of a shape; None while it is parked."""
        heap = self._heaps.get(shape)
        return None if heap is None or self.parking.holds(shape) else self._first(heap)

    def take_changed(self) -> list[Shape]:
        """The shapes that have another first, or have one, or none, since this was last asked."""
        changed = list(self._changed | self.parking.take_moved())
        self._changed.clear()
        return changed

    def shapes(self) -> Iterator[Shape]:
        """The shapes that somebody waits for."""
        return iter(self._heaps)

    def of_shape(self, shape: Shape) -> list[Waiting]:
        """All who wait for a shape, in the order of the queue. Walks them: for events that are rare."""
        return [waiting for _, _, waiting in sorted(self._heaps.get(shape, [])) if not waiting.gone]

    def in_order(self) -> list[Waiting]:
        """The whole queue in its order. Walks it: for people, not for decisions."""
        return sorted(self.by_id.values(), key=lambda waiting: (waiting.key, waiting.arrival))

    def _drop_gone(self) -> None:
        """Whoever asks and takes back, behind one who waits for ever, would fill the heaps without end."""
        for heap in self._heaps.values():
            heap[:] = [entry for entry in heap if not entry[2].gone]
            heapq.heapify(heap)
        self._gone = 0

    def _first(self, heap: list[tuple[int, int, Waiting]]) -> Waiting | None:
        while heap and heap[0][2].gone:
            heapq.heappop(heap)
            self._gone -= 1
        return heap[0][2] if heap else None
