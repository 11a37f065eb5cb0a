"""What is remembered for 24 h of log time after it is over: so that a repeated request is answered again and never
becomes a second lease, and a session that was lost stays lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from msgspec import Struct

from gpuboss.events import LeaseDenied, LeaseEnded, LeaseGranted, LeaseRequested

REMEMBERED_MS = 24 * 60 * 60 * 1000

T = TypeVar("T")


class Past(Struct, frozen=True, gc=False):
    """A request that is over: what was asked, what was granted (None: nothing) and how it ended."""

    request: LeaseRequested
    granted: LeaseGranted | None
    ended: LeaseEnded | LeaseDenied


class Memory(Generic[T]):
    """Things by name, each forgotten 24 h of log time after it was added."""

    def __init__(self) -> None:
        self.by_name: dict[str, T] = {}
        # Apart, because finding the first key of a dict that lost many before it walks over their graves.
        self._oldest: deque[tuple[int, str]] = deque()

    def add(self, name: str, thing: T, at_ms: int) -> None:
        """Remember a thing from `at_ms` on; times never go back. Something known already keeps its time."""
        if name not in self.by_name:
            self._oldest.append((at_ms, name))
            self.by_name[name] = thing

    def forget_before(self, now_ms: int) -> None:
        """Forget what was added more than 24 h before `now_ms`."""
        oldest = self._oldest
        while oldest and oldest[0][0] + REMEMBERED_MS <= now_ms:
            del self.by_name[oldest.popleft()[1]]

    def items(self) -> Iterator[tuple[int, str, T]]:
        """Everything, oldest first: when it was added, its name, itself."""
        return ((at_ms, name, self.by_name[name]) for at_ms, name in self._oldest)
