"""Archives for tests, written by hand: no code of the scheduler stands between."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import redis

from gpuboss.jsonl import to_line
from gpuboss.log import Entry
from tests.core.scenario import Log


def keep(folder: Path, entries: Sequence[Entry], before: str = "0-0") -> Path:
    """Write a segment; returns its file."""
    file = folder / f"{entries[0].id}_{entries[-1].id}_after_{before}.jsonl.gz"
    file.write_bytes(gzip.compress(b"".join(to_line(entry) + b"\n" for entry in entries)))
    return file


def keep_all(folder: Path, log: Log, *ends: int) -> list[Path]:
    """Write the entries up to each of `ends` as one segment after the other."""
    entries = [Entry(entry.id, entry.fields) for entry in log.entries]
    files, begin = [], 0
    for end in ends:
        files.append(keep(folder, entries[begin:end], entries[begin - 1].id if begin else "0-0"))
        begin = end
    return files


def trim(client: redis.Redis, log: Log, end: int) -> None:
    """Take the first `end` entries out of Redis, as a scheduler does."""
    client.xtrim("gpuboss:events", minid=log.entries[end].id, approximate=False)
    client.hset("gpuboss:scheduler", "trimmed_through", log.entries[end - 1].id)
