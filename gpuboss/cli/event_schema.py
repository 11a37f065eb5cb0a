"""The events as JSON Schema, made from their structs, so that it says what the door of the core really takes."""

from __future__ import annotations

from typing import Any

import msgspec

from gpuboss import events
from gpuboss.core.door import DATA_BYTES_MAX, DEPTH_MAX
from gpuboss.fields import MS_MAX

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = "#/$defs/{name}"
_INTEGER = {"type": "integer", "minimum": 0, "maximum": MS_MAX}
_STAMP: Schema = {
    "epoch": {**_INTEGER, "description": "The reign of the scheduler that wrote it. In the log always."},
    "seq": {**_INTEGER, "description": "Grows by one from entry to entry of the scheduler. In the log always."},
}
_TOLD: Schema = {
    "now_ms": {**_INTEGER, "description": "The log's time when it was sent. On reply streams always, nowhere else."},
}
LAYOUT = (
    "An entry of the stream <namespace>:events (the log) or <namespace>:replies:<service>[:<instance>] (answers; "
    "decisions alone). In Redis it has exactly two fields: type, the name of the event, and data, a JSON object of at "
    f"most {DATA_BYTES_MAX} bytes of UTF-8, nested at most {DEPTH_MAX} levels deep; unknown fields are skipped. "
    "As a line of `gpuboss export` it is this object. VRAM is in MiB; times are ms of the log's clock; durations end "
    "in _ms."
)
_WRITERS = (
    (events.FROM_SERVICES, "Written by services to the log."),
    (events.FROM_OPERATORS, "Written by operators to the log."),
    (events.FACTS, "A fact, written by the scheduler alone."),
    (events.DECISIONS, "A decision, written by the scheduler alone: to the log and to the reply stream."),
)


def entry_schema() -> Schema:
    """The schema of a whole entry: which types there are, and what the data of each is."""
    return {
        "$schema": DIALECT,
        "title": "An entry of GPUBoss's log",
        "description": LAYOUT,
        "type": "object",
        "properties": {
            "id": {"type": "string", "pattern": "^[0-9]{1,20}-[0-9]{1,20}$", "description": "The stream id."},
            "type": {"enum": list(events.ALL)},
            "data": {"type": "object"},
        },
        "required": ["type", "data"],
        "oneOf": [
            {"properties": {"type": {"const": name}, "data": {"$ref": _REFERENCE.format(name=name)}}}
            for name in events.ALL
        ],
        "$defs": _definitions(),
    }


def data_schema(name: str) -> Schema:
    """The schema of the data of one type of event, complete in itself."""
    definitions = _definitions()
    schema = {"$schema": DIALECT, **definitions.pop(name)}
    needed = {key: value for key, value in definitions.items() if key not in events.ALL}
    used = {key: value for key, value in needed.items() if _REFERENCE.format(name=key) in repr(schema)}
    return schema | ({"$defs": used} if used else {})


def _definitions() -> Schema:
    _, definitions = msgspec.json.schema_components(events.ALL.values(), ref_template=_REFERENCE)
    for group, written in _WRITERS:
        for name in group:
            schema = definitions[name]
            schema["description"] = f"{schema.get('description', '')}\n\n{written}".strip()
            if group in (events.FACTS, events.DECISIONS):
                schema["properties"] |= _STAMP
            if group is events.DECISIONS:
                schema["properties"] |= _TOLD
    return definitions
