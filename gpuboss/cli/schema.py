"""`gpuboss schema`: the events as JSON Schema."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from gpuboss.cli.options import examples

EXAMPLES = examples(
    "gpuboss schema > events.schema.json",
    "gpuboss schema --type LeaseRequested",
    "gpuboss schema | jq -r '.oneOf[].properties.type.const'",
)


class Format(Enum):
    """What the schema can be written in."""

    JSONSCHEMA = "jsonschema"


Type = Annotated[str | None, typer.Option("--type", metavar="NAME", help="The data of this type of event alone.")]
FormatOption = Annotated[Format, typer.Option("--format", help="JSON Schema, draft 2020-12.")]
Json = Annotated[bool, typer.Option("--json", help="A schema is JSON in any case.")]


def schema(of_type: Type = None, format: FormatOption = Format.JSONSCHEMA, json: Json = False) -> None:
    """Print the JSON Schema of the events.

    That is of whole entries of the log, or with --type of the data of one type.
    """
    import difflib

    from gpuboss import events
    from gpuboss.cli.event_schema import data_schema, entry_schema
    from gpuboss.cli.output import print_json

    if of_type is None:
        print_json(entry_schema())
        return
    if of_type not in events.ALL:
        close = difflib.get_close_matches(of_type, events.ALL, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(events.ALL)}"
        raise typer.BadParameter(f"no type of event is called {of_type!r}; {hint}", param_hint="--type")
    print_json(data_schema(of_type))
