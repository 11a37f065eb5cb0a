"""Our own entries, which come back when the log is read on: they were applied when they were written."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from gpuboss.core.state import State

Raw = tuple[bytes, list[bytes]]  # an entry as it was read: id and fields


class _Block(NamedTuple):
    first_id: bytes
    entries: int
    seq: int  # of its last entry


class Readback:
    """The blocks of decisions that commits wrote behind entries that had not been read yet. A commit is atomic, so
    the entries of a block stand together, and need not be looked at one by one."""

    def __init__(self) -> None:
        self._blocks: deque[_Block] = deque()
        self._left = 0  # entries of the block that we are in

    def expect(self, first_id: str, entries: int, seq: int) -> None:
        """A commit wrote so many decisions, from `first_id` on; the last has the number `seq`."""
        if entries:
            self._blocks.append(_Block(first_id.encode(), entries, seq))

    def others(self, entries: Sequence[Raw], state: State) -> Iterable[Raw]:
        """The entries that are not from our own commits; those are counted in the state in their place."""
        return self._between_blocks(entries, state) if self._blocks else entries

    def _between_blocks(self, entries: Sequence[Raw], state: State) -> Iterator[Raw]:
        at = 0
        while at < len(entries):
            if self._blocks and (self._left or entries[at][0] == self._blocks[0].first_id):
                at += self._pass(entries, at, state)
            else:
                yield entries[at]
                at += 1

    def _pass(self, entries: Sequence[Raw], at: int, state: State) -> int:
        """How many of the entries at `at` belong to the first block."""
        passed = min(self._left or self._blocks[0].entries, len(entries) - at)
        self._left = (self._left or self._blocks[0].entries) - passed
        if not self._left:
            state.last_id, state.seq = entries[at + passed - 1][0].decode(), self._blocks.popleft().seq
        return passed
