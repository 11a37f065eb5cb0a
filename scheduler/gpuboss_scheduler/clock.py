"""The log's clock as the leader sees it: the last time in the log, carried on by the leader's own monotonic clock.

The server's wall clock may jump, and the leader's too; a monotonic clock does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable

JUMP_MS = 5_000  # more than this between a server's time and ours is a jump, not a late read
BEHIND_MS = 1_000  # a server that shows so much less than the log had its clock put back: ids stand still
STOOD_MS = 300  # by how much a deadline may be off where they do: more than from one tick to the next


class LogClock:
    """Extrapolates the log's clock."""

    def __init__(self, log_ms: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._anchor_ms = log_ms
        self._anchor_s = monotonic()
        self.is_behind = False  # the server's clock, behind the log's

    def now_ms(self) -> int:
        """What the log's clock shows now, ms."""
        return self._anchor_ms + int((self._monotonic() - self._anchor_s) * 1000)

    def at_least(self, log_ms: int) -> None:
        """The log's clock has been this far, by a tick: it does not go back."""
        if log_ms > self.now_ms():
            self._anchor_ms, self._anchor_s = log_ms, self._monotonic()

    def told(self, server_ms: int) -> None:
        """The server's own clock shows this."""
        self.is_behind = server_ms < self.now_ms() - BEHIND_MS

    def stood(self, log_ms: int) -> int:
        """Entries were decided at this time. Returns for how long the log's clock had stood still then (ms; 0: not),
        because the server's was put back and no tick was due: from here on it goes on from where it stood.
        """
        stood_ms = self.now_ms() - log_ms
        if not self.is_behind or stood_ms <= STOOD_MS:
            return 0
        self._anchor_ms, self._anchor_s = log_ms, self._monotonic()
        return stood_ms

    def is_ahead(self, log_ms: int) -> bool:
        """Whether an entry of this time can only stand there because the server's clock jumped forward."""
        return log_ms - self.now_ms() > JUMP_MS

    def see(self, log_ms: int) -> int:
        """An entry of this time was read. Returns by how much the server's clock jumped forward (ms; 0: not)."""
        now_ms = self.now_ms()
        ahead_ms = log_ms - now_ms
        if ahead_ms > 0:
            self._anchor_ms = log_ms
            self._anchor_s = self._monotonic()
        return ahead_ms if ahead_ms > JUMP_MS else 0
