"""What a replay must know of entries that it has not come to yet, where something in the log looks odd."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from gpuboss.core.door import is_decision, read_data, read_type
from gpuboss.core.verification import parse_id
from gpuboss.jsonl import STREAM_ID
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


def last_cause(entries: Iterator[Entry]) -> str:
    """The last entry of which there is a decision; `0-0` if there are no decisions."""
    last, last_id = (0, 0), (0, 0)
    for entry in entries:
        last_id = parse_id(entry.id)
        type_name = read_type(entry.fields)
        if type_name is not None and is_decision(type_name):
            cause = _decoded(read_data(entry.fields)).get("cause")
            # A decision comes after what it decides; one that does not was not made by a scheduler.
            if isinstance(cause, str) and STREAM_ID.fullmatch(cause) and last < parse_id(cause) < last_id:
                last = parse_id(cause)
    return f"{last[0]}-{last[1]}"


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        decoded = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return {}
    return decoded if isinstance(decoded, dict) else {}
