"""Operating-system processes of the simulated world: what runs, what stands still, what is dead.

Whatever reaches a process goes through `Process.do`. A process that stands still (SIGSTOP) gets it all, in order,
when it goes on, as its sockets and timers would have it; a dead one never runs another line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from greenlet import GreenletExit, getcurrent, greenlet

from tests.sim.timeline import call_off

if TYPE_CHECKING:
    from tests.sim.event_loop import SimulatedLoop
    from tests.sim.network import Connection
    from tests.sim.world import World


class Process:
    """One process. `state` is `runs`, `stopped` or `dead`."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.state = "runs"
        self.still_since_us: int | None = None  # stopped, and since when nothing of it was heard
        self.connections: dict[Connection, None] = {}
        self.partitioned = False
        self.threads: list[Thread] = []
        self.loop: SimulatedLoop | None = None
        self.when_dead: list[Callable[[], None]] = []
        self.goodbyes: list[Callable[[], None]] = []  # what is to be said when SIGTERM ends it
        self.excused_until_us = 0  # it stood still for longer than the promise covers, and just goes on
        self._missed: list[Callable[[], object]] = []
        world.born.append(self)
        self.number = len(world.born)

    @property
    def is_dead(self) -> bool:
        """Whether it is gone for good."""
        return self.state == "dead"

    def do(self, happening: Callable[[], object]) -> None:
        """Have something happen in this process, now or when it goes on."""
        if self.state == "runs":
            world = self.world
            before, world.current = world.current, self
            try:
                happening()
            finally:
                world.current = before
        elif self.state == "stopped":
            self._missed.append(happening)

    def after(self, delay_us: int, happening: Callable[[], object]) -> Any:
        """Have something happen in it later."""
        return self.world.timeline.after(delay_us, lambda: self.do(happening))

    def stop(self) -> None:
        """SIGSTOP."""
        if self.state == "runs":
            self.state, self.still_since_us = "stopped", self.world.timeline.now_us
            if self.loop is not None and self.loop.is_busy:
                self.still_since_us = self.loop.busy_since_us

    def go_on(self) -> None:
        """SIGCONT: what was missed comes at once."""
        if self.state == "stopped":
            self.state, self.still_since_us = "runs", None
            missed, self._missed = self._missed, []
            for happening in missed:
                self.do(happening)

    def kill(self) -> None:
        """SIGKILL: the kernel closes its connections."""
        if self.state == "dead":
            return
        self.state = "dead"
        self._missed.clear()
        for connection in list(self.connections):
            connection.close()
        for tell in self.when_dead:
            tell()
        self.world.timeline.after(0, self.bury)

    def bury(self) -> None:
        """Take a dead process apart now, where nothing of it can reach anybody, and not whenever it is collected."""
        with in_silence():
            for thread in self.threads:
                if not thread.dead:
                    thread.throw(GreenletExit)
            self.threads.clear()
            if self.loop is not None:
                self.loop.bury()

    def start_thread(self, run: Callable[[], object]) -> Thread:
        """A thread of this process that begins to run at once, after whatever runs now."""
        thread = Thread(self, run)
        self.threads.append(thread)
        self.world.timeline.after(0, lambda: self.do(thread.switch))
        return thread


@contextmanager
def in_silence() -> Iterator[None]:
    """What the dead still try to do as they are taken apart fails, and is of no interest."""
    before, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        yield
    finally:
        sys.unraisablehook = before


class Thread(greenlet):  # type: ignore[misc]
    """A thread of a process: it gives way only where it waits, and then the rest of the world goes on."""

    def __init__(self, process: Process, run: Callable[[], object]) -> None:
        super().__init__(self._live, process.world.hub)
        self.process = process
        self.is_over = False
        self._main = run
        self._waits = False
        self._woken = False
        self._joined: list[Thread] = []

    def _live(self) -> None:
        try:
            self._main()
        except GreenletExit:
            raise
        except BaseException as error:
            if not self.process.is_dead:
                self.process.world.crashed(self.process, error)
        finally:
            self.is_over = True
            if not self.process.is_dead:
                for thread in self._joined:
                    thread.wake()

    def wait(self, until_us: int | None) -> bool:
        """Give way until `wake`, or until a moment; whether it was woken. To be called by the thread itself."""
        process = self.process
        if process.state == "dead":
            raise GreenletExit
        world = process.world
        self._waits, self._woken = True, False
        due = None if until_us is None else world.timeline.at(until_us, self._on_time)
        world.hub.switch()
        call_off(due)
        if process.state == "dead":  # what it runs no more is also what it would do at its end
            raise GreenletExit
        return self._woken

    def wake(self) -> None:
        """End its wait, if it waits."""
        if not self._waits:
            return
        self._waits, self._woken = False, True
        if getcurrent() is self.process.world.hub and self.process.world.current is None:
            self.process.do(self.switch)
        else:  # whoever wakes it goes on first
            self.process.after(0, self.switch)

    def join(self) -> None:
        """Wait until another thread is over. Called by the one that waits."""
        while not self.is_over:
            waiting = current_thread()
            self._joined.append(waiting)
            waiting.wait(None)

    def check_alive(self) -> None:
        """A dead process runs nothing: not even what it would do at the end."""
        if self.process.is_dead:
            raise GreenletExit

    def _on_time(self) -> None:
        if self._waits:
            self._waits = False
            self.process.do(self.switch)


def current_thread() -> Thread:
    """The simulated thread that runs now."""
    thread = getcurrent()
    assert isinstance(thread, Thread), "nothing but a simulated thread can wait here"
    return thread
