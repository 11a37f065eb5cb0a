"""Which commands there are on what a server holds, and how many words each takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from tests.sim import hash_commands as hashes
from tests.sim import key_commands as keys
from tests.sim import sorted_set_commands as sorted_sets
from tests.sim import stream_commands as streams
from tests.sim.database import Database
from tests.sim.resp import Answer


class Command(NamedTuple):
    """What to call, and how many words it takes, its name among them."""

    run: Callable[[Database, list[bytes]], Answer]
    least: int
    most: int

    def takes(self, words: list[bytes]) -> bool:
        """Whether so many words may be."""
        return self.least <= len(words) <= self.most


MANY = 1 << 20

COMMANDS: Mapping[bytes, Command] = {
    b"DBSIZE": Command(keys.dbsize, 1, 1),
    b"DEL": Command(keys.delete, 2, MANY),
    b"EXISTS": Command(keys.exists, 2, MANY),
    b"FLUSHALL": Command(keys.flushall, 1, MANY),
    b"GET": Command(hashes.get, 2, 2),
    b"HDEL": Command(hashes.hdel, 3, MANY),
    b"HEXISTS": Command(hashes.hexists, 3, 3),
    b"HGET": Command(hashes.hget, 3, 3),
    b"HGETALL": Command(hashes.hgetall, 2, 2),
    b"HKEYS": Command(hashes.hkeys, 2, 2),
    b"HLEN": Command(hashes.hlen, 2, 2),
    b"HMGET": Command(hashes.hmget, 3, MANY),
    b"HSET": Command(hashes.hset, 4, MANY),
    b"HSETNX": Command(hashes.hsetnx, 4, 4),
    b"HVALS": Command(hashes.hvals, 2, 2),
    b"KEYS": Command(keys.keys, 2, 2),
    b"PEXPIRE": Command(keys.pexpire, 3, MANY),
    b"PEXPIRETIME": Command(keys.pexpiretime, 2, 2),
    b"PTTL": Command(keys.pttl, 2, 2),
    b"SCAN": Command(keys.scan, 2, MANY),
    b"SET": Command(hashes.set_, 3, MANY),
    b"TIME": Command(keys.time, 1, 1),
    b"TYPE": Command(keys.type_, 2, 2),
    b"XADD": Command(streams.xadd, 5, MANY),
    b"XDEL": Command(streams.xdel, 3, MANY),
    b"XINFO": Command(streams.xinfo, 2, MANY),
    b"XLEN": Command(streams.xlen, 2, 2),
    b"XRANGE": Command(streams.xrange, 4, MANY),
    b"XREAD": Command(streams.xread, 4, MANY),
    b"XREVRANGE": Command(streams.xrevrange, 4, MANY),
    b"XTRIM": Command(streams.xtrim, 4, MANY),
    b"ZADD": Command(sorted_sets.zadd, 4, MANY),
    b"ZCARD": Command(sorted_sets.zcard, 2, 2),
    b"ZRANGE": Command(sorted_sets.zrange, 4, MANY),
    b"ZRANGEBYSCORE": Command(sorted_sets.zrangebyscore, 4, MANY),
    b"ZREM": Command(sorted_sets.zrem, 3, MANY),
    b"ZSCORE": Command(sorted_sets.zscore, 3, 3),
}


def command_of(words: list[bytes]) -> Command | None:
    """The command that these words call; None if there is none of that name."""
    return COMMANDS.get(words[0]) or COMMANDS.get(words[0].upper())
