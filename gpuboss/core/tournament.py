"""A tournament of those who wait, by wish, size and life: who of them, in the order of the queue, could use some room.

A tree of digits. Each branch knows the first of all below it, and how short the shortest life is, so that a search goes
down only where there may be room for somebody. Who is the first below each of the branches right below it, a branch
knows as well: to find out who comes next one looks at those alone. Whoever has nobody beside it stands right there,
without branches of its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from msgspec import Struct

from gpuboss.core.waitlist import NEVER_MS, Shape, Waiting
from gpuboss.fields import MS_MAX, VRAM_MIB_MAX

BITS = 4  # of a digit
DIGIT = (1 << BITS) - 1
# Which digits the lower byte of a mask stands for, and the upper one: a list is made of them faster than bit by bit.
LOWER = [tuple([digit for digit in range(8) if byte >> digit & 1]) for byte in range(256)]
UPPER = [tuple([8 + digit for digit in digits]) for digits in LOWER]
assert 1 << BITS == 16, "a mask has two bytes"
LIFE_BITS, SIZE_BITS, WISH_BITS = 8, 24, 20
WISHES_MAX = 1 << WISH_BITS
TOP = WISH_BITS + SIZE_BITS + LIFE_BITS - BITS  # so many bits of a leaf are right of its first digit
WISH_DIGITS = WISH_BITS // BITS
assert VRAM_MIB_MAX <= 1 << SIZE_BITS
assert MS_MAX.bit_length() << 2 | 3 < (1 << LIFE_BITS) - 1

Lendable = tuple[int, int]  # so many MiB, to a lease of at most so many ms
ANYTHING: Sequence[Lendable] = ((VRAM_MIB_MAX, NEVER_MS),)


def leaf_of(wish: int, shape: Shape) -> int:
    """Where somebody with the wish of this number belongs."""
    return ((wish << SIZE_BITS) + shape.vram_mib - 1 << LIFE_BITS) + _code(shape.ttl_ms)


class Branch(Struct, eq=False, gc=False):
    """A node of the tree, and what is right below it. `first`: of all below it. `digits`: under which there is anybody,
    a bit each. `below`: what is under each of these, in their order: another branch, or, of one leaf, somebody alone or
    a crowd. `firsts`: the first under each. `shortest_ms`: the shortest life of all below it, or less than that."""

    first: Waiting
    digits: int = 0
    below: list[There] = []
    firsts: list[Waiting] = []
    shortest_ms: int = NEVER_MS


There = Branch | list[Waiting] | Waiting  # what can be right below a branch
Way = list[tuple[Branch, int]]  # down to a leaf: each branch, and which of those right below it comes next


class Tournament:
    """The tree. Of those in a leaf only the first must be the first of its shape; a crowd is a heap."""

    def __init__(self) -> None:
        self.root: Branch | None = None

    def settle(self, leaf: int, joins: Waiting | None) -> tuple[Branch | None, int]:
        """Have a leaf led by the first of a shape, once somebody joined it. Returns the branch above all with its wish
        (None: nobody is left), and how many others were dropped."""
        way = self._way_to(leaf) if joins is None else self._room_for(leaf, joins)
        branch, at = way[-1]
        there = branch.below[at]
        assert not isinstance(there, Branch)
        crowd = there if isinstance(there, list) else [there]
        was = crowd[0] if crowd else None
        if joins is not None:
            heapq.heappush(crowd, joins)
        before = len(crowd)
        while crowd and not crowd[0].is_first:
            heapq.heappop(crowd).is_found = False
        if crowd:
            branch.below[at] = crowd if len(crowd) > 1 else crowd[0]
            branch.firsts[at] = crowd[0]
        else:
            self._cut(way, leaf)
        if was is not None and not was.is_found:  # it was dropped
            _succeed(way, was)
            if not crowd:  # how long those with other wishes live nobody asks
                _lengthen(way[WISH_DIGITS:], _least_ms(_code(was.shape.ttl_ms)))
        return way[WISH_DIGITS][0] if len(way) > WISH_DIGITS else None, before - len(crowd)

    def branches(self) -> Iterator[Branch]:
        """All of them. Walks the tree: for what is rare."""
        found = [] if self.root is None else [self.root]
        while found:
            branch = found.pop()
            found += [each for each in branch.below if isinstance(each, Branch)]
            yield branch

    def _way_to(self, leaf: int) -> Way:
        """The way to where a leaf stands."""
        there: There | None = self.root
        way, left = Way(), TOP
        while isinstance(there, Branch):
            at = (there.digits & (1 << (leaf >> left & DIGIT)) - 1).bit_count()
            way.append((there, at))
            there, left = there.below[at], left - BITS
        return way

    def _room_for(self, leaf: int, joins: Waiting) -> Way:
        """The way to where a leaf stands or will; all on it know then who joins. Whoever stands there alone, in another
        leaf, goes down."""
        branch = self.root = self.root or Branch(joins)
        way, left, life_ms = Way(), TOP, joins.life_ms
        while True:
            bit = 1 << (leaf >> left & DIGIT)
            at = (branch.digits & bit - 1).bit_count()
            way.append((branch, at))
            if not branch.digits & bit:
                branch.digits |= bit
                branch.below.insert(at, Branch(joins) if len(way) <= WISH_DIGITS else [])
                branch.firsts.insert(at, joins)
            elif joins < branch.firsts[at]:
                branch.firsts[at] = joins
            if branch.firsts[at] is joins and joins < branch.first:
                branch.first = joins
            if life_ms < branch.shortest_ms:
                branch.shortest_ms = life_ms
            there, left = branch.below[at], left - BITS
            if not isinstance(there, Branch):
                first = there if isinstance(there, Waiting) else there[0] if there else joins
                its_leaf = leaf_of(leaf >> SIZE_BITS + LIFE_BITS, first.shape)
                if its_leaf == leaf:
                    return way
                down = Branch(first, 1 << (its_leaf >> left & DIGIT), [there], [first], _shortest_ms(there))
                branch.below[at] = there = down
            branch = there

    def _cut(self, way: Way, leaf: int) -> None:
        """Nobody is left in a leaf. Leaves of the way what is still there."""
        while way:
            branch, at = way[-1]
            branch.digits ^= 1 << (leaf >> TOP - BITS * (len(way) - 1) & DIGIT)
            del branch.below[at], branch.firsts[at]
            if branch.below:
                break
            way.pop()
        else:
            self.root = None
        while len(way) > WISH_DIGITS + 1 and len(branch.below) == 1 and not isinstance(branch.below[0], Branch):
            alone = way.pop()[0]
            branch, at = way[-1]
            branch.below[at], branch.firsts[at] = alone.below[0], alone.firsts[0]


def _succeed(way: Way, was: Waiting) -> None:
    """Have all on a way know who is the first: who `was` it is not there any more."""
    for depth in range(len(way) - 1, -1, -1):
        branch = way[depth][0]
        if branch.first is not was:
            break
        branch.first = min(branch.firsts)
        if depth:
            above, at = way[depth - 1]
            above.firsts[at] = branch.first


def _lengthen(way: Way, life_ms: int) -> None:
    """Somebody with a life that was not less has gone: the shortest may be longer now."""
    for branch, _ in reversed(way):
        if branch.shortest_ms < life_ms:
            break
        shortest_ms = min(map(_shortest_ms, branch.below))
        if shortest_ms <= branch.shortest_ms:
            break
        branch.shortest_ms = shortest_ms


def _shortest_ms(there: There) -> int:
    if isinstance(there, Branch):
        return there.shortest_ms
    return _least_ms(_code(there[0].shape.ttl_ms)) if isinstance(there, list) else there.life_ms


def outermost_mib(branch: Branch, at: int) -> int:
    """The least size of those who have a wish (`at`: 0), or the largest (-1)."""
    there: There = branch
    while isinstance(there, Branch):
        there = there.below[at]
    return (there[0] if isinstance(there, list) else there).shape.vram_mib


class Search:
    """Those to whom something could be lent, in the order of the queue: of those with one wish, or, of anything, of all
    in the tree."""

    def __init__(self, root: Branch | None, lendable: Sequence[Lendable] = ANYTHING) -> None:
        self._lendable = lendable
        self._most_mib = max((most_mib for most_mib, _ in lendable), default=0)
        # What may be lent for ever is lent to any life.
        self._to_any_life = len(lendable) == 1 and lendable[0][1] == NEVER_MS
        # Each with what is there, and behind a one the digits that lead there; or, in a crowd, its place in it.
        self._heap: list[tuple[Waiting, There, int]] = []
        self._last: Waiting | None = None
        if root is not None:
            self._heap.append((root.first, root, 1))

    def next(self) -> Waiting | None:
        """The next of them. Nobody may have joined or left them since the last."""
        heap = self._heap
        while heap:
            first, there, at = heap[0]
            # Who is first below a branch needs no look below it, unless those behind are asked for as well.
            if first is not self._last and first.is_first and self._is_lendable(first.shape.vram_mib, first.life_ms):
                self._last = first
                return first
            heapq.heappop(heap)
            if isinstance(there, Branch):
                self._look(there, at)
            elif isinstance(there, list):
                for after in (2 * at + 1, 2 * at + 2):
                    if after < len(there):
                        heapq.heappush(heap, (there[after], there, after))
        return None

    def _look(self, branch: Branch, path: int) -> None:
        """Go on below a branch, to which these digits lead, behind a one."""
        heap, to_any_life, digits = self._heap, self._to_any_life, self._small_enough(branch, path)
        while len(digits) == 1 and isinstance(only := branch.below[0], Branch):
            branch, path = only, path << BITS | digits[0]
            digits = self._small_enough(branch, path)
        for digit, first, there in zip(digits, branch.firsts, branch.below, strict=False):
            if not isinstance(there, Branch):
                heapq.heappush(heap, (first, there, 0))
            else:
                below = path << BITS | digit
                if to_any_life or self._is_lendable(_least_mib(below), there.shortest_ms):
                    heapq.heappush(heap, (first, there, below))

    def _small_enough(self, branch: Branch, path: int) -> tuple[int, ...]:
        """The digits below a branch under which there can be a size of which there is so much: the least of them."""
        digits, left = branch.digits, SIZE_BITS + 1 - BITS - path.bit_length()
        if left >= 0 and self._most_mib < VRAM_MIB_MAX:
            most = (self._most_mib - 1 >> left) - ((path << BITS) - (1 << SIZE_BITS - left))
            if most < DIGIT:
                digits &= (2 << most) - 1 if most >= 0 else 0
        return LOWER[digits & 255] + UPPER[digits >> 8]

    def _is_lendable(self, vram_mib: int, life_ms: int) -> bool:
        if self._to_any_life:
            return vram_mib <= self._most_mib
        return any(vram_mib <= most_mib and life_ms <= most_ms for most_mib, most_ms in self._lendable)


def _least_mib(path: int) -> int:
    """The least size with these digits, behind a one; those of a life may follow them."""
    left = SIZE_BITS + 1 - path.bit_length()
    return (path << left if left >= 0 else path >> -left) - (1 << SIZE_BITS) + 1


def _code(ttl_ms: int | None) -> int:
    """A length of life by its three leading binary digits and how many there are: four codes to an octave."""
    if ttl_ms is None:
        return (1 << LIFE_BITS) - 1
    bits = ttl_ms.bit_length()
    return bits << 2 | (ttl_ms << 2 >> (bits - 1) & 3)


def _least_ms(code: int) -> int:
    """The shortest life with a code."""
    return NEVER_MS if code == (1 << LIFE_BITS) - 1 else (4 | code & 3) << (code >> 2) >> 3
