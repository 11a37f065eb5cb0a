"""The commands on sorted sets: those of sessions, and of whoever looks at them."""

from __future__ import annotations

from tests.sim.database import Database, SortedSet
from tests.sim.resp import Answer, Refused
from tests.sim.words import SYNTAX, bound, integer, number_text, score

_CONDITIONS = (b"NX", b"XX", b"GT", b"LT", b"CH")


def zadd(data: Database, words: list[bytes]) -> Answer:
    """ZADD key [NX|XX] [GT|LT] [CH] score member ..."""
    conditions, at = set(), 2
    while at < len(words) and words[at].upper() in _CONDITIONS:
        conditions.add(words[at].upper())
        at += 1
    pairs = words[at:]
    if not pairs or len(pairs) % 2:
        raise Refused(SYNTAX)
    if {b"NX", b"XX"} <= conditions:
        raise Refused("XX and NX options at the same time are not compatible")
    if len(conditions & {b"NX", b"GT", b"LT"}) > 1:
        raise Refused("GT, LT, and/or NX options at the same time are not compatible")
    scores = [score(word) for word in pairs[::2]]
    members = data.find(words[1], SortedSet)
    if members is None:
        if b"XX" in conditions:
            return 0
        members = data.find_or_make(words[1], SortedSet)
    added = changed = 0
    for member, new in zip(pairs[1::2], scores, strict=True):
        old = members.get(member)
        if _applies(conditions, old, new):
            _put(data, members, member, new)
            added += old is None
            changed += old != new
    return changed if b"CH" in conditions else added


def zrem(data: Database, words: list[bytes]) -> Answer:
    """ZREM key member ..."""
    return data.take_out(words[1], SortedSet, words[2:])


def zscore(data: Database, words: list[bytes]) -> Answer:
    """ZSCORE key member"""
    found = (data.find(words[1], SortedSet) or SortedSet()).get(words[2])
    return None if found is None else number_text(found)


def zcard(data: Database, words: list[bytes]) -> Answer:
    """ZCARD key"""
    return len(data.find(words[1], SortedSet) or ())


def zrange(data: Database, words: list[bytes]) -> Answer:
    """ZRANGE key start stop [WITHSCORES]"""
    with_scores = [word.upper() for word in words[4:]]
    if with_scores not in ([], [b"WITHSCORES"]):
        raise Refused(SYNTAX)
    start, stop = integer(words[2]), integer(words[3])
    ranked = _ranked(data.find(words[1], SortedSet))
    start = max(0, start + len(ranked) if start < 0 else start)
    stop = stop + len(ranked) if stop < 0 else stop
    return _shown(ranked[start : stop + 1], bool(with_scores))


def zrangebyscore(data: Database, words: list[bytes]) -> Answer:
    """ZRANGEBYSCORE key min max [WITHSCORES] [LIMIT offset count]"""
    (low, above), (high, below) = bound(words[2]), bound(words[3])
    with_scores, offset, count, at = False, 0, -1, 4
    while at < len(words):
        option = words[at].upper()
        if option == b"WITHSCORES":
            with_scores, at = True, at + 1
        elif option == b"LIMIT" and at + 2 < len(words):
            offset, count, at = integer(words[at + 1]), integer(words[at + 2]), at + 3
        else:
            raise Refused(SYNTAX)
    found = [
        (number, member)
        for number, member in _ranked(data.find(words[1], SortedSet))
        if (number > low if above else number >= low) and (number < high if below else number <= high)
    ]
    if offset < 0:
        return []
    return _shown(found[offset:] if count < 0 else found[offset : offset + count], with_scores)


def _applies(conditions: set[bytes], old: float | None, new: float) -> bool:
    if old is None:
        return b"XX" not in conditions
    return not (b"NX" in conditions or (b"GT" in conditions and new <= old) or (b"LT" in conditions and new >= old))


def _put(data: Database, members: SortedSet, member: bytes, new: float) -> None:
    old = members.get(member)
    members[member] = new
    if old is None:
        data.undo.append((members.pop, member))
    else:
        data.undo.append((members.__setitem__, member, old))


def _ranked(members: SortedSet | None) -> list[tuple[float, bytes]]:
    return sorted((number, member) for member, number in (members or {}).items())


def _shown(ranked: list[tuple[float, bytes]], with_scores: bool) -> Answer:
    shown: list[Answer] = []
    for number, member in ranked:
        shown.append(member)
        if with_scores:
            shown.append(number_text(number))
    return shown
