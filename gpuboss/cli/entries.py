"""One entry of the log as a line for people, and which entries somebody wants to see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gpuboss import events
from gpuboss.cli.output import say
from gpuboss.cli.wording import moment
from gpuboss.core.door import read_data, read_type
from gpuboss.core.stream_ids import parse_id
from gpuboss.log import Entry
from gpuboss.terminal import escaped

VALUE_CHARACTERS_MAX = 200  # anybody can append 100 MiB; a line for people shows the beginning of it
FIELDS_MAX = 40
_ABOUT = ("lease_id", "for")


def matcher(types: Sequence[str], lease_id: str | None) -> Callable[[Entry], bool]:
    """Whether an entry is of one of the types (none: of any) and about the lease (None: any)."""
    for unknown in [name for name in types if name not in events.ALL]:
        _warn_of_unknown_type(unknown)
    wanted = {name.encode() for name in types}

    def matches(entry: Entry) -> bool:
        type_name = read_type(entry.fields)
        if wanted and type_name not in wanted:
            return False
        if lease_id is None:
            return True
        data = None if type_name is None else _decoded(read_data(entry.fields))
        return isinstance(data, dict) and any(data.get(name) == lease_id for name in _ABOUT)

    return matches


def to_text(entry: Entry) -> str:
    """The entry on one line: its id, its time, its type, and its data as `name=value`; whatever it is, harmless."""
    type_name = read_type(entry.fields)
    data = None if type_name is None else _decoded(read_data(entry.fields))
    if type_name is None:
        words = ["(no event)", *(_shown_bytes(field) for field in entry.fields[:FIELDS_MAX])]
    elif isinstance(data, dict):
        words = [_shown_bytes(type_name), *_pairs(data)]
    else:
        words = [_shown_bytes(type_name), _shown_bytes(read_data(entry.fields))]
    time = moment(parse_id(entry.id)[0])
    return escaped(f"{entry.id}  {time}  {' '.join(words)}")


def _pairs(data: dict[str, Any]) -> list[str]:
    pairs = [f"{_cut(name)}={_value(value)}" for name, value in list(data.items())[:FIELDS_MAX]]
    return pairs if len(data) <= FIELDS_MAX else [*pairs, f"... ({len(data)} fields)"]


def _value(value: object) -> str:
    """As JSON; a string without its quotes where no doubt can arise."""
    text = msgspec.json.encode(value).decode()
    if isinstance(value, str) and value and not set(value) & set(' "=\\') and text == f'"{value}"':
        text = value
    return _cut(text)


def _shown_bytes(raw: bytes) -> str:
    return _cut(raw[: VALUE_CHARACTERS_MAX * 4].decode("utf-8", "backslashreplace")) or '""'


def _cut(text: str) -> str:
    return text if len(text) <= VALUE_CHARACTERS_MAX else f"{text[:VALUE_CHARACTERS_MAX]}..."


def _decoded(data: bytes) -> object:
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return None


def _warn_of_unknown_type(name: str) -> None:
    import difflib

    close = difflib.get_close_matches(name, events.ALL, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    say(f"no type of event is called {name!r}{hint}")
