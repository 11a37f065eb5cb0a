"""A network in between that can be broken: a TCP proxy before a real server, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal

START_S = 10.0
CHUNK_BYTES = 65_536

Way = Literal["request", "reply"]


class _Connection:
    """One client's connection and the one to the server behind it."""

    def __init__(self) -> None:
        self.is_silent = False
        self.left_bytes: dict[Way, int | None] = {"request": None, "reply": None}  # None: no cut ahead
        self._writers: list[asyncio.StreamWriter] = []

    def has(self, writer: asyncio.StreamWriter) -> None:
        """One of the two ends."""
        self._writers.append(writer)

    def cut(self) -> None:
        """Both ends see the connection reset."""
        for writer in self._writers:
            writer.transport.abort()


class Proxy:
    """Listens on the loopback and passes everything on to the unix socket `target`, from `with` on. `target` may be set
    to another one: new connections go there."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.port = 0
        self._connections: set[_Connection] = set()
        self._is_silent = False
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._ending = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    @property
    def url(self) -> str:
        """What clients connect to."""
        return f"redis://127.0.0.1:{self.port}"

    def cut_all(self, way: Way = "request", after_bytes: int = 0) -> None:
        """Reset every connection that is open once so many more bytes went that way over it. A command may have been
        taken by then or not, in part, or taken and not answered."""

        def cut() -> None:
            for connection in self._connections:
                if after_bytes:
                    connection.left_bytes[way] = after_bytes
                else:
                    connection.cut()

        self._do(cut)

    def silence(self) -> None:
        """Swallow whatever is sent, either way, and close nothing: whoever is there notices by a time-out alone."""

        def silence() -> None:
            self._is_silent = True
            for connection in self._connections:
                connection.is_silent = True

        self._do(silence)

    def heal(self) -> None:
        """New connections work again; those that were silent stay so."""
        self._do(lambda: setattr(self, "_is_silent", False))

    def hold(self) -> None:
        """Keep everything back until `let_go`."""
        self._do(self._flowing.clear)

    def let_go(self) -> None:
        """Deliver what was kept back."""
        self._do(self._flowing.set)

    def __enter__(self) -> Proxy:
        self._thread.start()
        assert self._ready.wait(START_S), "the proxy does not listen"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._ending.set)
        self._thread.join(START_S)

    def _do(self, work: Callable[[], object]) -> None:
        """In the proxy's own thread, and wait until it is done."""
        done = threading.Event()

        def run() -> None:
            work()
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(START_S), "the proxy stands still"

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._flowing.set()
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._ending.wait()
        server.close()
        for connection in self._connections:
            connection.cut()
        pumps = asyncio.all_tasks() - {asyncio.current_task()}
        if pumps:
            await asyncio.wait(pumps, timeout=START_S)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection()
        connection.is_silent = self._is_silent
        connection.has(writer)
        self._connections.add(connection)
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(str(self.target))
            connection.has(server_writer)
            await asyncio.gather(
                self._pump(connection, reader, server_writer, "request"),
                self._pump(connection, server_reader, writer, "reply"),
            )
        except OSError:
            pass  # the server is not there: nor is the connection
        finally:
            connection.cut()
            self._connections.discard(connection)

    async def _pump(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._flowing.wait()
                if connection.is_silent:
                    continue
                left_bytes = connection.left_bytes[way]
                if left_bytes is not None:
                    data = data[:left_bytes]
                    connection.left_bytes[way] = left_bytes - len(data)
                writer.write(data)
                await writer.drain()
                if connection.left_bytes[way] == 0:
                    break
        if not connection.is_silent:
            connection.cut()
