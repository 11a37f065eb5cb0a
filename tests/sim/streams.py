"""A stream as the server keeps it: entries in the order of their ids, and what is remembered of those that are gone."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from functools import lru_cache

from tests.sim.resp import Answer, Refused

Id = tuple[int, int]

FIRST: Id = (0, 0)
HIGHEST = (1 << 64) - 1
LAST: Id = (HIGHEST, HIGHEST)

_ID = re.compile(rb"(\d{1,20})(?:-(\d{1,20}))?(?!\n)\Z")


class Stream:
    """Ids and entries side by side. An entry is kept as it is answered: its id and its fields."""

    __slots__ = ("added", "entries", "ids", "last_id", "max_deleted_id")

    def __init__(self) -> None:
        self.ids: list[Id] = []
        self.entries: list[list[Answer]] = []
        self.last_id = FIRST
        self.max_deleted_id = FIRST
        self.added = 0

    def copy(self) -> Stream:
        """Another one that holds the same."""
        twin = Stream()
        twin.ids, twin.entries = self.ids.copy(), self.entries.copy()
        twin.last_id, twin.max_deleted_id, twin.added = self.last_id, self.max_deleted_id, self.added
        return twin

    def next_id(self, now_ms: int) -> Id:
        """What `*` stands for: never below what was there, however the clock goes."""
        return (now_ms, 0) if now_ms > self.last_id[0] else following(self.last_id)

    def add(self, entry_id: Id, fields: list[Answer]) -> bytes:
        """Append an entry; returns its id as it is answered."""
        name = b"%d-%d" % entry_id
        self.ids.append(entry_id)
        self.entries.append([name, fields])
        self.last_id = entry_id
        self.added += 1
        return name

    def take_back(self, last_id: Id) -> None:
        """Undo `add`; `last_id` is what it was before."""
        self.ids.pop()
        self.entries.pop()
        self.last_id = last_id
        self.added -= 1

    def find(self, entry_id: Id) -> int | None:
        """Where an entry is; None if it is not there."""
        at = bisect_left(self.ids, entry_id)
        return at if at < len(self.ids) and self.ids[at] == entry_id else None

    def between(self, first: Id, last: Id) -> tuple[int, int]:
        """From where to before where the entries from `first` through `last` stand."""
        return bisect_left(self.ids, first), bisect_right(self.ids, last)

    def remove(self, at: int) -> None:
        """Delete one entry, and remember the highest that ever was."""
        self.max_deleted_id = max(self.max_deleted_id, self.ids.pop(at))
        del self.entries[at]

    def put_back(self, at: int, entry_id: Id, entry: list[Answer], max_deleted_id: Id) -> None:
        """Undo `remove`."""
        self.ids.insert(at, entry_id)
        self.entries.insert(at, entry)
        self.max_deleted_id = max_deleted_id

    def drop(self, count: int) -> tuple[list[Id], list[list[Answer]]]:
        """Trim so many entries off the front; returns what it takes to `restore` them."""
        gone = self.ids[:count], self.entries[:count]
        del self.ids[:count], self.entries[:count]
        return gone

    def restore(self, ids: list[Id], entries: list[list[Answer]]) -> None:
        """Undo `drop`."""
        self.ids[:0] = ids
        self.entries[:0] = entries


def following(entry_id: Id) -> Id:
    """The lowest id above this one. Raises `Refused` at the end of all ids."""
    ms, number = entry_id
    if number < HIGHEST:
        return ms, number + 1
    if ms == HIGHEST:
        raise Refused("The stream has exhausted the last possible ID, unable to add more items")
    return ms + 1, 0


def preceding(entry_id: Id) -> Id | None:
    """The highest id below this one; None where there is none."""
    ms, number = entry_id
    if number:
        return ms, number - 1
    return (ms - 1, HIGHEST) if ms else None


@lru_cache(maxsize=1 << 12)  # who waits asks for what comes after the same id again and again
def parse_id(text: bytes, number: int = 0) -> Id:
    """Read `ms-number`, or `ms` alone, to which `number` belongs then. Raises `Refused`."""
    found = _ID.match(text)
    if found:
        ms, rest = int(found[1]), number if found[2] is None else int(found[2])
        if ms <= HIGHEST and rest <= HIGHEST:
            return ms, rest
    raise Refused("Invalid stream ID specified as stream command argument")


def parse_first(text: bytes) -> Id:
    """Where a range begins. Raises `Refused`."""
    if text == b"-":
        return FIRST
    if text == b"+":
        return LAST
    if text[:1] != b"(" or len(text) == 1:
        return parse_id(text)
    excluded = parse_id(text[1:])
    if excluded == LAST:
        raise Refused("invalid start ID for the interval")
    return following(excluded)


def parse_last(text: bytes) -> Id:
    """Where a range ends. Raises `Refused`."""
    if text == b"-":
        return FIRST
    if text == b"+":
        return LAST
    if text[:1] != b"(" or len(text) == 1:
        return parse_id(text, HIGHEST)
    before = preceding(parse_id(text[1:], HIGHEST))
    if before is None:
        raise Refused("invalid end ID for the interval")
    return before
