"""A tournament of those who wait, by wish, size and life: who of them, in the order of the queue, could use some room.

A tree of digits. Each node knows the first of all below it, and how short the shortest life is, so that a search goes
down only where there may be room for somebody. Whoever has nobody beside it below a node stands at that node.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from gpuboss.core.waitlist import NEVER_MS, Shape, Waiting
from gpuboss.fields import MS_MAX, VRAM_MIB_MAX

BITS = 4  # of a digit
DIGIT = (1 << BITS) - 1
# Which digits the lower byte of a mask stands for, and the upper one: a list is made of them faster than bit by bit.
LOWER = [tuple([digit for digit in range(8) if byte >> digit & 1]) for byte in range(256)]
UPPER = [tuple([8 + digit for digit in digits]) for digits in LOWER]
assert 1 << BITS == 16, "a mask has two bytes"
LIFE_BITS, SIZE_BITS, WISH_BITS = 8, 24, 20
WISH = 1 << WISH_BITS  # a node is the digits above it, behind a one: this is the least that has a whole wish above it
SIZE = WISH << SIZE_BITS
assert VRAM_MIB_MAX <= 1 << SIZE_BITS
assert MS_MAX.bit_length() << 2 | 3 < (1 << LIFE_BITS) - 1

Lendable = tuple[int, int]  # so many MiB, to a lease of at most so many ms
ANYTHING: Sequence[Lendable] = ((VRAM_MIB_MAX, NEVER_MS),)


def leaf_of(root: int, shape: Shape) -> int:
    """Where somebody of those below a node that has a whole wish above it belongs."""
    return ((root << SIZE_BITS) + shape.vram_mib - 1 << LIFE_BITS) + _code(shape.ttl_ms)


class Tournament:
    """The tree. Of those in a leaf only the first must be the first of its shape; the others are a heap below it."""

    def __init__(self) -> None:
        self.best: dict[int, Waiting] = {}  # the first of all below a node
        self.digits: dict[int, int] = {}  # under which there is anybody below a node, a bit each; who is alone has none
        self.crowds: dict[int, list[Waiting]] = {}  # of a leaf with more than one
        self.shortest_ms: dict[int, int] = {}  # of all below a node with a wish above it; or less than that

    def settle(self, leaf: int, joins: Waiting | None) -> int:
        """Have a leaf led by the first of a shape, once somebody joined it. Returns how many others were dropped."""
        at = self._slot(leaf) if joins is None else self._room_for(leaf)
        was = self.best.get(at)
        crowd = self.crowds.pop(at, [] if was is None else [was])
        if joins is not None:
            heapq.heappush(crowd, joins)
        before = len(crowd)
        while crowd and not crowd[0].is_first:
            heapq.heappop(crowd).is_found = False
        if len(crowd) > 1:
            self.crowds[at] = crowd
        first = crowd[0] if crowd else None
        if first is not None:
            self.best[at] = first
        else:
            at = self._cut(at)
        self._lift(at >> BITS, was, first)
        if joins is not None:
            self._shorten(at >> BITS, joins.life_ms)
        if first is None:
            self._lengthen(at >> BITS)
        return before - len(crowd)

    def below(self, at: int, digits: int = -1) -> list[int]:
        """The nodes right below one, in their order; of these `digits` alone, a bit each."""
        mask, least = self.digits[at] & digits, at << BITS
        return [least + digit for half in (LOWER[mask & 255], UPPER[mask >> 8]) for digit in half]

    def _slot(self, leaf: int) -> int:
        """Where a leaf stands."""
        at, left = 1, leaf.bit_length() - 1
        while at in self.digits:
            left -= BITS
            at = leaf >> left
        return at

    def _room_for(self, leaf: int) -> int:
        """Where a leaf stands or will: whoever stands there alone, and in another leaf, goes down."""
        at, left = 1, leaf.bit_length() - 1
        while True:
            alone = self.best.get(at)
            left -= BITS
            if at not in self.digits:
                its_leaf = leaf if alone is None else leaf_of(leaf >> SIZE_BITS + LIFE_BITS, alone.shape)
                if at >= WISH and its_leaf == leaf:
                    return at
                self.digits[at] = 0
                if alone is not None:
                    self.digits[at] = 1 << (its_leaf >> left & DIGIT)
                    self.shortest_ms[at] = self._shortest_ms(at, alone)
                    self._move(at, its_leaf >> left)
                    self.best[at] = alone
            at, above = leaf >> left, at
            self.digits[above] |= 1 << (at & DIGIT)

    def _move(self, at: int, to: int) -> None:
        self.best[to] = self.best.pop(at)
        crowd = self.crowds.pop(at, None)
        if crowd is not None:
            self.crowds[to] = crowd

    def _cut(self, at: int) -> int:
        """Nobody is left at a node. Returns the node up to which all is well again."""
        del self.best[at]
        while (above := at >> BITS) and self.digits[above] == 1 << (at & DIGIT):
            del self.digits[above], self.best[above]
            self.shortest_ms.pop(above, None)
            at = above
        if above:
            self.digits[above] ^= 1 << (at & DIGIT)
        while above >= WISH and len(below := self.below(above)) == 1 and below[0] not in self.digits:
            del self.digits[above], self.shortest_ms[above]
            self._move(below[0], above)
            at, above = above, above >> BITS
        return at

    def _lift(self, at: int, was: Waiting | None, first: Waiting | None) -> None:
        """Have a node and all above it know who is the first: whoever `was` it below is not there, or not alone."""
        best = self.best
        while at:
            known = best.get(at)
            if first is not None and (known is None or first < known):
                best[at] = first
            elif known is was and was is not first:
                best[at] = min(map(best.__getitem__, self.below(at)))
            else:
                break
            at >>= BITS

    def _shorten(self, at: int, life_ms: int) -> None:
        while at >= WISH and self.shortest_ms[at] > life_ms:
            self.shortest_ms[at] = life_ms
            at >>= BITS

    def _lengthen(self, at: int) -> None:
        """Somebody has gone: the shortest life may be longer now."""
        while at >= WISH:
            shortest_ms = min([self._shortest_ms(child, self.best[child]) for child in self.below(at)])
            if shortest_ms <= self.shortest_ms[at]:
                break
            self.shortest_ms[at] = shortest_ms
            at >>= BITS

    def _shortest_ms(self, at: int, first: Waiting) -> int:
        if at in self.shortest_ms:
            return self.shortest_ms[at]
        return _least_ms(_code(first.shape.ttl_ms)) if at in self.crowds else first.life_ms


def outermost_mib(tree: Tournament, root: int, outermost: Callable[[list[int]], int]) -> int:
    """The least size below a node that has a whole wish above it, or the largest."""
    at = root
    while at in tree.digits:
        at = outermost(tree.below(at))
    return tree.best[at].shape.vram_mib


class Search:
    """Those below a node to whom something could be lent, in the order of the queue."""

    def __init__(self, tree: Tournament, root: int = 1, lendable: Sequence[Lendable] = ANYTHING) -> None:
        self._tree = tree
        self._lendable = lendable
        self._most_mib = max((most_mib for most_mib, _ in lendable), default=0)
        # What may be lent for ever is lent to any life.
        self._to_any_life = len(lendable) == 1 and lendable[0][1] == NEVER_MS
        self._heap: list[tuple[Waiting, int, int]] = []  # with a node and, in a leaf, the place in its crowd
        self._last: Waiting | None = None
        if root in tree.best:
            self._look([root])

    def next(self) -> Waiting | None:
        """The next of them. Nobody may have joined or left them since the last."""
        heap = self._heap
        while heap:
            first, at, place = heap[0]
            # Who is first below a node needs no look below it, unless those behind are asked for as well.
            if first is not self._last and first.is_first and self._is_lendable(first.shape.vram_mib, first.life_ms):
                self._last = first
                return first
            heapq.heappop(heap)
            if at in self._tree.digits:
                self._look(self._tree.below(at, self._small_enough(at)))
            else:
                crowd = self._tree.crowds.get(at, ())
                for after in (2 * place + 1, 2 * place + 2):
                    if after < len(crowd):
                        heapq.heappush(heap, (crowd[after], at, after))
        return None

    def _look(self, nodes: list[int]) -> None:
        heap, best, to_any_life = self._heap, self._tree.best, self._to_any_life
        for at in nodes:
            if to_any_life or self._may_be_lent_to(at):
                heapq.heappush(heap, (best[at], at, 0))

    def _small_enough(self, at: int) -> int:
        """The digits below a node under which there can be a size of which there is so much, a bit each."""
        bits = at.bit_length() - WISH.bit_length()
        if bits < 0 or bits >= SIZE_BITS:
            return -1
        left = SIZE_BITS - bits - BITS
        most = (self._most_mib - 1 >> left) - ((at & ((1 << bits) - 1)) << BITS)
        return (1 << min(most + 1, 1 << BITS)) - 1 if most >= 0 else 0

    def _may_be_lent_to(self, at: int) -> bool:
        if at < WISH or at not in self._tree.digits:
            return True
        return self._is_lendable(_least_mib(at), self._tree.shortest_ms[at])

    def _is_lendable(self, vram_mib: int, life_ms: int) -> bool:
        if self._to_any_life:
            return vram_mib <= self._most_mib
        return any(vram_mib <= most_mib and life_ms <= most_ms for most_mib, most_ms in self._lendable)


def _least_mib(at: int) -> int:
    """The least size that can stand below a node that has a whole wish above it."""
    bits = at.bit_length() - WISH.bit_length()
    if bits > SIZE_BITS:
        return (at >> bits - SIZE_BITS & ((1 << SIZE_BITS) - 1)) + 1
    return ((at & ((1 << bits) - 1)) << (SIZE_BITS - bits)) + 1


def _code(ttl_ms: int | None) -> int:
    """A length of life by its three leading binary digits and how many there are: four codes to an octave."""
    if ttl_ms is None:
        return (1 << LIFE_BITS) - 1
    bits = ttl_ms.bit_length()
    return bits << 2 | (ttl_ms << 2 >> (bits - 1) & 3)


def _least_ms(code: int) -> int:
    """The shortest life with a code."""
    return NEVER_MS if code == (1 << LIFE_BITS) - 1 else (4 | code & 3) << (code >> 2) >> 3
