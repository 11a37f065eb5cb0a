"""How far a long read is, on a terminal; nothing at all for short ones and for pipes."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

LONG_ENTRIES = 20_000
STEP_ENTRIES = 1_000


def shown(entries: Iterator[T], total: int, what: str) -> Iterator[T]:
    """The entries, of a log or a trace, with a bar on stderr while they are read if that is a terminal and there are
    many."""
    if total < LONG_ENTRIES or sys.stderr is None or not sys.stderr.isatty():
        yield from entries
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        for number, entry in enumerate(entries, start=1):
            yield entry
            if number % STEP_ENTRIES == 0:
                progress.update(task, completed=number)


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep the cyclic collector off while a log is folded: it would walk a state that only grows, again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
