"""Calls of the product's own scripts, drawn from a seed: on states that it knows, and on what others made of them."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha1
from random import Random
from typing import Any

from gpuboss.client.link import BEAT
from gpuboss_scheduler.scripts import Script
from tests.sim.words import Word

SCRIPTS = {
    name: Script(name).text
    for name in ("append", "beat", "claim", "commit", "lose_sessions", "project", "sessions", "snapshot", "trim")
} | {"client_beat": BEAT}
ROWS = tuple(f"lease-{number}" for number in range(6))
MEMBERS = ("imajin/session-1", "imajin/session-2", "other/session-3")
KINDS = ("LeaseGranted", "LeaseDenied", "SessionLost")
COMMIT_KEYS = ("scheduler", "events", "leases", "queue", "devices", "sessions", "replies:a", "replies:b")
WORDS_TO_SPOIL = 3 + len(COMMIT_KEYS) + 7  # a commit's up to the caps of reply streams and the lengths of groups
ANYTHING = ("", "x", "-1", "0", "1.5", "99999999999999999999", "1e3", " 7 ", "0x10")


class DrawnScripts:
    """Draws calls for a server that has loaded `SCRIPTS`, and is looked at by `peek`: one question, its answer."""

    def __init__(self, random: Random, peek: Callable[..., Any]) -> None:
        self.random = random
        self._peek = peek
        self._draws: list[Callable[[], list[Word]]] = [
            *(self._commit,) * 8,
            *(self._claim,) * 2,
            *(self._meddle,) * 3,
            *(self._append, self._beat, self._lose_sessions, self._project, self._sessions, self._snapshot),
            self._trim,
            self._client_beat,
        ]

    def command(self) -> list[Word]:
        """The next one."""
        words = self.random.choice(self._draws)()
        if self.random.random() < 0.05:  # what no scheduler sends
            end = min(len(words), WORDS_TO_SPOIL)
            words[self.random.randrange(min(3, end - 1), end)] = self.random.choice(ANYTHING)
        return words

    def _call(self, name: str, keys: tuple[str, ...], *arguments: Word) -> list[Word]:
        return ["EVALSHA", sha1(SCRIPTS[name].encode()).hexdigest(), len(keys), *keys, *arguments]

    def _known(self, field: str) -> Word:
        """What the scheduler's hash says, or, now and then, something else."""
        found = self._peek("HGET", "scheduler", field)
        return found if isinstance(found, bytes) and self.random.random() < 0.95 else "7"

    def _token(self) -> Word:
        """Whoever leads by the hash, or, now and then, somebody else."""
        epoch, leader = self._known("epoch"), self._peek("HGET", "scheduler", "leader")
        return b" ".join(each if isinstance(each, bytes) else b"" for each in (epoch, leader))

    def _facts(self, most: int) -> list[Word]:
        facts: list[Word] = []
        for number in range(self.random.randint(0, most)):
            facts += (self.random.choice(KINDS), f'{{"fact":{number}}}')
        return facts

    def _some(self, names: tuple[str, ...]) -> list[str]:
        return self.random.sample(names, self.random.randint(1, len(names)))

    def _pairs(self, names: tuple[str, ...]) -> list[Word]:
        return [word for name in self._some(names) for word in (name, f'{{"row":{self.random.randint(0, 9)}}}')]

    def _append(self) -> list[Word]:
        epoch, seq = self._token(), self._known("seq")
        latest_ms = self.random.choice(("", "", 1, 10**14))
        said = epoch, seq, self.random.randint(1, 99), latest_ms
        return self._call("append", ("scheduler", "events"), *said, *self._facts(3))

    def _beat(self) -> list[Word]:
        lease, until = self.random.choice(("1500", "0")), self.random.choice(("", "1700000000000"))
        there = self.random.choice(self._entries() or [b"5-1"])
        trouble = self.random.choice(("", "the archive is full"))
        said = self._token(), lease, "3", until, there, trouble, there
        return self._call("beat", ("scheduler", "events"), *said)

    def _claim(self) -> list[Word]:
        facts = [*self._facts(2), "SchedulerElected", "{}"]
        shown = [word for name in ("leader", "version") for word in (name, "me")]
        seen: list[Word] = [self._peek("HGET", "scheduler", name) or "" for name in ("epoch", "alive_until_ms")]
        lost = self.random.choice(("", "", "log", "snapshot"))
        moved: list[Word] = []
        for entry_id in self._entries()[:2] if lost else ():
            moved += (entry_id, 4, "type", "Moved", "data", "{}")
        arguments = [*seen, self._seq(), self.random.randint(1, 9), self.random.randint(1, 9), 1500, "0-0", lost]
        last: list[Word] = ["", *self._entries()[-1:], "5-1"]
        arguments += [self.random.choice(last), self.random.choice((3, 1_000))]
        arguments += [len(facts) // 2, *facts, len(shown) // 2, *shown, *moved]
        return self._call("claim", ("scheduler", "events", "snapshot"), *arguments)

    def _seq(self) -> Word:
        found = self._peek("HGET", "scheduler", "seq")
        return found if isinstance(found, bytes) else ""

    def _commit(self) -> list[Word]:
        words: list[Word] = [self._token(), self._known("cursor"), f"{self.random.randint(1, 9)}-0", "9"]
        entries = self._entries()
        if entries and self.random.random() < 0.6:
            ms, number = entries[-1 if self.random.random() < 0.8 else 0].split(b"-")
            words += (ms, number, b"%b-%d" % (ms, int(number) + self.random.randint(1, 3)))
        else:
            words += ("", "", "")
        words += (10_000, 86_400_000)
        for _ in range(self.random.randint(0, 6)):
            what, group = self._group()
            words += (what, len(group), *group)
        return self._call("commit", COMMIT_KEYS, *words)

    def _group(self) -> tuple[str, list[Word]]:
        draw = self.random.choice
        what = draw(("log", "log", "reply", "reply", "grant", "lease", "ended", "wait", "served", "device", "session"))
        if what == "log":
            return what, [draw(KINDS), *self._facts(2)]
        if what == "reply":
            return what, [draw(("1", "2", "-1", "-2")), draw(KINDS), *self._facts(2)]
        if what == "session":
            return what, [15_000, *self._some(MEMBERS)]
        if what in ("ended", "served"):
            return draw((what, "lost")), [*self._some(ROWS)]
        return what, self._pairs(ROWS)

    def _lose_sessions(self) -> list[Word]:
        words: list[Word] = []
        for member in self._some(MEMBERS):
            words += (member, *self.random.choice((("SessionLost", '{"a":1'), ("", ""))))
        keys = ("scheduler", "events", "sessions")
        return self._call("lose_sessions", keys, self._token(), self._known("seq"), *words)

    def _project(self) -> list[Word]:
        gone = self._some(ROWS)
        key = self.random.choice(("queue", "devices", "leases"))
        return self._call("project", ("scheduler", key), self._token(), len(gone), *gone, *self._pairs(ROWS))

    def _sessions(self) -> list[Word]:
        latest_ms = self._now_ms() + self.random.choice((1_000, 1_000, 1_000, -60_000))
        arguments = (self._token(), 15_000, latest_ms, *self._some(MEMBERS))
        return self._call("sessions", ("scheduler", "sessions"), *arguments)

    def _snapshot(self) -> list[Word]:
        through = self.random.choice(self._entries() or [b"5-1"])
        arguments = (self._token(), self._known("seq"), "9", "{}", through, "1", "digest", b"\x00\xff")
        return self._call("snapshot", ("scheduler", "events", "snapshot"), *arguments)

    def _trim(self) -> list[Word]:
        entries = self._entries() or [b"5-1"]
        stays, goes = self.random.choice(entries), self.random.choice(entries)
        taken = self._peek("HGET", "snapshot", "id")
        known = taken if isinstance(taken, bytes) and self.random.random() < 0.8 else "5-1"
        arguments = (self._token(), known, entries[-1], stays, goes)
        return self._call("trim", ("scheduler", "events", "snapshot"), *arguments)

    def _client_beat(self) -> list[Word]:
        return self._call("client_beat", ("sessions", "scheduler"), self.random.choice(MEMBERS), 15_000)

    def _meddle(self) -> list[Word]:
        """Whatever anybody may do to these keys."""
        draw, now_ms = self.random.choice, self._now_ms()
        meddled: tuple[list[Word], ...] = (
            ["XADD", "events", "*", "type", "LeaseRequested", "data", "{}"],
            ["XADD", "events", "*", "type", "LeaseReleased", "data", "{}"],
            ["HSET", "scheduler", "session_ttl_ms", draw(("15000", "5000", "x"))],
            ["HDEL", "leases", draw(ROWS)],
            ["DEL", draw(COMMIT_KEYS)],
            ["SET", draw(COMMIT_KEYS[2:]), "text"],
            ["ZADD", "sessions", now_ms + draw((-60_000, 60_000)), draw(MEMBERS)],
        )
        return draw(meddled)

    def _entries(self) -> list[bytes]:
        found = self._peek("XRANGE", "events", "-", "+")
        return [entry[0] for entry in found] if isinstance(found, list) else []

    def _now_ms(self) -> int:
        seconds, rest_us = self._peek("TIME")
        return int(seconds) * 1000 + int(rest_us) // 1000
