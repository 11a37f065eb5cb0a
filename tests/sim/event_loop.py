"""An asyncio event loop in virtual time: one for each client process, turned by the world, never waiting itself."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, cast

from tests.sim.network import Connection
from tests.sim.processes import Process
from tests.sim.timeline import Due, call_off

ROUNDS_MAX = 50  # in one step; a loop that has more to do goes on a little later, as time passes for it too
BUSY_US = 100


class NumberedTask(asyncio.Task[Any]):
    """A task whose place in a set is the same in every run: anyio keeps its tasks in sets."""

    made = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        NumberedTask.made += 1
        self._number = NumberedTask.made
        super().__init__(*arguments, **options)

    def __hash__(self) -> int:
        return self._number


class SimulatedLoop(asyncio.BaseEventLoop):
    """The event loop of one process."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process
        self.busy_since_us = self.busy_until_us = 0
        self._clock_resolution = 1e-6
        # What asyncio's own base class keeps, named for whoever checks types.
        self._ready: deque[asyncio.Handle]
        self._scheduled: list[Any]
        self._closed: bool
        self._timer_cancelled_count: int
        self._timeline = process.world.timeline
        self._due: Due | None = None
        self._turning = False
        self.set_task_factory(cast(Any, _numbered))

    def time(self) -> float:
        """Virtual seconds."""
        return self._timeline.now_us / 1_000_000

    @property
    def is_busy(self) -> bool:
        """Whether its thread computes, and turns no loop."""
        return self._timeline.now_us < self.busy_until_us

    def compute(self, for_us: int) -> None:
        """Be busy from now on."""
        self.busy_since_us = self._timeline.now_us
        self.busy_until_us = self.busy_since_us + for_us

    def turn(self) -> None:
        """Run what is ready. To be called by the process."""
        if self._turning:
            return
        if self.is_busy:
            self._plan(self.busy_until_us)
            return
        self._turning = True
        asyncio._set_running_loop(self)
        try:
            rounds = 0
            while (has_work := self._has_work()) and rounds < ROUNDS_MAX:
                rounds += 1
                self._run_ready()
        finally:
            asyncio._set_running_loop(None)
            self._turning = False
        if has_work:
            self._plan(self._timeline.now_us + BUSY_US)
        elif self._scheduled:
            self._plan(math.ceil(self._scheduled[0]._when * 1_000_000 - 1e-3))

    def call_soon(self, callback: Any, *arguments: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        """As asyncio has it, for a loop that is never debugged."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        handle = asyncio.Handle(callback, arguments, self, context)
        self._ready.append(handle)
        return handle

    def get_debug(self) -> bool:
        """It never is."""
        return False

    def wake(self) -> None:
        """Something is ready: turn."""
        self.process.do(self.turn)

    async def create_connection(self, protocol_factory: Any, *address: Any, **options: Any) -> Any:
        """Connect to the simulated server, whatever the address."""
        protocol, there = protocol_factory(), self.create_future()
        transport = SimulatedTransport(self, protocol, there)
        try:
            await there
        except BaseException:
            transport.connection.close()
            raise
        protocol.connection_made(transport)
        return transport, protocol

    def bury(self) -> None:
        """The process is dead: end its tasks without letting them do anything."""
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            with suppress(BaseException):
                task.get_coro().close()
        self._ready.clear()
        self._scheduled.clear()
        self.close()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Nothing may get here from a process that lives: it would be a bug of the client."""
        if not self.process.is_dead:
            error = context.get("exception")
            self.process.world.crashed(self.process, error or AssertionError(context["message"]))

    def _write_to_self(self) -> None:
        pass

    def _has_work(self) -> bool:
        if self._ready:
            return True
        self._forget_cancelled()
        scheduled = self._scheduled
        return bool(scheduled) and scheduled[0]._when < self._timeline.now_us / 1_000_000 + self._clock_resolution

    def _run_ready(self) -> None:
        """One round: `_run_once` of asyncio without a selector."""
        self._forget_cancelled()
        ready, scheduled = self._ready, self._scheduled
        before = self._timeline.now_us / 1_000_000 + self._clock_resolution
        while scheduled and scheduled[0]._when < before:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def _forget_cancelled(self) -> None:
        scheduled = self._scheduled
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(scheduled)._scheduled = False

    def _plan(self, at_us: int) -> None:
        due = self._due
        if due is not None and due[2] is not None and due[0] > self._timeline.now_us:
            if due[0] <= at_us:
                return
            call_off(due)
        self._due = self._timeline.at(at_us, self.wake)


class SimulatedTransport(asyncio.Transport):
    """A connection to the server, as asyncio has it."""

    def __init__(self, loop: SimulatedLoop, protocol: asyncio.Protocol, there: asyncio.Future[None]) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._there = there
        self._is_closing = False
        self.connection: Connection = loop.process.world.network.open(loop.process, self._changed)

    def write(self, data: Any) -> None:
        """Say something."""
        if not self._is_closing:
            self.connection.send(bytes(data))

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Whom to tell what comes."""
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who is told."""
        return self._protocol

    def is_closing(self) -> bool:
        """Whether it is over, or about to be."""
        return self._is_closing

    def close(self) -> None:
        """Nothing is kept back, so it is the same as `abort`."""
        self.abort()

    def abort(self) -> None:
        """End it."""
        if not self._is_closing:
            self._is_closing = True
            self.connection.close()
            self._loop.call_soon(self._protocol.connection_lost, None)

    def pause_reading(self) -> None:
        """Never needed: what comes is small."""

    def resume_reading(self) -> None:
        """See above."""

    def _changed(self) -> None:
        self._loop.call_soon(self._look)
        self._loop.turn()

    def _look(self) -> None:
        connection = self.connection
        if not self._there.done():
            if connection.state == "open":
                self._there.set_result(None)
            else:
                self._there.set_exception(ConnectionRefusedError(111, "Connection refused"))
                return
        if self._is_closing:
            return
        if connection.received:
            self._protocol.data_received(connection.take())
        if connection.state == "broken" and not self._is_closing:
            self._is_closing = True
            self._protocol.connection_lost(ConnectionResetError(104, "Connection reset by peer"))


def _numbered(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
    return NumberedTask(work, loop=loop, **options)


def begin() -> None:
    """A new world: count its tasks from the first."""
    NumberedTask.made = 0
