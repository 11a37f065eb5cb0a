"""The first of each shape, found by what there is room for: so that a grant pass looks at those alone who may use it.

Of ten thousand sizes none of which fits nobody is looked at: they cost what one does.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from msgspec import Struct

from gpuboss.core.tournament import WISH, Tournament, leaf_of, outermost_mib
from gpuboss.core.waitlist import Shape, Waiting
from gpuboss.events import DeviceObserved
from gpuboss.fields import VRAM_MIB_MAX

STALE_MIN = 1_000  # of those who are their shape's first no more, so many are always borne


class Wish(NamedTuple):
    """What of a shape is neither its size nor its life."""

    gpus: int
    exclusive: bool
    device: str | None
    node: str | None
    service: str | None


def wish_of(shape: Shape) -> Wish:
    """The wish of a shape."""
    # A plain tuple made into a Wish: half the price of calling the class, for something that every request needs.
    return tuple.__new__(Wish, (shape.gpus, shape.exclusive, shape.device, shape.node, shape.service))


class Front(Struct, eq=False):
    """All who have a wish: the node of the tree above them (0: nobody has it any more), and the least size of any."""

    wish: Wish
    root: int
    least_mib: int = VRAM_MIB_MAX


class Fronts:
    """The firsts by what they wish for. They follow from who waits, and hold nothing else."""

    def __init__(self) -> None:
        self.tree = Tournament()
        self.by_wish: dict[Wish, Front] = {}
        self._free_roots: list[int] = []
        self._pinned: dict[tuple[str | None, str | None], dict[Front, None]] = {}
        self.limited: dict[Front, None] = {}  # those of services that have a limit
        self._stale = 0  # how many stand in crowds who are their shape's first no more

    def follow(self, was: Waiting | None, now: Waiting | None) -> None:
        """Another is the first of a shape: `was` it, or nobody; is it `now`, or nobody."""
        either = was or now
        assert either is not None
        front, vram_mib, joins = self._front(wish_of(either.shape)), either.shape.vram_mib, None
        if was is not None:
            was.is_first = False
            self._stale += 1
        if now is not None:
            now.is_first = True
            if now.is_found:
                self._stale -= 1
            else:
                joins, now.is_found = now, True
                front.least_mib = min(vram_mib, front.least_mib)
        self._stale -= self.tree.settle(leaf_of(front.root, either.shape), joins)
        if now is None:
            if front.root not in self.tree.best:
                self._forget(front)
            elif vram_mib == front.least_mib:
                front.least_mib = outermost_mib(self.tree, front.root, min)
        if self._stale > len(self.tree.best) + STALE_MIN:
            self._drop_stale()

    def of_device(self, observed: DeviceObserved) -> Iterator[Front]:
        """Those who may be on a device, and whose service has no limit."""
        pins = [(device, node) for device in (None, observed.device, observed.uuid) for node in (None, observed.node)]
        return chain.from_iterable(self._pinned[pin] for pin in pins if pin in self._pinned)

    def largest_mib(self, front: Front) -> int:
        """The largest size of any."""
        return outermost_mib(self.tree, front.root, max)

    def _front(self, wish: Wish) -> Front:
        front = self.by_wish.get(wish)
        if front is None:
            root = self._free_roots.pop() if self._free_roots else WISH + len(self.by_wish)
            assert root < WISH << 1
            front = self.by_wish[wish] = Front(wish, root)
            if wish.service is None:
                self._pinned.setdefault((wish.device, wish.node), {})[front] = None
            else:
                self.limited[front] = None
        return front

    def _forget(self, front: Front) -> None:
        wish = front.wish
        self._free_roots.append(front.root)
        front.root = 0
        del self.by_wish[wish]
        if wish.service is not None:
            del self.limited[front]
            return
        pinned = self._pinned[wish.device, wish.node]
        del pinned[front]
        if not pinned:
            del self._pinned[wish.device, wish.node]

    def _drop_stale(self) -> None:
        """Whoever asks and takes back, behind one who waits for ever, would fill the crowds without end."""
        for leaf, crowd in list(self.tree.crowds.items()):
            for each in crowd:
                each.is_found = each.is_first
            crowd[:] = [each for each in crowd if each.is_first]
            heapq.heapify(crowd)
            if len(crowd) < 2:
                del self.tree.crowds[leaf]
        self._stale = 0
