"""The first of each shape, found by what there is room for: so that a grant pass looks at those alone who may use it.

Of ten thousand sizes none of which fits nobody is looked at: they cost what one does.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from msgspec import Struct

from gpuboss.core.tournament import WISHES_MAX, Branch, Tournament, leaf_of, outermost_mib
from gpuboss.core.waitlist import Shape, Waiting
from gpuboss.events import DeviceObserved

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


_Pin = tuple[str | None, str | None, bool]  # on which device and node somebody wishes to be, and whether alone


class Front(Struct, eq=False):
    """All who have a wish, as long as anybody has."""

    wish: Wish
    number: int
    branch: Branch
    least_mib: int  # of any

    def largest_mib(self) -> int:
        """The largest size of any."""
        return outermost_mib(self.branch, -1)


class Fronts:
    """The firsts by what they wish for. They follow from who waits, and hold nothing else."""

    def __init__(self) -> None:
        self.tree = Tournament()
        self.by_wish: dict[Wish, Front] = {}
        self._free_numbers: list[int] = []
        self._pinned: dict[_Pin, dict[Front, None]] = {}
        self.limited: dict[Front, None] = {}  # those of services that have a limit
        self._found = 0  # how many stand in the tree
        self._stale = 0  # and how many of them are their shape's first no more

    def follow(self, was: Waiting | None, now: Waiting | None) -> None:
        """Another is the first of a shape: `was` it, or nobody; is it `now`, or nobody."""
        either = was or now
        assert either is not None
        joins = None
        if was is not None:
            was.is_first = False
            self._stale += 1
        if now is not None:
            now.is_first = True
            if now.is_found:
                self._stale -= 1
            else:
                joins, now.is_found = now, True
                self._found += 1
        wish, vram_mib = wish_of(either.shape), either.shape.vram_mib
        front = self.by_wish.get(wish)
        number = self._free_number() if front is None else front.number
        branch, dropped = self.tree.settle(leaf_of(number, either.shape), joins)
        self._found -= dropped
        self._stale -= dropped
        if front is None:
            assert branch is not None
            self._begin(Front(wish, number, branch, vram_mib))
        elif branch is None:
            self._forget(front)
        elif joins is not None:
            front.least_mib = min(vram_mib, front.least_mib)
        elif now is None and vram_mib == front.least_mib:
            front.least_mib = outermost_mib(branch, 0)
        if 2 * self._stale > self._found + STALE_MIN:
            self._drop_stale()

    def of_device(self, observed: DeviceObserved, *, exclusive: bool) -> Iterator[Front]:
        """Those who may be on a device, sharing it or not, and whose service has no limit."""
        devices, nodes = (None, observed.device, observed.uuid), (None, observed.node)
        pins = [(device, node, exclusive) for device in devices for node in nodes]
        return chain.from_iterable([self._pinned[pin] for pin in pins if pin in self._pinned])

    def _free_number(self) -> int:
        number = self._free_numbers.pop() if self._free_numbers else len(self.by_wish)
        assert number < WISHES_MAX
        return number

    def _begin(self, front: Front) -> None:
        wish = front.wish
        self.by_wish[wish] = front
        if wish.service is None:
            self._pinned.setdefault((wish.device, wish.node, wish.exclusive), {})[front] = None
        else:
            self.limited[front] = None

    def _forget(self, front: Front) -> None:
        wish = front.wish
        self._free_numbers.append(front.number)
        del self.by_wish[wish]
        if wish.service is not None:
            del self.limited[front]
            return
        pinned = self._pinned[wish.device, wish.node, wish.exclusive]
        del pinned[front]
        if not pinned:
            del self._pinned[wish.device, wish.node, wish.exclusive]

    def _drop_stale(self) -> None:
        """Whoever asks and takes back, behind one who waits for ever, would fill the crowds without end."""
        for branch in self.tree.branches():
            for at, crowd in enumerate(branch.below):
                if isinstance(crowd, list):
                    for each in crowd:
                        each.is_found = each.is_first
                    left = [each for each in crowd if each.is_first]
                    heapq.heapify(left)
                    branch.below[at] = left if len(left) > 1 else left[0]
        self._found -= self._stale
        self._stale = 0
