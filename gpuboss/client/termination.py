"""SIGTERM: a service that does not handle it gives its leases back before it dies of it, as it would have.

Python's own handler for SIGTERM is none: the process dies on the spot, and its VRAM comes back a session TTL later.
So while a client is open, and only where nobody else has set a handler, ours is there. It does not rely on the
event loop, which may be busy computing or belong to another thread: another thread says goodbye over a connection
of its own, while the main thread holds still.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

GOODBYE_S = 3.0  # how long dying may take

_goodbyes: dict[Callable[[], None], int] = {}  # what each open client has to say, and the process it belongs to


def add_goodbye(say: Callable[[], None]) -> None:
    """Have `say` called, in a thread of its own, when SIGTERM ends this process."""
    _goodbyes[say] = os.getpid()
    watch()


def drop_goodbye(say: Callable[[], None]) -> None:
    """Not any more; the last one takes the handler along."""
    _goodbyes.pop(say, None)
    unwatch()


def watch() -> None:
    """Set our handler, where there is none. Python allows that in the main thread alone; elsewhere nothing happens."""
    if _in_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def unwatch() -> None:
    """Take our handler away, if it is there and no client is open; in the main thread alone, too."""
    if not _goodbyes and _in_main_thread() and signal.getsignal(signal.SIGTERM) is _terminate:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one kills at once
    # A forked child has our handler, but the leases are its parent's.
    ours = [say for say, pid in list(_goodbyes.items()) if pid == os.getpid()]
    if ours:
        # Not threading.Thread: starting one takes a lock that the code we interrupted may hold.
        _thread.start_new_thread(_say_all, (ours,))
        time.sleep(GOODBYE_S)
    _die()


def _say_all(goodbyes: list[Callable[[], None]]) -> None:
    for say in goodbyes:
        with suppress(Exception):  # dying comes first, and there is nobody left to tell
            say()
    _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    # The first process of a container does not die of a signal that it does not handle.
    time.sleep(0.1)
    os._exit(128 + signal.SIGTERM)
