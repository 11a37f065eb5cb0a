"""What code that blocks meets in the simulated world: sockets, sleep, threads and events that give way."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable
from typing import Any, cast

import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gpuboss.connection import connect as real_connect
from tests.sim.processes import Thread, current_thread
from tests.sim.world_now import now_us, process_now, world_now


class BlockingSocket:
    """One end of a connection, for code that waits where it reads: as much of a socket as redis-py asks for."""

    def __init__(self, timeout_s: float | None) -> None:
        """Connects. Raises `socket.timeout` and `ConnectionRefusedError`, as a socket does."""
        self._thread = current_thread()
        self._timeout_s = timeout_s
        process = self._thread.process
        self._connection = process.world.network.open(process, self._wake)
        if not self._wait(timeout_s, lambda: self._connection.state != "opening"):
            self.close()
            raise TimeoutError("timed out")
        if self._connection.state != "open":
            raise ConnectionRefusedError(111, "Connection refused")

    def settimeout(self, timeout_s: float | None) -> None:
        """How long a read may take."""
        self._timeout_s = timeout_s

    def sendall(self, data: bytes) -> None:
        """Never waits: the kernel's buffers are large."""
        current_thread().check_alive()
        if self._connection.state != "open":
            raise BrokenPipeError(32, "Broken pipe")
        self._connection.send(bytes(data))

    def recv_into(self, buffer: bytearray) -> int:
        """Some bytes; 0 where the other side closed the connection. Raises `socket.timeout`."""
        received = self.receive(self._timeout_s, len(buffer))
        if received is None:
            raise TimeoutError("timed out")
        buffer[: len(received)] = received
        return len(received)

    def receive(self, timeout_s: float | None, at_most: int = 1 << 30) -> bytes | None:
        """What has come or comes in time; empty where the connection is gone, None for nothing yet."""
        connection = self._connection
        if not self._wait(timeout_s, lambda: connection.received or connection.state != "open"):
            return None
        if len(connection.received) <= at_most:
            return connection.take()
        data = bytes(connection.received[:at_most])
        del connection.received[:at_most]
        return data

    @property
    def has_news(self) -> bool:
        """Whether a read would return at once."""
        return bool(self._connection.received) or self._connection.state != "open"

    def shutdown(self, how: int) -> None:
        """Nothing: `close` is all that there is."""

    def close(self) -> None:
        """Close it; what comes later is lost."""
        if not self._connection.process.is_dead:
            self._connection.close()

    def _wake(self) -> None:
        self._thread.wake()

    def _wait(self, timeout_s: float | None, condition: Callable[[], object]) -> bool:
        self._thread = current_thread()
        until_us = None if timeout_s is None else now_us() + math.ceil(timeout_s * 1_000_000)
        while not condition():
            if until_us is not None and now_us() >= until_us:
                return False
            self._thread.wait(until_us)
        return True


class BlockingConnection(redis.Connection):
    """redis-py's connection over the simulated network."""

    def _connect(self) -> Any:
        sock = BlockingSocket(self.socket_connect_timeout)
        sock.settimeout(self.socket_timeout)
        return sock

    def can_read(self, timeout: float = 0) -> bool:
        """Whether something came, that nobody asked for: the pool asks."""
        if self._sock is None:
            self.connect()
        return bool(cast(Any, self._sock).has_news)


def connect(url: str, timeout_s: float = 5.0) -> redis.Redis:
    """`gpuboss.connection.connect` with every option that it sets, over the simulated network."""
    client = real_connect(url, timeout_s)
    client.connection_pool.connection_class = BlockingConnection
    return client


class SimulatedLine:
    """`gpuboss_scheduler.line.Line` over the simulated network."""

    def __init__(self, url: str, patience_s: float) -> None:
        self._patience_s = patience_s
        try:
            self._socket = BlockingSocket(patience_s)
        except TimeoutError as error:
            raise RedisTimeoutError("Timeout connecting to server") from error
        except OSError as error:
            raise RedisConnectionError(f"cannot connect to Redis: {error}") from error

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def send(self, message: bytes) -> None:
        """As `Line.send`."""
        try:
            self._socket.sendall(message)
        except OSError as error:
            raise RedisConnectionError(f"cannot send to Redis: {error}") from error

    def receive(self, timeout_s: float) -> bytes:
        """As `Line.receive`."""
        received = self._socket.receive(max(0.0, timeout_s))
        if received == b"":
            raise RedisConnectionError("Redis closed the connection")
        return received or b""


class SimulatedTime:
    """The module `time`, as far as production code asks it."""

    @staticmethod
    def monotonic() -> float:
        """Virtual seconds."""
        return now_us() / 1_000_000

    @staticmethod
    def sleep(seconds: float) -> None:
        """Give way for so long."""
        thread, until_us = current_thread(), now_us() + math.ceil(seconds * 1_000_000)
        while now_us() < until_us:
            thread.wait(until_us)


class SimulatedEvent:
    """`threading.Event`."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: list[Thread] = []

    def set(self) -> None:
        """Wake whoever waits."""
        self._is_set = True
        waiting, self._waiting = self._waiting, []
        for thread in waiting:
            thread.wake()

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._is_set

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for it, so long at most; whether it is set."""
        if not self._is_set:
            thread = current_thread()
            self._waiting.append(thread)
            thread.wait(None if timeout_s is None else now_us() + max(0, math.ceil(timeout_s * 1_000_000)))
        return self._is_set


class StartedThread:
    """`threading.Thread`."""

    def __init__(self, *, target: Callable[[], object], name: str = "", daemon: bool = False) -> None:
        self._target = target
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin to run, in the process that says so."""
        self._thread = process_now().start_thread(self._target)

    def join(self) -> None:
        """Wait for its end."""
        if self._thread is not None:
            self._thread.join()


class SimulatedThreading:
    """The module `threading`, as far as production code asks it."""

    Event = SimulatedEvent
    Lock = threading.Lock  # the real one: nobody gives way while holding it
    Thread = StartedThread


class SimulatedOs:
    """The module `os`, as far as a request asks it."""

    @staticmethod
    def getpid() -> int:
        """The number of the process."""
        return process_now().number


class SimulatedSecrets:
    """The module `secrets`, which is random by the seed here."""

    @staticmethod
    def token_hex(size: int) -> str:
        """So many bytes, as hexadecimal digits."""
        return world_now().random.randbytes(size).hex()


assert issubclass(socket.timeout, TimeoutError), "redis-py knows a late socket by this"
