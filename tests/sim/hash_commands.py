"""The commands on hashes, and on strings, which are here to stand where something else is expected."""

from __future__ import annotations

from tests.sim.database import Database, Hash
from tests.sim.resp import Answer, Refused, Status
from tests.sim.words import SYNTAX


def hset(data: Database, words: list[bytes]) -> Answer:
    """HSET key field value ..."""
    if len(words) % 2:
        raise Refused("wrong number of arguments for 'hset' command")
    fields = data.find_or_make(words[1], Hash)
    before = len(fields)
    for at in range(2, len(words), 2):
        _set(data, fields, words[at], words[at + 1])
    return len(fields) - before


def hsetnx(data: Database, words: list[bytes]) -> Answer:
    """HSETNX key field value"""
    fields = data.find_or_make(words[1], Hash)
    if words[2] in fields:
        return 0
    _set(data, fields, words[2], words[3])
    return 1


def hget(data: Database, words: list[bytes]) -> Answer:
    """HGET key field"""
    return (data.find(words[1], Hash) or Hash()).get(words[2])


def hmget(data: Database, words: list[bytes]) -> Answer:
    """HMGET key field ..."""
    fields = data.find(words[1], Hash) or Hash()
    return [fields.get(field) for field in words[2:]]


def hgetall(data: Database, words: list[bytes]) -> Answer:
    """HGETALL key"""
    fields = data.find(words[1], Hash) or Hash()
    return [each for pair in fields.items() for each in pair]


def hkeys(data: Database, words: list[bytes]) -> Answer:
    """HKEYS key"""
    return [*(data.find(words[1], Hash) or Hash())]


def hvals(data: Database, words: list[bytes]) -> Answer:
    """HVALS key"""
    return [*(data.find(words[1], Hash) or Hash()).values()]


def hlen(data: Database, words: list[bytes]) -> Answer:
    """HLEN key"""
    return len(data.find(words[1], Hash) or ())


def hexists(data: Database, words: list[bytes]) -> Answer:
    """HEXISTS key field"""
    return int(words[2] in (data.find(words[1], Hash) or ()))


def hdel(data: Database, words: list[bytes]) -> Answer:
    """HDEL key field ..."""
    return data.take_out(words[1], Hash, words[2:])


def get(data: Database, words: list[bytes]) -> Answer:
    """GET key"""
    return data.find(words[1], bytes)


def set_(data: Database, words: list[bytes]) -> Answer:
    """SET key value, without any of its options"""
    if len(words) > 3:
        raise Refused(SYNTAX)
    data.put(words[1], words[2])
    return Status("OK")


def _set(data: Database, fields: Hash, field: bytes, value: bytes) -> None:
    before = fields.get(field)
    fields[field] = value
    if before is None:
        data.undo.append((fields.pop, field))
    else:
        data.undo.append((fields.__setitem__, field, before))
