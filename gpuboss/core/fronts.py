"""The first of each shape, found by what there is room for: so that a grant pass looks at those alone who may use it.

Of ten thousand sizes none of which fits nobody is looked at: they cost what one does.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import NamedTuple

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


class Fronts:
    """The firsts by what they wish for. They follow from who waits, and hold nothing else."""

    def __init__(self) -> None:
        self.tree = Tournament()
        self.least_mib: dict[Wish, int] = {}  # of all who have a wish
        self._numbers: dict[Wish, int] = {}
        self._free_numbers: list[int] = []
        self._pinned: dict[tuple[str | None, str | None], dict[Wish, None]] = {}
        self.limited: dict[Wish, None] = {}  # those of services that have a limit
        self._stale = 0  # how many stand in crowds who are their shape's first no more

    def follow(self, was: Waiting | None, now: Waiting | None) -> None:
        """Another is the first of a shape: `was` it, or nobody; is it `now`, or nobody."""
        either = was or now
        assert either is not None
        wish, vram_mib, joins = wish_of(either.shape), either.shape.vram_mib, None
        if was is not None:
            was.is_first = False
            self._stale += 1
        if now is not None:
            now.is_first = True
            if now.is_found:
                self._stale -= 1
            else:
                joins, now.is_found = now, True
                self.least_mib[wish] = min(vram_mib, self.least_mib.get(wish, VRAM_MIB_MAX))
        self._stale -= self.tree.settle(leaf_of(self._number(wish), either.shape), joins)
        if now is None:
            if self.root(wish) not in self.tree.best:
                self._forget(wish)
            elif vram_mib == self.least_mib[wish]:
                self.least_mib[wish] = outermost_mib(self.tree, self.root(wish), min)
        if self._stale > len(self.tree.best) + STALE_MIN:
            self._drop_stale()

    def root(self, wish: Wish) -> int:
        """The node of the tree above all who have a wish; one that is not there if nobody has."""
        number = self._numbers.get(wish)
        return 0 if number is None else WISH + number

    def wishes(self) -> Iterator[Wish]:
        """What anybody who waits wishes for."""
        return iter(self._numbers)

    def wishes_of(self, observed: DeviceObserved) -> Iterator[Wish]:
        """What those who may be on a device wish for, and whose service has no limit."""
        for device in (None, observed.device, observed.uuid):
            for node in (None, observed.node):
                yield from self._pinned.get((device, node), ())

    def largest_mib(self, wish: Wish) -> int:
        """The largest size of anybody who has a wish."""
        return outermost_mib(self.tree, self.root(wish), max)

    def _number(self, wish: Wish) -> int:
        number = self._numbers.get(wish)
        if number is None:
            number = self._numbers[wish] = self._free_numbers.pop() if self._free_numbers else len(self._numbers)
            assert number < WISH
            if wish.service is None:
                self._pinned.setdefault((wish.device, wish.node), {})[wish] = None
            else:
                self.limited[wish] = None
        return number

    def _forget(self, wish: Wish) -> None:
        self._free_numbers.append(self._numbers.pop(wish))
        del self.least_mib[wish]
        if wish.service is not None:
            del self.limited[wish]
            return
        pinned = self._pinned[wish.device, wish.node]
        del pinned[wish]
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
