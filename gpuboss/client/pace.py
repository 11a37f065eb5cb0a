"""When to try again, and when to wake up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0

T = TypeVar("T")


class Backoff:
    """Pauses between tries that grow, so that a server that comes back is not run over."""

    def __init__(self) -> None:
        self._pause_s = FIRST_PAUSE_S

    async def sleep(self) -> None:
        """Pause, and longer the next time."""
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
        await anyio.sleep(pause_s)

    def reset(self) -> None:
        """It worked."""
        self._pause_s = FIRST_PAUSE_S


class Alarm:
    """Lets one task sleep until a time, or until somebody rings."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake the sleeper; if nobody sleeps, the next sleep ends at once."""
        self._rung.set()

    async def sleep(self, pause_s: float | None) -> None:
        """Sleep for that long, or, if None, until it rings."""
        with anyio.move_on_after(pause_s):
            await self._rung.wait()
        self._rung.clear()

    async def until(self, condition: Callable[[], object], patience_s: float | None = None) -> None:
        """Sleep until the condition holds, looking again whenever it rings; for that long at most."""
        with anyio.move_on_after(patience_s):
            while not condition():
                await self.sleep(None)

    async def finished(self, work: Coroutine[Any, Any, T], unless: Callable[[], object]) -> asyncio.Task[T]:
        """Sleep until work is finished; it is cancelled, and awaited all the same, once `unless` holds."""
        task = asyncio.create_task(work)
        task.add_done_callback(lambda _: self.ring())
        await self.until(lambda: task.done() or unless())
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        return task
