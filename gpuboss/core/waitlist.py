"""The requests that wait: a heap for each shape, so that nothing ever walks the queue.

Requests of one shape (size, device, node, number, exclusiveness, life, class, and the service if it has a limit) fit in
the same places at the same time, and may have the same leases asked back; if the first of them fits nowhere, none of
them does. Those for whom leases were asked back already stand apart: room is held for each of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from gpuboss.core.parking import Parking
from gpuboss.events import LeaseRequested
from gpuboss.fields import Priority

if TYPE_CHECKING:
    from gpuboss.core.plans import Plan

GONE_MIN = 1_000  # of those that are gone, so many are always borne in the heaps


class Shape(NamedTuple):
    """What of a request decides where it fits, what it may pass, and which leases may be asked back for it."""

    vram_mib: int
    gpus: int
    exclusive: bool
    device: str | None
    node: str | None
    ttl_ms: int | None
    priority: Priority  # what it counts as: less than it claims where its service may not claim that
    service: str | None  # whose limit it counts against; None: its service has none

    @property
    def size_mib(self) -> int:
        """What it takes of all devices together."""
        return self.vram_mib * self.gpus


def shape_of(request: LeaseRequested, priority: Priority, limits: Mapping[str, int]) -> Shape:
    """The shape of a request that counts as `priority`. `limits`: of the services that have one, in MiB."""
    # A plain tuple made into a Shape: half the price of calling the class, for something that every request needs.
    service = request.service if request.service in limits else None
    size = (request.vram_mib, request.gpus, request.exclusive)
    return tuple.__new__(Shape, (*size, request.device, request.node, request.ttl_ms, priority, service))


class Waiting(Struct, eq=False):
    """One waiting request. `key` and then `arrival`, its number in the log, place it in the queue."""

    request: LeaseRequested
    shape: Shape
    key: int
    arrival: int
    requested_at_ms: int
    wait_until_ms: int | None
    starves_at_ms: int
    since_ms: int = 0  # when it was submitted; a jump of the clock moves that
    preempts_at_ms: int | None = None  # when it has to be looked at again, because it may have more asked back then
    plan: Plan | None = None  # what was asked back for it
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
        self.by_id[waiting.request.lease_id] = waiting
        service = waiting.request.service
        self._of_service[service] = self._of_service.get(service, 0) + 1
        if waiting.starves:
            self.parking.note_starving(waiting)
        return self.enter(waiting)

    def enter(self, waiting: Waiting) -> bool:
        """Let a request stand among those of its shape. True if it is the first of them."""
        heap = self._heaps.get(waiting.shape)
        if heap is None:
            heap = self._heaps[waiting.shape] = []
            self.parking.enter(waiting.shape)
        heapq.heappush(heap, (waiting.key, waiting.arrival, waiting))
        self._gone -= _drop_gone(heap)
        is_first = heap[0][2] is waiting and not self.parking.holds(waiting.shape)
        if is_first:
            self._changed[waiting.shape] = None
        return is_first

    def remove(self, waiting: Waiting) -> None:
        """Take a request out: it was granted, or it is over. Nothing may be held for it any more."""
        assert waiting.plan is None, waiting.request
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
        self._gone -= _drop_gone(heap)
        if not heap:
            del self._heaps[waiting.shape]
            self.parking.leave(waiting.shape)
        if self._gone > len(self.by_id) + GONE_MIN:
            # Whoever asks and takes back, behind one who waits for ever, would fill the heaps without end.
            for heap in self._heaps.values():
                heap[:] = [entry for entry in heap if not entry[2].gone]
                heapq.heapify(heap)
            self._gone = 0

    def leave(self, waiting: Waiting) -> None:
        """Have a request, which goes on waiting, stand apart from those of its shape."""
        heap = self._heaps[waiting.shape]
        self._gone -= _drop_gone(heap)
        if heap[0][2] is waiting:
            heapq.heappop(heap)
        else:
            heap.remove((waiting.key, waiting.arrival, waiting))
            heapq.heapify(heap)
        self._changed[waiting.shape] = None
        self._gone -= _drop_gone(heap)
        if not heap:
            del self._heaps[waiting.shape]
            self.parking.leave(waiting.shape)

    def count_of(self, service: str) -> int:
        """How many requests of a service wait."""
        return self._of_service.get(service, 0)

    def first(self, shape: Shape) -> Waiting | None:
        """The first waiting request of a shape; None while it is parked."""
        heap = self._heaps.get(shape)
        if heap is None or self.parking.holds(shape):
            return None
        self._gone -= _drop_gone(heap)
        return heap[0][2] if heap else None

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


def _drop_gone(heap: list[tuple[int, int, Waiting]]) -> int:
    """Have one who still waits come first; returns how many were dropped for that."""
    dropped = 0
    while heap and heap[0][2].gone:
        heapq.heappop(heap)
        dropped += 1
    return dropped
