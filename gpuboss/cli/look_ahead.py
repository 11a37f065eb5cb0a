"""What a replay must know of entries that it has not come to yet, where something in the log looks odd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from gpuboss.core.door import is_decision, is_stamped, read_data, read_stamp, read_type
from gpuboss.core.machine import follows
from gpuboss.core.state import State
from gpuboss.core.stream_ids import is_id, parse_id
from gpuboss.log import Entry


def forged_ids(entries: Iterator[Entry]) -> frozenset[str]:
    """The entries that the log itself rejects as forged."""
    forged = set()
    for entry in entries:
        if read_type(entry.fields) == b"EventRejected" and b'"forged"' in read_data(entry.fields):
            data = _decoded(read_data(entry.fields))
            if data.get("reason") == "forged" and isinstance(data.get("event_id"), str):
                forged.add(data["event_id"])
    return frozenset(forged)


def number_begun_at(entries: Callable[[], Iterator[Entry]]) -> int:
    """The number of the first entry that a scheduler wrote, 1 where the log holds its own beginning. `entries` gives
    the log from its start, each time it is called."""
    if next(_stamped(entries()), (1, True))[1]:
        return 1  # as in every honest log; all else is looked at twice, for anybody can append a number
    forged = forged_ids(entries())
    first = None
    for number, begins in _stamped(entries(), forged):
        if begins:
            return 1
        first = number if first is None else first
    return first or 1


def _stamped(entries: Iterator[Entry], forged: frozenset[str] = frozenset()) -> Iterator[tuple[int, bool]]:
    """The numbers that entries carry, and whether one is that of a log's very first reign."""
    for entry in entries:
        type_name = read_type(entry.fields)
        if type_name is not None and is_stamped(type_name) and entry.id not in forged:
            stamp = read_stamp(read_data(entry.fields))
            if stamp.seq:
                yield stamp.seq, follows(State(), type_name, stamp)


def last_cause(entries: Iterator[Entry]) -> str:
    """The last entry of which there is a decision; `0-0` if there are no decisions."""
    last, last_id = (0, 0), (0, 0)
    for entry in entries:
        last_id = parse_id(entry.id)
        type_name = read_type(entry.fields)
        if type_name is not None and is_decision(type_name):
            cause = _decoded(read_data(entry.fields)).get("cause")
            # A decision comes after what it decides; one that does not was not made by a scheduler.
            if isinstance(cause, str) and is_id(cause) and last < parse_id(cause) < last_id:
                last = parse_id(cause)
    return f"{last[0]}-{last[1]}"


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        decoded = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return {}
    return decoded if isinstance(decoded, dict) else {}
