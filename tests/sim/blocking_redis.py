"""redis-py over the simulated network, without what it counts: its pool, its connections and its pipelines do what they
do otherwise, message for message, but tell no metrics, ask no other thread and never try again, as `connect` has it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, cast

import hiredis
import redis
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gpuboss.connection import connect as real_connect
from tests.sim.blocking import BlockingSocket

_CLOSED = "Connection closed by server."
_LOST = (RedisConnectionError, RedisTimeoutError, TimeoutError)  # where redis-py hangs up


class _Packer:
    """Commands as bytes."""

    def pack(self, *words: Any) -> list[bytes]:
        """One command; its name may be two words."""
        if " " in words[0]:
            words = (*words[0].split(), *words[1:])
        return [hiredis.pack_command(cast(Any, words))]


class BlockingConnection(redis.Connection):
    """One connection."""

    def can_read(self, timeout: float = 0) -> bool:
        """Whether something came, that nobody asked for: the pool asks."""
        if self._sock is None:
            self.connect()
        return bool(cast(Any, self._sock).has_news)

    def read_response(self, *ways: Any, **options: Any) -> Any:
        """The next answer."""
        reader = self._parser._reader
        try:
            if reader is None:
                raise RedisConnectionError(_CLOSED)
            while (answer := reader.gets()) is NOT_ENOUGH_DATA:
                reader.feed(self._hear())
        except BaseException:
            self.disconnect()
            raise
        if isinstance(answer, ResponseError):
            raise answer
        return answer

    def _hear(self) -> bytes:
        sock = cast("BlockingSocket | None", self._sock)
        heard = b"" if sock is None else sock.receive(self.socket_timeout)
        if heard is None:
            raise RedisTimeoutError("Timeout reading from socket")
        if not heard:
            raise RedisConnectionError(_CLOSED)
        return heard

    def _connect(self) -> Any:
        return BlockingSocket(self.socket_connect_timeout)

    def _construct_command_packer(self, packer: Any) -> Any:
        return _Packer()


class BlockingPool(redis.ConnectionPool):
    """The connections of one client."""

    def get_connection(self, *ignored: Any, **options: Any) -> Any:
        """One that is open and has nothing to read."""
        connection = self._available_connections.pop() if self._available_connections else self.make_connection()
        self._in_use_connections.add(connection)
        try:
            if connection._sock is None:
                connection.connect()
            try:
                if connection.can_read():
                    raise RedisConnectionError("Connection has data")
            except (RedisConnectionError, RedisTimeoutError, OSError):
                connection.disconnect()
                connection.connect()
                if connection.can_read():
                    raise RedisConnectionError("Connection not ready") from None
        except BaseException:
            self.release(connection)
            raise
        return connection

    def release(self, connection: Any) -> None:
        """Take one back."""
        if connection in self._in_use_connections:
            self._in_use_connections.remove(connection)
            self._available_connections.append(connection)


class BlockingPipeline(redis.client.Pipeline):
    """Commands that are sent at once, and not as a transaction."""

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send them; what they were answered."""
        stack, self.command_stack = self.command_stack, []
        if not stack:
            return []
        answers = _exchange(self.connection_pool, lambda connection: self._ask(connection, stack))
        if raise_on_error:
            self.raise_first_error(stack, answers)
        return cast(list[Any], answers)

    def _ask(self, connection: Any, stack: list[Any]) -> list[Any]:
        connection.send_packed_command(connection.pack_commands([words for words, _ in stack]))
        answers: list[Any] = []
        for words, options in stack:
            try:
                answers.append(self.parse_response(connection, words[0], **options))
            except ResponseError as error:
                answers.append(error)
        return answers


class BlockingRedis(redis.Redis):
    """`gpuboss.connection.connect` with every option that it sets."""

    def execute_command(self, *words: Any, **options: Any) -> Any:
        """One command; its answer."""

        def ask(connection: Any) -> Any:
            connection.send_command(*words)
            return self.parse_response(connection, words[0], **options)

        return _exchange(self.connection_pool, ask)

    def pipeline(self, transaction: Any = True, shard_hint: Any = None) -> BlockingPipeline:
        """Several of them."""
        assert not transaction, "the simulated server knows no MULTI"
        return BlockingPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


def connect(url: str, timeout_s: float = 5.0) -> redis.Redis:
    """In the place of `gpuboss.connection.connect`."""
    client = copy.copy(_pattern(url, timeout_s))
    client.connection_pool = BlockingPool(
        connection_class=BlockingConnection, **client.connection_pool.connection_kwargs
    )
    return client


def _exchange(pool: Any, ask: Callable[[Any], Any]) -> Any:
    connection = pool.get_connection()
    try:
        return ask(connection)
    except _LOST:
        connection.disconnect()
        raise
    finally:
        pool.release(connection)


@functools.cache
def _pattern(url: str, timeout_s: float) -> BlockingRedis:
    """What all clients have in common. It is never used itself."""
    real = real_connect(url, timeout_s)
    pattern = BlockingRedis(connection_pool=real.connection_pool)
    pattern.auto_close_connection_pool = real.auto_close_connection_pool
    pattern.response_callbacks = cast(Any, dict(real.response_callbacks))  # redis-py's own looks a name up in any case
    return pattern
