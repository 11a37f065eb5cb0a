"""The log's clock as the leader sees it: the last time in the log, carried on by the leader's own monotonic clock.

The server's wall clock may jump, and the leader's too; a monotonic clock does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable

JUMP_MS = 5_000  # more than this between a server's time and ours is a jump, not a late read


class LogClock:
    """Extrapolates the log's clock."""

    def __init__(self, log_ms: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._anchor_ms = log_ms
        self._anchor_s = monotonic()

    def now_ms(self) -> int:
        """What the log's clock shows now, ms."""
        return self._anchor_ms + int((self._monotonic() - self._anchor_s) * 1000)

    def at_least(self, log_ms: int) -> None:
        """The log's clock has been this far, by a tick: it does not go back."""
        if log_ms > self.now_ms():
            self._anchor_ms, self._anchor_s = log_ms, self._monotonic()

    def see(self, log_ms: int) -> int:
        """An entry of this time was read. Returns by how much the server's clock jumped forward (ms; 0: not).

        Going back cannot be seen here, nor does it matter: ids never go back, and the clock carries on.
        """
        now_ms = self.now_ms()
        ahead_ms = log_ms - now_ms
        if ahead_ms > 0:
            self._anchor_ms = log_ms
            self._anchor_s = self._monotonic()
        return ahead_ms if ahead_ms > JUMP_MS else 0
