"""The keys that a server holds, what they hold, and until when; every change leaves the way back from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tests.sim.journal import Undo
from tests.sim.resp import Refused
from tests.sim.streams import Stream


class Hash(dict[bytes, bytes]):
    """Fields and values."""


class SortedSet(dict[bytes, float]):
    """Members and scores."""


Value = bytes | Hash | SortedSet | Stream
Kind = TypeVar("Kind", bytes, Hash, SortedSet, Stream)
Named = TypeVar("Named", Hash, SortedSet)

WRONG_TYPE = "Operation against a key holding the wrong kind of value"


class Database:
    """Whoever changes a value appends to `undo` what takes that back."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        """`now_us`: the wall clock, by which ids are given and keys expire."""
        self.now_us = now_us
        self.values: dict[bytes, Value] = {}
        self.expires_ms: dict[bytes, int] = {}
        self.touched: set[bytes] = set()
        self.undo: list[Undo] = []

    def find(self, key: bytes, kind: type[Kind]) -> Kind | None:
        """What stands at a key; None if nothing does. Raises `Refused` for another type."""
        value = self.values.get(key)
        if value is None:
            return None
        if type(value) is not kind:
            raise Refused(WRONG_TYPE, "WRONGTYPE")
        return value

    def find_or_make(self, key: bytes, kind: type[Kind]) -> Kind:
        """What stands at a key, something new and empty if nothing did. Raises `Refused` for another type."""
        value = self.find(key, kind)
        if value is None:
            value = self.values[key] = kind()
            self.undo.append((self._restore, key, None, None))
        return value

    def put(self, key: bytes, value: Value) -> None:
        """Replace whatever stands at a key; it lives for ever."""
        self.undo.append((self._restore, key, self.values.get(key), self.expires_ms.pop(key, None)))
        self.values[key] = value

    def take_out(self, key: bytes, kind: type[Named], names: list[bytes]) -> int:
        """Take fields or members out of what stands at a key, which goes with the last; returns how many were there.
        Raises `Refused` for another type."""
        held = self.find(key, kind)
        if held is None:
            return 0
        before = len(held)
        for name in names:
            if name in held:
                self.undo.append((held.__setitem__, name, held.pop(name)))
        gone = before - len(held)
        if not held:
            self.delete(key)
        return gone

    def delete(self, key: bytes) -> bool:
        """Take a key out; False if there was none."""
        value = self.values.pop(key, None)
        if value is None:
            return False
        self.undo.append((self._restore, key, value, self.expires_ms.pop(key, None)))
        return True

    def clear(self) -> None:
        """Take all keys out."""
        self.undo.append((self._restore_all, self.values, self.expires_ms))
        self.values, self.expires_ms = {}, {}

    def expire_at(self, key: bytes, at_ms: int) -> None:
        """A key that is there goes at this time."""
        self.undo.append((self._restore, key, self.values[key], self.expires_ms.get(key)))
        self.expires_ms[key] = at_ms

    def drop_expired(self) -> None:
        """Take out what is past its time, where anything has one."""
        now_ms = self.now_us() // 1000
        if min(self.expires_ms.values()) < now_ms:
            for key in [key for key, at_ms in self.expires_ms.items() if at_ms < now_ms]:
                self.delete(key)

    def _restore(self, key: bytes, value: Value | None, expires_ms: int | None) -> None:
        self.values.pop(key, None)
        self.expires_ms.pop(key, None)
        if value is not None:
            self.values[key] = value
        if expires_ms is not None:
            self.expires_ms[key] = expires_ms

    def _restore_all(self, values: dict[bytes, Value], expires_ms: dict[bytes, int]) -> None:
        self.values, self.expires_ms = values, expires_ms


def copy_of(value: Value) -> Value:
    """Another one that holds the same."""
    if isinstance(value, Hash):
        return Hash(value)
    if isinstance(value, SortedSet):
        return SortedSet(value)
    return value.copy() if isinstance(value, Stream) else value
