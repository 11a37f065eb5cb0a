"""The client's door to Redis: the five things that it does there, each bounded in time.

Everything that can go wrong comes out as one of two: `LinkLost` (try again, the outcome is unknown) and `Refused`
(it was not done, and trying again will not help).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
from redis import exceptions

from gpuboss.client.wire import Argument, Wire
from gpuboss.config import redact_url
from gpuboss.full import APPEND, takes_no_writes
from gpuboss.keys import Keys

COMMAND_S = 5.0  # how long one command may take
BLOCK_S = 5.0  # how long one read waits for news; then it looks whether the stream is still the same
READ_MAX = 1000  # entries in one read
DEFAULT_SESSION_TTL_MS = 15_000  # until a first scheduler has said another

# KEYS sessions scheduler, ARGV member and TTL. The server's clock decides over sessions, so it also writes their
# scores: a service's own may be wrong. And it must be taken by a server that is full, or the session would die of it.
BEAT = """#!lua flags=allow-oom
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local said = redis.call('HMGET', KEYS[2], 'session_ttl_ms', 'alive_until_ms', 'incarnation')
local dies_ms = now_ms + (tonumber(said[1] or '') or tonumber(ARGV[2]))
local added = redis.call('ZADD', KEYS[1], string.format('%d', dies_ms), ARGV[1])
return {now_ms, added, said[1] or '', said[2] or '', said[3] or ''}
"""

_BEAT_SHA = hashlib.sha1(BEAT.encode(), usedforsecurity=False).hexdigest()

StreamId = tuple[int, int]


class LinkLost(Exception):
    """Redis did not answer, or cannot serve now: whether the last command was carried out is unknown."""


class Refused(Exception):
    """Redis will not do this, however often it is asked."""


class Full(Refused):
    """Redis has no room for this: it was not done. At the limit of its memory there is a way beyond: see `append`."""


Trouble = LinkLost | Refused
Outcome = Trouble | None


class Look(NamedTuple):
    """What a beat saw: the server's time, whether the session was new to Redis, and who leads."""

    at_s: float  # on our monotonic clock, when the beat was sent
    server_ms: int
    added: bool
    session_ttl_ms: int
    alive_until_ms: int | None  # None: no scheduler ever led; 0: the last one resigned
    incarnation: str


class Mail(NamedTuple):
    """One entry of the reply stream, as it is."""

    id: StreamId
    fields: dict[bytes, bytes]


class Link:
    """One client's connections: one for commands, one of its own for the reads that block."""

    def __init__(self, url: str, keys: Keys, address: str, connect_timeout_s: float) -> None:
        self.where = redact_url(url)
        self._keys = keys
        self._replies = keys.replies(address)
        name = f"gpuboss:{address}"  # what CLIENT LIST shows
        self._commands = Wire(
            url, name=name, connect_timeout_s=connect_timeout_s, answer_timeout_s=max(COMMAND_S, connect_timeout_s)
        )
        # Two seconds beyond the block: the server's timer is coarse, and follows the wall clock.
        self._reading = Wire(url, name=name, connect_timeout_s=connect_timeout_s, answer_timeout_s=BLOCK_S + 2.0)

    async def open_commands(self) -> None:
        """Connect for commands, unless that was done. Raises `LinkLost` or `Refused`."""
        await _opened(self._commands)

    async def open_reading(self) -> None:
        """Connect for reading, unless that was done. Raises `LinkLost` or `Refused`."""
        await _opened(self._reading)

    def append(
        self, entries: Sequence[tuple[str, bytes, bool]], told: Callable[[list[Outcome] | Trouble], None]
    ) -> bool:
        """Append (type, data, whether also where Redis is full) to the log, in one round trip; False, and nothing is
        sent, if we are not connected.

        `told` is called with one result for each (None is success), or with what went wrong if nothing is known about
        any of them.
        """
        key = self._keys.events

        def answered(answers: list[Any] | Exception) -> None:
            if isinstance(answers, Exception):
                told(_trouble(answers))
            else:
                told([_trouble(answer) if isinstance(answer, Exception) else None for answer in answers])

        commands: list[tuple[Argument, ...]] = [
            ("EVAL", APPEND, 1, key, kind, data) if beyond else ("XADD", key, "*", "type", kind, "data", data)
            for kind, data, beyond in entries
        ]
        return self._commands.post(commands, answered)

    def read(self, after: StreamId, told: Callable[[list[Mail] | Trouble], None]) -> bool:
        """Read the entries of the reply stream behind `after`; False if we are not connected.

        `told` is called with them, with none if none came within `BLOCK_S`, or with what went wrong.
        """

        def answered(answers: list[Any] | Exception) -> None:
            answer = answers if isinstance(answers, Exception) else answers[0]
            if isinstance(answer, Exception):
                told(_trouble(answer))
            else:
                told([Mail(_id(entry), _pairs(fields)) for _, entries in answer or () for entry, fields in entries])

        block_ms, after_id = int(BLOCK_S * 1000), f"{after[0]}-{after[1]}"
        return self._reading.post(
            [("XREAD", "COUNT", READ_MAX, "BLOCK", block_ms, "STREAMS", self._replies, after_id)], answered
        )

    async def ends(self) -> tuple[StreamId, StreamId]:
        """The first id that the reply stream still holds and the last that it gave; (0, 0) twice without one."""
        try:
            info = _pairs(await _asked(self._commands, "XINFO", "STREAM", self._replies))
        except Refused as refused:
            if "no such key" in str(refused):
                return (0, 0), (0, 0)
            raise
        first = info[b"first-entry"]
        return _id(first[0]) if first else (0, 0), _id(info[b"last-generated-id"])

    async def beat(self, member: str) -> Look:
        """Prolong the session's life by one session TTL, and see who leads."""
        at_s = time.monotonic()
        arguments = (2, self._keys.sessions, self._keys.scheduler, member, DEFAULT_SESSION_TTL_MS)
        try:
            answer = await _asked(self._commands, "EVALSHA", _BEAT_SHA, *arguments)
        except Refused as refused:
            if not isinstance(refused.__cause__, exceptions.NoScriptError):
                raise
            answer = await _asked(self._commands, "EVAL", BEAT, *arguments)
        return look_of(at_s, answer)

    async def forget(self, member: str) -> None:
        """Take the session out: it ended by itself, nobody needs to miss it."""
        await _asked(self._commands, "ZREM", self._keys.sessions, member)

    async def close(self) -> None:
        """Close the connections."""
        await self._commands.close()
        await self._reading.close()


def look_of(at_s: float, answer: Sequence[Any]) -> Look:
    """What `BEAT` answered to a beat that was sent at `at_s`."""
    server_ms, added, ttl_ms, alive_until_ms, incarnation = answer
    return Look(
        at_s,
        server_ms,
        added == 1,
        _number(ttl_ms) or DEFAULT_SESSION_TTL_MS,
        _number(alive_until_ms),
        incarnation.decode("utf-8", "replace"),
    )


def encoded(event: msgspec.Struct) -> bytes:
    """The JSON of an event, without what is null anyway."""
    fields = {name: value for name, value in msgspec.structs.asdict(event).items() if value is not None}
    return msgspec.json.encode(fields)


async def _opened(wire: Wire) -> None:
    try:
        await wire.open()
    except (exceptions.RedisError, OSError) as error:
        raise _trouble(error) from error


async def _sent(wire: Wire, *commands: Sequence[Argument]) -> list[Any]:
    try:
        return await wire.send(*commands)
    except (exceptions.RedisError, OSError) as error:
        raise _trouble(error) from error


async def _asked(wire: Wire, *command: Argument) -> Any:
    [answer] = await _sent(wire, command)
    if isinstance(answer, Exception):
        raise _trouble(answer) from answer
    return answer


def _trouble(error: Exception) -> Trouble:
    """What an exception of redis-py means for whoever sent the command."""
    if isinstance(error, TimeoutError):
        return LinkLost("no answer in time")
    text = str(error) or type(error).__name__
    if takes_no_writes(text) is not None:
        return Full(text)
    hopeless = isinstance(error, _HOPELESS) or text.startswith(("WRONGTYPE", "no such key"))
    # Somebody appended the highest id of all: no entry can follow it.
    return Refused(text) if hopeless or "exhausted" in text else LinkLost(text)


_HOPELESS = (exceptions.AuthenticationError, exceptions.NoPermissionError, exceptions.NoScriptError)


def _pairs(flat: Sequence[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _id(raw: bytes) -> StreamId:
    ms, _, number = raw.partition(b"-")
    return int(ms), int(number)


def _number(raw: bytes) -> int | None:
    return int(raw) if raw.isdigit() else None
