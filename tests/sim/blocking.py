"""What code that blocks meets in the simulated world: sockets, sleep, threads and events that give way."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tests.sim.processes import Thread, current_thread
from tests.sim.world_now import now_us, opened, process_now, world_now


class BlockingSocket:
    """One end of a connection, for code that waits where it reads: as much of a socket as redis-py asks for."""

    def __init__(self, timeout_s: float | None) -> None:
        """Connects. Raises `socket.timeout` and `ConnectionRefusedError`, as a socket does."""
        self._thread = current_thread()
        process = self._thread.process
        self._connection = process.world.network.open(process, self._wake)
        until_us = None if timeout_s is None else now_us() + math.ceil(timeout_s * 1_000_000)
        while self._connection.state == "opening":
            if until_us is not None and now_us() >= until_us:
                self.close()
                raise TimeoutError("timed out")
            self._thread.wait(until_us)
        if self._connection.state != "open":
            raise ConnectionRefusedError(111, "Connection refused")

    def sendall(self, data: bytes) -> None:
        """Never waits: the kernel's buffers are large."""
        current_thread().check_alive()
        if self._connection.state != "open":
            raise BrokenPipeError(32, "Broken pipe")
        self._connection.send(bytes(data))

    def receive(self, timeout_s: float | None) -> bytes | None:
        """What has come or comes in time; empty where the connection is gone, None for nothing yet."""
        if not self.has_news:
            thread = self._thread = current_thread()
            until_us = None if timeout_s is None else now_us() + math.ceil(timeout_s * 1_000_000)
            while not self.has_news:
                if until_us is not None and now_us() >= until_us:
                    return None
                thread.wait(until_us)
        return self._connection.take()

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
        return opened[0].timeline.now_us / 1_000_000

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
