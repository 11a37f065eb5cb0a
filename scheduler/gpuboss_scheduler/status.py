"""What the rest of the process may know of the scheduler: for its HTTP answers."""

from __future__ import annotations

import time
from typing import Literal

Role = Literal["starting", "standing by", "leading", "stopped"]


class Status:
    """Written by the scheduler's thread, read by others."""

    def __init__(self) -> None:
        self.role: Role = "starting"
        self.problem = "not connected to Redis yet"  # why it is not ready; empty when it is
        self.trouble = ""  # what is wrong while it leads all the same
        self._turned_s = time.monotonic()

    def turn(self) -> None:
        """The loop went round."""
        self._turned_s = time.monotonic()

    def silent_s(self) -> float:
        """How long the loop has not gone round (s)."""
        return time.monotonic() - self._turned_s
