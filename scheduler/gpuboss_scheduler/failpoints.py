"""Places where a test can have the scheduler killed: `GPUBOSS_FAILPOINT=name` or `name:N` (the N-th time)."""

from __future__ import annotations

import os
import signal

NAMES = (
    "recovered",  # the log is folded, nothing is claimed
    "claimed",  # the reign began, nothing else is written
    "facts-appended",  # devices, policy and lost sessions stand in the log
    "batch-read",  # entries were read
    "batch-decided",  # decisions exist in memory alone
    "commit-built",  # they are written out, nothing is sent
    "commit-sent",  # the commit is on its way, its answer unread
    "committed",  # the commit's answer is read
    "tick-appended",  # a tick stands in the log, undecided
    "snapshot-written",  # a snapshot was kept
    "segment-begun",  # half of a segment is written to a draft
    "segment-written",  # the draft is whole, and has no name yet
    "segment-kept",  # the segment stands in the archive, the log still holds its entries
    "log-trimmed",  # the log does not hold them any more
)

_armed = os.environ.get("GPUBOSS_FAILPOINT", "")
_name, _, _count = _armed.partition(":")
_left = int(_count or 1)
if _name and _name not in NAMES:
    raise SystemExit(f"GPUBOSS_FAILPOINT={_armed!r} names no failpoint; there are {', '.join(NAMES)}")


def failpoint(name: str) -> None:
    """Die here, as by kill -9, if a test asked for it."""
    global _left
    if name == _name:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
