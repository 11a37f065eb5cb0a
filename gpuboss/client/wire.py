"""One asyncio connection to Redis: opened by redis-py, used without it.

redis-py knows about addresses, TLS and logins. Once that is done its streams, pools and time-outs cost 200 us for
each command, twice what the whole round trip takes; a protocol and hiredis do with a tenth.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import hiredis
from redis import exceptions
from redis._parsers.base import BaseParser
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gpuboss.config import redact_url
from gpuboss.errors import ConfigError

Argument = str | bytes | int


class Wire:
    """A connection that is opened when it is first needed, and again after it was lost."""

    def __init__(self, url: str, *, name: str, connect_timeout_s: float, answer_timeout_s: float) -> None:
        """Nothing is sent yet. `name` is what CLIENT LIST shows. Raises `ConfigError` for a URL that is none."""
        self._answer_timeout_s = answer_timeout_s
        self._client = _client(url, name, connect_timeout_s, answer_timeout_s)
        self._connection: Any = None
        self._line: _Line | None = None
        self._opening = asyncio.Lock()

    async def send(self, *commands: Sequence[Argument]) -> list[Any]:
        """Send commands in one write, and return their answers; an error that Redis answers is among them.

        Raises redis' `ConnectionError` and `TimeoutError`, after which nothing is known about any of the commands.
        The connection is closed then, and also when the caller is cancelled: a late answer must not be taken for
        another's.
        """
        line = await self._open()
        answers = line.send(commands)
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                return await answers
        except TimeoutError:
            if answers.done() and not answers.cancelled():
                return answers.result()  # it came in time, and the loop was busy with something else
            late = exceptions.TimeoutError(f"no answer within {self._answer_timeout_s:g} s")
            line.drop(late)
            raise late from None
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
                self._line = _Line(connection._writer.transport)
        return self._line


class _Line(asyncio.Protocol):
    """The two ends of an open connection: what was asked, in its order, and what is answered."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.is_lost = transport.is_closing()
        self._transport = transport
        self._reader = hiredis.Reader(replyError=BaseParser.parse_error)
        self._asked: deque[tuple[int, asyncio.Future[list[Any]]]] = deque()  # how many answers, and for whom
        self._answers: list[Any] = []
        transport.set_protocol(self)

    def send(self, commands: Sequence[Sequence[Argument]]) -> asyncio.Future[list[Any]]:
        """The answers to come."""
        answers: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        if self.is_lost:
            answers.set_exception(exceptions.ConnectionError("the connection was lost"))
        else:
            self._asked.append((len(commands), answers))
            self._transport.write(b"".join([hiredis.pack_command(cast(Any, tuple(command))) for command in commands]))
        return answers

    def drop(self, error: Exception) -> None:
        """Give the connection up, and tell all who wait."""
        self.is_lost = True
        self._transport.abort()
        while self._asked:
            _, answers = self._asked.popleft()
            if not answers.done():
                answers.set_exception(error)

    def data_received(self, data: bytes) -> None:
        """Some bytes of answers."""
        self._reader.feed(data)
        while self._asked and (answer := self._reader.gets()) is not False:
            self._answers.append(answer)
            expected, answers = self._asked[0]
            if len(self._answers) == expected:
                self._asked.popleft()
                complete, self._answers = self._answers, []
                if not answers.done():
                    answers.set_result(complete)

    def connection_lost(self, error: Exception | None) -> None:
        """The other side is gone."""
        self.drop(exceptions.ConnectionError(f"the connection was lost: {error or 'closed by Redis'}"))


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
