"""`gpuboss events`: the log, an entry a line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from gpuboss.cli.options import ConfigFile, Json, Namespace, RedisUrl, examples
from gpuboss.cli.reach import Place, reach

if TYPE_CHECKING:
    from gpuboss.log import Entry

EXAMPLES = examples(
    "gpuboss events --last 20",
    "gpuboss events -f --type LeaseGranted --type LeaseDenied",
    "gpuboss events --lease LEASE_ID --json | jq .data",
)
LAST_BEFORE_FOLLOWING = 10

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")]
Last = Annotated[
    int | None, typer.Option("--last", "-n", min=0, metavar="N", help="The last N alone. Default with -f: 10.")
]
Since = Annotated[str | None, typer.Option("--since", metavar="ID", help="From this id on, or from its ms on.")]
Type = Annotated[list[str] | None, typer.Option("--type", metavar="TYPE", help="Of this type alone; repeatable.")]
Lease = Annotated[str | None, typer.Option("--lease", metavar="LEASE_ID", help="About this lease or request alone.")]


def events(
    follow: Follow = False,
    last: Last = None,
    since: Since = None,
    of_type: Type = None,
    lease: Lease = None,
    json: Json = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    config: ConfigFile = None,
) -> None:
    """Show the log, an entry a line, the newest last."""
    from gpuboss.cli.entries import matcher, to_text
    from gpuboss.cli.stream_ids import before, first_of
    from gpuboss.jsonl import to_line

    wanted = matcher(of_type or [], lease)
    if last is None and since is None and follow:
        last = LAST_BEFORE_FOLLOWING
    start = "0-0" if since is None else before(first_of(since, "--since"))

    encoding = "utf-8" if sys.stdout is None else sys.stdout.encoding

    def written(entry: Entry) -> bytes:
        return to_line(entry) if json else to_text(entry).encode(encoding, "backslashreplace")

    with reach(redis_url, namespace, config) as place:
        after = _print_past(place, start, last, wanted, written)
        if follow:
            _print_to_come(place, after, wanted, written)


def _print_past(
    place: Place, start: str, last: int | None, wanted: Callable[[Entry], bool], written: Callable[[Entry], bytes]
) -> str:
    """Print what is there, and return the id behind which the rest will come."""
    from gpuboss.cli.tail import backwards

    if last is None:
        return _print_all(place.log.entries(start), start, wanted, written)
    end = place.log.last_id() or "0-0"
    found = islice(filter(wanted, _behind(start, end, backwards(place))), last)
    _print_all(reversed(list(found)), start, wanted, written)
    return end


def _behind(start: str, end: str, entries: Iterator[Entry]) -> Iterator[Entry]:
    """Of entries that come last first, those between the two ids, `start` left out."""
    from gpuboss.core.stream_ids import parse_id

    first, last = parse_id(start), parse_id(end)
    for entry in entries:
        entry_id = parse_id(entry.id)
        if entry_id <= first:
            return
        if entry_id <= last:
            yield entry


def _print_all(
    entries: Iterator[Entry], after: str, wanted: Callable[[Entry], bool], written: Callable[[Entry], bytes]
) -> str:
    from gpuboss.cli.output import print_bytes

    lines: list[bytes] = []
    for entry in entries:
        after = entry.id
        if wanted(entry):
            lines.append(written(entry) + b"\n")
        if len(lines) == 1000:
            print_bytes(b"".join(lines))
            lines.clear()
    print_bytes(b"".join(lines))
    return after


def _print_to_come(
    place: Place, after: str, wanted: Callable[[Entry], bool], written: Callable[[Entry], bytes]
) -> None:
    from gpuboss.cli.output import print_bytes, say
    from gpuboss.cli.tail import follow
    from gpuboss.core.stream_ids import parse_id

    while True:
        for entry in follow(place, after):
            if entry is not None:
                after = entry.id
                if wanted(entry):
                    print_bytes(written(entry) + b"\n")
            elif parse_id(place.log.last_id() or "0-0") < parse_id(after):
                say("the log ends before what was read already: it was lost or cut; going on with what there is now")
                after = "0-0"
                break
