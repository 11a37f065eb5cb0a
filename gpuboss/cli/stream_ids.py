"""Ids of the log as people give them: whole, or the ms part alone, as Redis takes them."""

from __future__ import annotations

import re

import typer

_ID = re.compile(r"([0-9]{1,20})(?:-([0-9]{1,20}))?")
_NUMBER_MAX = 2**64 - 1


def first_of(text: str, option: str) -> str:
    """The id that begins the range `text`. Raises `typer.BadParameter` for what is no id."""
    ms, number = _parts(text, option)
    return f"{ms}-{number or 0}"


def last_of(text: str, option: str) -> str:
    """The id that ends the range `text`: a bare ms means all of it. Raises `typer.BadParameter`."""
    ms, number = _parts(text, option)
    return f"{ms}-{_NUMBER_MAX if number is None else number}"


def before(entry_id: str) -> str:
    """The id right before this one: reading behind it reads from this one on."""
    ms, number = map(int, entry_id.split("-"))
    if number:
        return f"{ms}-{number - 1}"
    return f"{ms - 1}-{_NUMBER_MAX}" if ms else "0-0"


def _parts(text: str, option: str) -> tuple[int, int | None]:
    match = _ID.fullmatch(text)
    parts = [int(part) for part in match.groups() if part is not None] if match else []
    if not parts or max(parts) > _NUMBER_MAX:
        raise typer.BadParameter(
            f"{text!r} is no id of the log; expected one such as 1700000000000-0, or its ms alone",
            param_hint=option,
        )
    return parts[0], parts[1] if len(parts) == 2 else None
