"""Entries that were taken out of the log: a folder of segments, which with the log in Redis is the log as a whole.

A segment holds a run of entries as `gpuboss export` writes them, compressed, and is named for its first and its last
entry and for the one that came before it: so a list of the folder shows whether anything is missing. Two segments may
hold the same entries, where a scheduler was killed between writing one and trimming the log.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gpuboss.core.stream_ids import parse_id
from gpuboss.errors import GPUBossError
from gpuboss.jsonl import compressed_lines, read_jsonl
from gpuboss.log import PAGE, Entry, LogReader

ENTRY_BYTES_ABOUT = 20  # of an entry in a segment
_ID = r"([0-9]{1,20}-[0-9]{1,20})"
_NAME = re.compile(rf"{_ID}_{_ID}_after_{_ID}\.jsonl\.gz")


class EntriesMissing(GPUBossError):
    """Entries of the log are neither in Redis nor in the archive; the message says which, and what to do."""


class Segment(NamedTuple):
    """A file of an archive: its first and last entry, and the one that came before it in the log (`0-0`: none did)."""

    first: str
    last: str
    before: str
    path: Path


def segment_name(first: str, last: str, before: str) -> str:
    """What the file of a segment is called."""
    return f"{first}_{last}_after_{before}.jsonl.gz"


def segments_in(folder: Path) -> list[Segment]:
    """The segments of an archive in the order of the log; all else in the folder is left aside. Raises `OSError`."""
    found = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    segments = [Segment(match[1], match[2], match[3], path) for match, path in found if match]
    return sorted(segments, key=lambda segment: (parse_id(segment.first), parse_id(segment.last)))


def overlaps(segments: list[Segment]) -> list[str]:
    """A sentence for each segment that holds what others hold too; each entry is read once all the same."""
    said, furthest = [], None
    for segment in segments:
        if furthest is not None and parse_id(segment.first) <= parse_id(furthest.last):
            both = min(segment.last, furthest.last, key=parse_id)
            said.append(f"{segment.path.name}: {furthest.path.name} holds its entries through {both} too")
        if furthest is None or parse_id(segment.last) > parse_id(furthest.last):
            furthest = segment
    return said


def archived(folder: Path, after: str = "0-0") -> Iterator[Entry]:
    """All entries of an archive behind `after`, each once, in order.

    Raises `EntriesMissing`, before the first of them, if a segment is missing; and `BadLine` and `OSError`.
    """
    for segment in _chain(folder, after):
        first = last = None
        for entry in read_jsonl(compressed_lines(segment.path), segment.path.name):
            first, last = first or entry.id, entry.id
            if parse_id(entry.id) > parse_id(after):
                yield entry
        if (first, last) != (segment.first, segment.last):
            raise EntriesMissing(
                f"{segment.path} holds the entries from {first} through {last}, which is not what its name says"
            )
        after = segment.last


def whole_log(log: LogReader, folder: Path | None, after: str = "0-0", until: str = "+") -> Iterator[Entry]:
    """All entries behind `after`, through `until` (inclusive): from the archive, if one is given, then from Redis,
    while a scheduler may go on trimming. Raises `EntriesMissing`, and what `archived` raises."""
    end = None if until == "+" else parse_id(until)
    look_there = folder is not None
    while True:
        page, trimmed = log.page(after, until), log.trimmed_through()
        is_broken = parse_id(trimmed) > parse_id(after)  # what went meanwhile was archived before it went
        if look_there or is_broken:
            came_to = after
            for entry in [] if folder is None else archived(folder, after):
                if end is not None and parse_id(entry.id) > end:
                    return
                yield entry
                after = entry.id
            if is_broken and after == came_to:
                raise _trimmed_away(after, trimmed, folder)
            look_there = False
            continue
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1].id


def _chain(folder: Path, after: str) -> list[Segment]:
    """The segments that hold anything behind `after`, if nothing is missing between them."""
    chain, reached = [], after
    for segment in segments_in(folder):
        if parse_id(segment.last) <= parse_id(reached):
            continue
        if parse_id(segment.first) > parse_id(reached) and parse_id(segment.before) > parse_id(reached):
            there = "nothing is there before it" if reached == "0-0" else f"what is there before it ends at {reached}"
            raise EntriesMissing(
                f"the archive {folder} lacks entries: {segment.path.name} goes on from {segment.before}, but {there}; "
                "other machines on which a scheduler led may have them: copy their segments into one folder"
            )
        chain.append(segment)
        reached = segment.last
    return chain


def _trimmed_away(after: str, trimmed: str, folder: Path | None) -> EntriesMissing:
    have = f"what was read ends at {after}" if after != "0-0" else "nothing was read yet"
    if folder is None:
        return EntriesMissing(
            f"the log in Redis was trimmed through {trimmed}, and {have}: run it again, or name the archive with "
            "--archive FOLDER"
        )
    return EntriesMissing(
        f"the log in Redis was trimmed through {trimmed}, but in the archive {folder} {have}; other machines on which "
        "a scheduler led may have the rest: copy their segments into one folder"
    )
