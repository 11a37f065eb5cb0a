"""The commands on keys, whatever they hold, and on the time."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.sim.database import Database, Hash, SortedSet
from tests.sim.resp import Answer, Refused, Status
from tests.sim.streams import Stream
from tests.sim.words import SYNTAX, as_text, integer

_TYPES = {bytes: "string", Hash: "hash", SortedSet: "zset", Stream: "stream"}
_GLOB = re.compile(rb"\\.|\[\^?[^\]]+\]|.", re.DOTALL)


def delete(data: Database, words: list[bytes]) -> Answer:
    """DEL key ..."""
    return sum([data.delete(key) for key in words[1:]])


def exists(data: Database, words: list[bytes]) -> Answer:
    """EXISTS key ..."""
    return sum([key in data.values for key in words[1:]])


def type_(data: Database, words: list[bytes]) -> Answer:
    """TYPE key"""
    return _type_of(data, words[1])


def keys(data: Database, words: list[bytes]) -> Answer:
    """KEYS pattern"""
    matches = _pattern(words[1])
    return [key for key in data.values if matches(key)]


def scan(data: Database, words: list[bytes]) -> Answer:
    """SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]: everything at once"""
    if not words[1].isdigit():
        raise Refused("invalid cursor")
    if len(words) % 2:
        raise Refused(SYNTAX)
    options = {words[at].upper(): words[at + 1] for at in range(2, len(words), 2)}
    matches = _pattern(options.pop(b"MATCH", b"*"))
    wanted = options.pop(b"TYPE", None)
    if integer(options.pop(b"COUNT", b"10")) < 1 or options:
        raise Refused(SYNTAX)
    found = [key for key in data.values if wanted in (None, _type_of(data, key).encode()) and matches(key)]
    return [b"0", found]  # type: ignore[list-item]


def dbsize(data: Database, words: list[bytes]) -> Answer:
    """DBSIZE"""
    return len(data.values)


def flushall(data: Database, words: list[bytes]) -> Answer:
    """FLUSHALL [ASYNC|SYNC]"""
    data.clear()
    return Status("OK")


def pexpire(data: Database, words: list[bytes]) -> Answer:
    """PEXPIRE key ms, without any of its options"""
    ms = integer(words[2])
    if len(words) > 3:
        raise Refused(f"Unsupported option {as_text(words[3])}")
    if words[1] not in data.values:
        return 0
    if ms <= 0:
        data.delete(words[1])
    else:
        data.expire_at(words[1], data.now_us() // 1000 + ms)
    return 1


def pttl(data: Database, words: list[bytes]) -> Answer:
    """PTTL key"""
    if words[1] not in data.values:
        return -2
    at_ms = data.expires_ms.get(words[1])
    return -1 if at_ms is None else max(0, at_ms - data.now_us() // 1000)


def pexpiretime(data: Database, words: list[bytes]) -> Answer:
    """PEXPIRETIME key"""
    return data.expires_ms.get(words[1], -1) if words[1] in data.values else -2


def time(data: Database, words: list[bytes]) -> Answer:
    """TIME"""
    seconds, rest_us = divmod(data.now_us(), 1_000_000)
    return [b"%d" % seconds, b"%d" % rest_us]


def _type_of(data: Database, key: bytes) -> Status:
    value = data.values.get(key)
    return Status("none" if value is None else _TYPES[type(value)])


def _pattern(glob: bytes) -> Callable[[bytes], object]:
    parts, at = [], 0
    while at < len(glob):
        piece = _GLOB.match(glob, at)
        assert piece is not None, "any byte is a piece"
        parts.append(_as_expression(piece[0]))
        at = piece.end()
    return re.compile(b"".join(parts), re.DOTALL).fullmatch


def _as_expression(piece: bytes) -> bytes:
    if piece in (b"*", b"?"):
        return b".*" if piece == b"*" else b"."
    if len(piece) > 1 and piece[:1] == b"[":
        return piece
    return re.escape(piece.removeprefix(b"\\") or piece)
