"""`gpuboss export`: the log as a file."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from gpuboss.cli.options import ArchiveFolder, ConfigFile, Namespace, RedisUrl, examples

if TYPE_CHECKING:
    from gpuboss.log import LogReader

EXAMPLES = examples(
    "gpuboss export > log.jsonl",
    "gpuboss export --archive /var/lib/gpuboss/archive | gzip > log.jsonl.gz",
    "gpuboss export --from 1700000000000-0 --to 1700000060000",
)
LINES_AT_ONCE = 1_000


class Format(Enum):
    """What the file can be."""

    JSONL = "jsonl"


FormatOption = Annotated[Format, typer.Option("--format", help='Lines of JSON: {"id", "type", "data"}.')]
First = Annotated[str | None, typer.Option("--from", metavar="ID", help="From this id on, or from its ms on.")]
Last = Annotated[str | None, typer.Option("--to", metavar="ID", help="Through this id, or through its ms.")]
Json = Annotated[bool, typer.Option("--json", help="The same as --format jsonl.")]


def export(
    format: FormatOption = Format.JSONL,
    first: First = None,
    last: Last = None,
    archive: ArchiveFolder = None,
    json: Json = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    config: ConfigFile = None,
) -> None:
    """Write the log to stdout, for `gpuboss replay FILE`.

    It comes back byte for byte: an entry that would not do so from its "type" and "data" also has "raw", its field
    list, each field and each value in base64.
    """
    from gpuboss.archive import whole_log
    from gpuboss.cli.archives import archive_folder, entries_about
    from gpuboss.cli.output import print_bytes
    from gpuboss.cli.progress import shown
    from gpuboss.cli.reach import reach
    from gpuboss.cli.stream_ids import before, first_of, last_of
    from gpuboss.jsonl import to_line

    after = "0-0" if first is None else before(first_of(first, "--from"))
    until = "+" if last is None else last_of(last, "--to")
    folder = None if archive is None else archive_folder(archive, "--archive")
    with reach(redis_url, namespace, config) as place:
        if folder is None:
            after = _behind_what_was_trimmed(place.log, after)
        length = place.log.length() + (0 if folder is None else entries_about(folder))
        lines: list[bytes] = []
        for entry in shown(whole_log(place.log, folder, after, until), length, "exporting"):
            lines.append(to_line(entry))
            if len(lines) == LINES_AT_ONCE:
                print_bytes(b"\n".join([*lines, b""]))
                lines.clear()
        print_bytes(b"\n".join([*lines, b""]) if lines else b"")


def _behind_what_was_trimmed(log: LogReader, after: str) -> str:
    """Where to begin; if that is not there any more, the first place that is, which is said."""
    from gpuboss.cli.output import say
    from gpuboss.core.stream_ids import parse_id

    trimmed = log.trimmed_through()
    if parse_id(after) >= parse_id(trimmed):
        return after
    say(f"the log in Redis was trimmed through {trimmed}, which is left out here; --archive FOLDER puts it first")
    return trimmed
