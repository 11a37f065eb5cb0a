"""One asyncio connection to Redis: opened by redis-py, used without it.

redis-py knows about addresses, TLS and logins. Once that is done its streams, pools and time-outs cost 200 us for
each command, twice what the whole round trip takes; a protocol and hiredis do with a tenth.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import hiredis
from redis import exceptions
from redis._parsers.base import BaseParser
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gpuboss.config import redact_url
from gpuboss.errors import ConfigError

Argument = str | bytes | int
Told = Callable[[list[Any] | Exception], None]  # what to do with the answers to several commands; must not raise


class Wire:
    """A connection that is opened when it is first needed, and again after it was lost."""

    def __init__(self, url: str, *, name: str, connect_timeout_s: float, answer_timeout_s: float) -> None:
        """Nothing is sent yet. `name` is what CLIENT LIST shows. Raises `ConfigError` for a URL that is none."""
        self._answer_timeout_s = answer_timeout_s
        self._client = _client(url, name, connect_timeout_s, answer_timeout_s)
        self._connection: Any = None
        self._line: _Line | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        """Connect, unless that was done. Raises redis' `ConnectionError` and `TimeoutError`."""
        await self._open()

    def post(self, commands: Sequence[Sequence[Argument]], told: Told) -> bool:
        """Send commands in one write, and have `told` called with their answers, or with what went wrong; False, and
        nothing is sent, if the connection is not open.

        What waits for every answer pays for each turn of the event loop: this takes none beside that of the answer.
        """
        if self._line is None or self._line.is_lost:
            return False
        self._line.send(commands, told)
        return True

    async def send(self, *commands: Sequence[Argument]) -> list[Any]:
        """Send commands in one write, and return their answers; an error that Redis answers is among them.

        Raises redis' `ConnectionError` and `TimeoutError`, after which nothing is known about any of the commands.
        The connection is closed then, and also when the caller is cancelled: a late answer must not be taken for
        another's.
        """
        line = await self._open()
        answers: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        line.send(commands, lambda told: _settle(answers, told))
        try:
            return await answers
        except asyncio.CancelledError:
            line.drop(exceptions.ConnectionError("given up"))
            raise

    async def close(self) -> None:
        """Close the connection."""
        if self._line is not None:
            self._line.drop(exceptions.ConnectionError("closed"))
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)
            self._connection = None

    async def _open(self) -> _Line:
        if self._line is not None and not self._line.is_lost:
            return self._line
        async with self._opening:
            if self._line is None or self._line.is_lost:
                await self.close()
                connection = cast(Any, self._client.connection_pool).make_connection()
                await connection.connect()
                self._connection = connection
                self._line = _Line(connection._writer.transport, self._answer_timeout_s)
        return self._line


class _Asked(NamedTuple):
    expected: int  # how many answers
    told: Told
    due_s: float  # on the loop's clock


class _Line(asyncio.Protocol):
    """The two ends of an open connection: what was asked, in its order, and what is answered."""

    def __init__(self, transport: asyncio.Transport, answer_timeout_s: float) -> None:
        self.is_lost = transport.is_closing()
        self._transport = transport
        self._answer_timeout_s = answer_timeout_s
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=BaseParser.parse_error)
        self._asked: deque[_Asked] = deque()
        self._answers: list[Any] = []
        self._watch: asyncio.TimerHandle | None = None
        transport.set_protocol(self)

    def send(self, commands: Sequence[Sequence[Argument]], told: Told) -> None:
        """Have `told` called with the answers to come."""
        if self.is_lost:
            told(exceptions.ConnectionError("the connection was lost"))
            return
        self._asked.append(_Asked(len(commands), told, self._loop.time() + self._answer_timeout_s))
        self._transport.write(b"".join([hiredis.pack_command(cast(Any, tuple(command))) for command in commands]))
        # One timer for all that is asked: setting and cancelling one for each costs as much as the asking.
        if self._watch is None:
            self._watch = self._loop.call_later(self._answer_timeout_s, self._look)

    def _look(self) -> None:
        """Is the oldest answer late? What has come by now was read before this: a busy loop makes nothing late."""
        self._watch = None
        if not self._asked:
            return
        left_s = self._asked[0].due_s - self._loop.time()
        if left_s <= 0:
            self.drop(exceptions.TimeoutError(f"no answer within {self._answer_timeout_s:g} s"))
        else:
            self._watch = self._loop.call_later(left_s, self._look)

    def drop(self, error: Exception) -> None:
        """Give the connection up, and tell all who wait."""
        self.is_lost = True
        self._transport.abort()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        while self._asked:
            self._asked.popleft().told(error)

    def data_received(self, data: bytes) -> None:
        """Some bytes of answers."""
        self._reader.feed(data)
        while self._asked and (answer := self._reader.gets()) is not False:
            self._answers.append(answer)
            if len(self._answers) == self._asked[0].expected:
                complete, self._answers = self._answers, []
                self._asked.popleft().told(complete)

    def connection_lost(self, error: Exception | None) -> None:
        """The other side is gone."""
        self.drop(exceptions.ConnectionError(f"the connection was lost: {error or 'closed by Redis'}"))


def _settle(future: asyncio.Future[list[Any]], told: list[Any] | Exception) -> None:
    if future.done():
        return
    if isinstance(told, Exception):
        future.set_exception(told)
    else:
        future.set_result(told)


def _client(url: str, name: str, connect_timeout_s: float, answer_timeout_s: float) -> Redis:
    try:
        # Retries are off: a write whose answer was lost would be written twice without anybody knowing. RESP2,
        # because Valkey and Redis answer it in the same shapes; no driver info, because it costs a round trip.
        return Redis.from_url(
            url,
            protocol=2,
            driver_info=None,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=answer_timeout_s,
            socket_connect_timeout=connect_timeout_s,
            decode_responses=False,
            client_name=name,
        )
    except ValueError as error:
        raise ConfigError(
            f"{redact_url(url)} is no Redis URL: {error}; expected redis://, rediss:// or unix://"
        ) from None
