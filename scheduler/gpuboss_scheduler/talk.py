"""What the scheduler says to whoever watches it: single lines on stderr."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    """One line, at once."""
    print(line, file=sys.stderr, flush=True)
