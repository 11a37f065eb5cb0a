"""Commands drawn from a seed: mostly sensible, often on the wrong key, now and then with words that mean nothing."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from tests.sim.words import Word

STREAMS = ("s1", "s2", "s3")
HASHES = ("h1", "h2")
SETS = ("z1", "z2")
KEYS = (*STREAMS, *HASHES, *SETS, "text", "nothing")
FIELDS = ("type", "data", "a", "b", "", "b\xe4")
IDS = ("0-0", "0-1", "5", "5-1", "5-3", "007-1", "9-0", "5-*", "9-*", "0-*", "1-18446744073709551615")
NO_IDS = (
    "",
    "-5",
    "5-",
    "-",
    "+",
    "(",
    "(5",
    "a",
    "5-a",
    "1-2-3",
    "18446744073709551616",
    "5 ",
    "5-1\n",
    "*-1",
    "-1-*",
)
NUMBERS = ("0", "1", "2", "3", "10", "-1", "-3")
NO_NUMBERS = ("", "x", "1.5", "01", "+1", " 1", "9223372036854775808", "-0", "1_0", "1\n")
SCORES = ("0", "1", "2", "-5", "1700000000000", "1.5", "-0.25", "inf", "-inf", "+inf", "1e3")
NO_SCORES = ("", "x", "nan", "1_0", "1 ", "(1")


class DrawnCommands:
    """Remembers the ids that it is told of, so that they are met again."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self._ids: list[bytes] = []
        self._draws: list[Callable[[], list[Word]]] = [
            *(self._xadd,) * 8,
            *(self._range,) * 4,
            *(self._xread,) * 4,
            *(self._hash,) * 6,
            *(self._sorted_set,) * 6,
            *(self._key,) * 3,
            self._xdel,
            self._xtrim,
            self._odd,
        ]

    def command(self) -> list[Word]:
        """The next one."""
        return self.random.choice(self._draws)()

    def learn(self, answer: Any) -> None:
        """The last one was answered so."""
        if isinstance(answer, bytes) and b"-" in answer:
            self._ids = [*self._ids[-20:], answer]

    def key(self, sensible: tuple[str, ...]) -> str:
        """A key, mostly of a kind."""
        return self.random.choice(sensible if self.random.random() < 0.9 else KEYS)

    def one(self, sensible: tuple[str, ...], senseless: tuple[str, ...]) -> str:
        """A word, mostly one that means something."""
        return self.random.choice(sensible if self.random.random() < 0.93 else senseless)

    def one_of(self, *commands: list[Word]) -> list[Word]:
        """One of several."""
        return self.random.choice(commands)

    def some(self, draw: Callable[[], Word], most: int = 3) -> list[Word]:
        """A few words of a kind."""
        return [draw() for _ in range(self.random.randint(1, most))]

    def entry_id(self) -> Word:
        """An id, mostly one that was seen."""
        if self._ids and self.random.random() < 0.5:
            return self.random.choice(self._ids)
        return self.one(IDS[:7], NO_IDS)

    def number(self) -> str:
        """A whole number."""
        return self.one(NUMBERS, NO_NUMBERS)

    def field(self) -> str:
        """A field, a value or a member."""
        return self.random.choice(FIELDS)

    def maybe(self, *words: Word) -> list[Word]:
        """These words, or none."""
        return list(words) if self.random.random() < 0.4 else []

    def _xadd(self) -> list[Word]:
        words: list[Word] = ["XADD", self.key(STREAMS), *self.maybe("NOMKSTREAM")]
        if self.random.random() < 0.2:
            words += self._threshold()
        words.append("*" if self.random.random() < 0.6 else self.one(IDS, NO_IDS))
        fields = [self.field() for _ in range(2 * self.random.randint(1, 2))]
        return words + fields[: len(fields) - (self.random.random() < 0.05)]

    def _threshold(self) -> list[Word]:
        """What to trim to: never about a length, which each kind of server does as it likes."""
        words: list[Word] = ["MAXLEN", *self.maybe("="), self.number()]
        if self.random.random() < 0.4:
            words = [self.random.choice(("MINID", "minid")), *self.maybe("="), self.entry_id()]
        if self.random.random() < 0.1:
            words += self.random.choice((["LIMIT", self.number()], ["MAXLEN", "3"], ["LIMIT"], ["MAXLEN"]))
        return words

    def _xtrim(self) -> list[Word]:
        return ["XTRIM", self.key(STREAMS), *(self._threshold() if self.random.random() < 0.9 else ["LIMIT", "1"])]

    def _xdel(self) -> list[Word]:
        return ["XDEL", self.key(STREAMS), *self.some(self.entry_id)]

    def _range(self) -> list[Word]:
        ends: list[Word] = []
        for extreme in self.random.sample(("-", "+"), 2) if self.random.random() < 0.1 else ("-", "+"):
            end = self.entry_id() if self.random.random() < 0.6 else extreme
            excluded = self.random.random() < 0.3
            ends.append((b"(" + end if isinstance(end, bytes) else f"({end}") if excluded else end)
        command = self.random.choice(("XRANGE", "XREVRANGE", "xrange"))
        words: list[Word] = [command, self.key(STREAMS), *(ends[::-1] if command == "XREVRANGE" else ends)]
        words += self.maybe("COUNT", self.number())
        return words + (["COUNT"] if self.random.random() < 0.05 else [])

    def _xread(self) -> list[Word]:
        words: list[Word] = ["XREAD", *self.maybe("COUNT", self.number()), *self.maybe("BLOCK", self.number())]
        keys = self.some(lambda: self.key(STREAMS))
        after = [self.entry_id() if self.random.random() < 0.7 else "$" for _ in keys]
        after = ["-" if word == "+" else word for word in after]  # which later servers take for the last entry
        words += ["STREAMS", *keys, *after]
        return words[: len(words) - (self.random.random() < 0.05)]

    def _hash(self) -> list[Word]:
        key, draw = self.key(HASHES), self.random.choice
        return self.one_of(
            ["HSET", key, *[self.field() for _ in range(self.random.randint(2, 5))]],
            ["HSETNX", key, self.field(), self.field()],
            ["HGET", key, self.field()],
            ["HMGET", key, *self.some(self.field)],
            ["HDEL", key, *self.some(self.field)],
            ["HEXISTS", key, self.field()],
            [draw(("HGETALL", "HKEYS", "HVALS", "HLEN")), key],
        )

    def _sorted_set(self) -> list[Word]:
        key, draw = self.key(SETS), self.random.choice
        pairs = [word for _ in range(self.random.randint(1, 2)) for word in (self._score(), self.field())]
        ends = [f"({self._score()}" if self.random.random() < 0.3 else self._score() for _ in range(2)]
        limit = self.maybe("LIMIT", self.number(), self.number())
        return self.one_of(
            ["ZADD", key, *self.maybe(draw(("NX", "XX", "GT", "LT", "CH", "nx"))), *self.maybe("CH"), *pairs],
            ["ZADD", key, *self.maybe("NX", "XX"), *self.maybe("GT", draw(("LT", "NX"))), *pairs[: draw((2, 3))]],
            ["ZREM", key, *self.some(self.field)],
            ["ZSCORE", key, self.field()],
            ["ZCARD", key],
            ["ZRANGE", key, self.number(), self.number(), *self.maybe("WITHSCORES")],
            ["ZRANGEBYSCORE", key, *ends, *self.maybe("WITHSCORES"), *limit],
        )

    def _score(self) -> str:
        return self.one(SCORES, NO_SCORES)

    def _key(self) -> list[Word]:
        key, draw = self.random.choice(KEYS), self.random.choice
        return self.one_of(
            ["DEL", *self.some(lambda: draw(KEYS), 2)],
            ["EXISTS", *self.some(lambda: draw(KEYS))],
            ["TYPE", key],
            ["KEYS", draw(("*", "s?", "[hz]1", "[^s]*", "te\\xt", "", "[a-s]1"))],
            ["SCAN", "0", *self.maybe("MATCH", "s*"), *self.maybe("TYPE", "hash"), *self.maybe("COUNT", "100")],
            ["PEXPIRE", key, draw(("86400000", "86400000", "0", "-1", "x"))],
            ["PEXPIRETIME", key],
            ["SET", "text", self.field()],
            ["GET", key],
            ["XLEN", self.key(STREAMS)],
            ["XINFO", "STREAM", self.key(STREAMS)],
        )

    def _odd(self) -> list[Word]:
        return self.one_of(
            ["DBSIZE"],
            ["TIME"],
            ["NONESUCH", "a", "b"],
            ["XADD", "s1", "*"],
            ["HSET", "h1", "a"],
            ["HGET", "h1"],
            self.one_of(["EVAL", "return 1"], ["SCRIPT"], ["SELECT"], ["SELECT", "0"], ["SELECT", "x"]),
            ["ZADD", "z1", "1"],
            ["XREAD", "COUNT", "1", "a", "b"],
            ["XREAD", "STREAMS", "s1", "s2", "0"],
            ["XINFO", "STREAM", "nothing"],
            ["XADD", "s3", "18446744073709551615-18446744073709551615", "a", "b"],
            ["EVALSHA", "f" * 40, "0"],
            ["EVAL", "return 1", self.number()],
            ["FLUSHALL"] if self.random.random() < 0.2 else ["PING"],
        )
