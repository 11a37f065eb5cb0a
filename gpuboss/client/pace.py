"""When to try again, and when to wake up."""

from __future__ import annotations

import asyncio

import anyio

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0


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
