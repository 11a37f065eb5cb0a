"""The ids of a stream's entries, as texts and as numbers."""

from __future__ import annotations

import re

_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


def is_id(text: str) -> bool:
    """Whether a text is a stream id in full."""
    return _ID.fullmatch(text) is not None


def parse_id(entry_id: str) -> tuple[int, int]:
    """A stream id as a pair of numbers, which compare as Redis compares them."""
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number or 0)


def is_later(entry_id: str, last_id: str) -> bool:
    """Whether an entry stands behind another. Ids of one form compare as their text does, which is quick."""
    if len(entry_id) == len(last_id) and entry_id.find("-") == last_id.find("-"):
        return entry_id > last_id
    return parse_id(entry_id) > parse_id(last_id)
