"""A bare socket to Redis: opened by redis-py, used without it.

A command through redis-py costs 10 to 25 us beside the socket. The loop sends two for each batch, and every
request waits for both: of a round trip of 200 us that is what one would notice.
"""

from __future__ import annotations

import math
import os
import select
import socket
import ssl
import time
from typing import Any, cast

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gpuboss.connection import connect

RECEIVE_BYTES = 256 * 1024
# To be woken costs as much as all that a grant needs from here (20 to 50 us), and under traffic what one waits for is
# mostly less than this away. At rest it is spent twice a second. A single CPU is left to whoever makes us wait.
BUSY_WAIT_S = 0.0004 if (os.cpu_count() or 1) > 1 else 0.0
_NOT_YET = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Line:
    """An open connection, as bytes."""

    def __init__(self, url: str, patience_s: float) -> None:
        """Connects and logs in; whatever the server does not take within `patience_s` is an error."""
        self._patience_s = patience_s
        self._client = connect(url, patience_s)
        # redis-py knows about addresses, TLS and logins; once that is done the socket is all that is needed.
        self._connection = cast(Any, self._client.connection_pool.make_connection())
        self._connection.connect()
        self._socket: socket.socket = self._connection._sock
        # A socket with a time-out asks the kernel twice more for each transfer.
        self._socket.setblocking(False)
        self._readable = select.poll()
        self._readable.register(self._socket, select.POLLIN)

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()
        self._client.close()

    def send(self, message: bytes) -> None:
        """Hand all of it to the kernel. Raises redis' `TimeoutError` and `ConnectionError`."""
        left = memoryview(message)
        until_s = time.monotonic() + self._patience_s
        while left:
            try:
                left = left[self._socket.send(left) :]
            except _NOT_YET:
                left_s = max(0.0, until_s - time.monotonic())
                if not select.select([], [self._socket], [], left_s)[1]:
                    raise RedisTimeoutError(f"Redis read nothing for {self._patience_s} s") from None
            except OSError as error:
                raise RedisConnectionError(f"cannot send to Redis: {error}") from error

    def receive(self, timeout_s: float) -> bytes:
        """What has come, or comes within `timeout_s`; empty for nothing. Raises redis' `ConnectionError`, also where
        the server closed the connection."""
        busy_until_s = time.monotonic() + min(timeout_s, BUSY_WAIT_S)
        try:
            while (received := self._here()) is None and time.monotonic() < busy_until_s:
                os.sched_yield()
            # Rounded up: less than a ms would ask the kernel again and again.
            if received is None and self._readable.poll(math.ceil(max(0.0, timeout_s) * 1000)):
                received = self._here()
        except OSError as error:
            raise RedisConnectionError(f"cannot read from Redis: {error}") from error
        if received == b"":
            raise RedisConnectionError("Redis closed the connection")
        return received or b""

    def _here(self) -> bytes | None:
        """What has come; empty if the connection ended, None for nothing yet."""
        try:
            return self._socket.recv(RECEIVE_BYTES)
        except _NOT_YET:
            return None
