"""The requests that wait: a heap for each shape, so that nothing ever walks the queue.

Requests of one shape (size, device, node, number, exclusiveness, life, class, and the service if it has a limit) fit in
the same places at the same time, and may have the same leases asked back; if the first of them fits nowhere, none of
them does. So of each shape only the first is looked for, in `Fronts`. Those for whom leases were asked back already
stand apart: room is held for each of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct
from msgspec.structs import force_setattr

from gpuboss.core.parking import Parking
from gpuboss.events import LeaseRequested
from gpuboss.fields import MS_MAX, Priority

if TYPE_CHECKING:
    from gpuboss.core.plans import Plan

GONE_MIN = 1_000  # of those that are gone, so many are always borne in the heaps
NAMES_MAX = 100_000  # so many are known at a time, so that others can share them
NEVER_MS = MS_MAX + 1  # the life of who has no end: longer than any


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


class Waiting(Struct, order=True, gc=False):
    """One waiting request. `key` and then `arrival`, its number in the log, place it in the queue: in that order two of
    them compare, so that they stand in heaps by themselves, without a tuple each."""

    key: int
    arrival: int
    request: LeaseRequested
    shape: Shape
    requested_at_ms: int
    wait_until_ms: int | None
    starves_at_ms: int
    since_ms: int = 0  # when it was submitted; a jump of the clock moves that
    preempts_at_ms: int | None = None  # when it has to be looked at again, because it may have more asked back then
    plan: Plan | None = None  # what was asked back for it
    starves: bool = False  # it waited so long that devices may be drained for it, and its service's limit kept
    gone: bool = False
    is_first: bool = False  # of its shape
    is_found: bool = False  # it stands in `Fronts`

    def __hash__(self) -> int:
        return self.arrival

    @property
    def life_ms(self) -> int:
        """How long its lease will last."""
        ttl_ms = self.shape.ttl_ms
        return NEVER_MS if ttl_ms is None else ttl_ms


Follow = Callable[[Waiting | None, Waiting | None], None]  # who was the first of a shape, and who is


class _Names:
    """The names that those who wait have in common, kept once: of a million requests they would be 150 MB."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def share(self, request: LeaseRequested) -> None:
        """Have a request use the names that are known already."""
        if len(self._known) >= NAMES_MAX:
            self._known.clear()
        force_setattr(request, "service", self._known.setdefault(request.service, request.service))
        if request.session is not None:
            force_setattr(request, "session", self._known.setdefault(request.session, request.session))


class Waitlist:
    """All waiting requests, by id and by shape. Removal is lazy: a heap drops the gone when they come up. Shapes that
    are parked have no first, as if nobody waited for them."""

    def __init__(self, follow: Follow) -> None:
        """`follow` is told whenever somebody else is the first of a shape."""
        self.by_id: dict[str, Waiting] = {}
        self._follow = follow
        self._of_service: dict[str, int] = {}  # how many wait, of those of whom anybody does
        self._heaps: dict[Shape, Waiting | list[Waiting]] = {}  # most shapes have one who waits for it, and no heap
        self.parking = Parking()
        self._gone = 0  # how many in the heaps are
        self._names = _Names()

    def add(self, waiting: Waiting) -> bool:
        """Queue a request. True if it is now the first of its shape, so that a place for it must be looked for."""
        self._names.share(waiting.request)
        self.by_id[waiting.request.lease_id] = waiting
        service = waiting.request.service
        self._of_service[service] = self._of_service.get(service, 0) + 1
        if waiting.starves:
            self.parking.note_starving(waiting)
        return self.enter(waiting)

    def enter(self, waiting: Waiting) -> bool:
        """Let a request stand among those of its shape. True if it is the first of them, and they are not parked."""
        shape = waiting.shape
        heap = self._heaps.get(shape)
        if heap is None:
            self._heaps[shape] = waiting
            self.parking.enter(shape)
            if not self.parking.holds(shape):
                self._follow(None, waiting)
            return waiting.is_first
        if not isinstance(heap, list):
            heap = self._heaps[shape] = [heap]
        was = heap[0]
        heapq.heappush(heap, waiting)
        if heap[0] is waiting and not self.parking.holds(shape):
            self._follow(was, waiting)
        return waiting.is_first

    def remove(self, waiting: Waiting) -> None:
        """Take a request out: it was granted, or it is over. Nothing may be held for it any more."""
        assert waiting.plan is None, waiting.request
        waiting.gone = True
        del self.by_id[waiting.request.lease_id]
        service = waiting.request.service
        self._of_service[service] -= 1
        if not self._of_service[service]:
            del self._of_service[service]
        heap = self._heaps[waiting.shape]
        if isinstance(heap, list):
            self._gone += 1
        self._lead(waiting, heap)
        if self._gone > len(self.by_id) + GONE_MIN:
            # Whoever asks and takes back, behind one who waits for ever, would fill the heaps without end.
            for heap in self._heaps.values():
                if isinstance(heap, list):
                    heap[:] = [each for each in heap if not each.gone]
                    heapq.heapify(heap)
            self._gone = 0

    def leave(self, waiting: Waiting) -> None:
        """Have a request, which goes on waiting, stand apart from those of its shape."""
        heap = self._heaps[waiting.shape]
        if isinstance(heap, list):
            heap.remove(waiting)
            heapq.heapify(heap)
        self._lead(waiting, heap)

    def park(self, service: str, left_mib: int) -> None:
        """A service may hold so much more now: what of it is larger has no first, and what is not has one."""
        for shape in self.parking.move(service, left_mib):
            heap = self._heaps[shape]
            first = heap[0] if isinstance(heap, list) else heap
            if self.parking.holds(shape):
                self._follow(first, None)
            else:
                self._follow(None, first)

    def count_of(self, service: str) -> int:
        """How many requests of a service wait."""
        return self._of_service.get(service, 0)

    def shapes(self) -> Iterator[Shape]:
        """The shapes that somebody waits for."""
        return iter(self._heaps)

    def of_shape(self, shape: Shape) -> list[Waiting]:
        """All who wait for a shape, in the order of the queue. Walks them: for events that are rare."""
        heap = self._heaps.get(shape, [])
        return sorted(each for each in heap if not each.gone) if isinstance(heap, list) else [heap]

    def in_order(self) -> list[Waiting]:
        """The whole queue in its order. Walks it: for people, not for decisions."""
        return sorted(self.by_id.values())

    def _lead(self, was: Waiting, heap: Waiting | list[Waiting]) -> None:
        """Somebody left a shape, who perhaps was its first."""
        while isinstance(heap, list) and heap and heap[0].gone:
            heapq.heappop(heap)
            self._gone -= 1
        first = heap[0] if isinstance(heap, list) and heap else None
        if first is None:
            del self._heaps[was.shape]
            self.parking.leave(was.shape)
        if was.is_first:
            self._follow(was, first)
