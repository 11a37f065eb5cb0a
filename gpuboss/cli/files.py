"""Files that a verb reads, twice if it must, also where they come through a pipe."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import typer

STDIN = "-"
MEMORY_BYTES = 32 * 1024 * 1024
LINE_BYTES_ABOUT = 300


def open_twice(path: str, stack: ExitStack) -> tuple[Callable[[], Iterator[bytes]], int]:
    """A function that gives the lines of the file from its beginning, each time it is called, and about how many
    there are. `stack` closes it. Raises `typer.BadParameter` for a file that cannot be read."""
    if path.endswith(".gz"):
        return _open_compressed(Path(path))
    try:
        file = _open(path, stack)
        size = file.seek(0, 2)
    except OSError as error:
        raise unreadable(path, error) from None

    def lines() -> Iterator[bytes]:
        position = 0
        while True:
            # Two readers may be at different places of the one file.
            file.seek(position)
            chunk = file.readlines(1 << 20)
            position = file.tell()
            if not chunk:
                return
            yield from chunk

    return lines, size // LINE_BYTES_ABOUT


def unreadable(path: str, error: OSError) -> typer.BadParameter:
    """What is said of a file that cannot be read."""
    return typer.BadParameter(f"cannot read {path}: {error.strerror or error}", param_hint="FILE")


def _open_compressed(path: Path) -> tuple[Callable[[], Iterator[bytes]], int]:
    """A compressed file can only be read from its beginning: each reader opens it."""
    from gpuboss.archive import ENTRY_BYTES_ABOUT
    from gpuboss.jsonl import compressed_lines

    try:
        with path.open("rb"):
            size = path.stat().st_size
    except OSError as error:
        raise unreadable(str(path), error) from None
    return lambda: compressed_lines(path), size // ENTRY_BYTES_ABOUT


def _open(path: str, stack: ExitStack) -> IO[bytes]:
    source: IO[bytes] = sys.stdin.buffer
    if path != STDIN:
        source = stack.enter_context(Path(path).open("rb"))  # noqa: SIM115 - the stack closes it
        if source.seekable():
            return source
    spooled = stack.enter_context(tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES))  # noqa: SIM115
    shutil.copyfileobj(source, spooled)
    return spooled
