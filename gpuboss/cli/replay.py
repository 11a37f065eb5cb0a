"""`gpuboss replay`: derive every decision of a log again, and compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from gpuboss.cli.options import ConfigFile, Json, Namespace, RedisUrl, examples

if TYPE_CHECKING:
    from gpuboss.cli.fold import Start
    from gpuboss.core.verification import Verifier
    from gpuboss.log import Entry, LogReader

EXAMPLES = examples(
    "gpuboss replay                            # verify the log in Redis",
    "gpuboss replay log.jsonl --json           # one that `gpuboss export` wrote; - is stdin",
    "gpuboss replay --until 1700000000000-0    # who held what at that entry",
)

File = Annotated[
    str | None, typer.Argument(metavar="[FILE]", help="A file that `gpuboss export` wrote, - for stdin; else Redis.")
]
Until = Annotated[str | None, typer.Option("--until", metavar="ID", help="Stop behind this entry.")]
FromStart = Annotated[
    bool, typer.Option("--from-start", help="Begin at the first entry, never at the snapshot; not where it is gone.")
]


class Source(NamedTuple):
    """A log to replay: where it starts, its entries, and how many there are about."""

    start: Start
    entries: Callable[[], Iterator[Entry]]
    length: int
    cursor: str | None


def replay(
    file: File = None,
    until: Until = None,
    from_start: FromStart = False,
    json: Json = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    config: ConfigFile = None,
) -> None:
    """Derive every decision of a log again, and compare.

    Exits 1 if what is recorded is not what follows from the inputs, and names each entry where it is not; and if an
    input was changed after the fact, and names the two snapshots between which it was.
    """
    from gpuboss.cli.exits import NO
    from gpuboss.cli.output import print_json, print_text, say
    from gpuboss.cli.reach import reach
    from gpuboss.cli.replay_report import document, report
    from gpuboss.cli.stream_ids import last_of

    until_id = None if until is None else last_of(until, "--until")
    with ExitStack() as stack:
        if file is None:
            place = stack.enter_context(reach(redis_url, namespace, config))
            source = _from_redis(place.log, until_id, from_start)
        else:
            source = _from_file(file, stack)
        if file is not None or from_start:
            _require_beginning(source, file)
        if source.start.origin != "beginning":
            say(f"the beginning of the log is gone: replaying from its {source.start.origin}")
        verifier, undecided = _verify(source, until_id)
    if json:
        print_json(document(verifier, undecided, source.start.origin))
    else:
        print_text(report(verifier, undecided, source.start.origin))
    if verifier.divergences:
        raise typer.Exit(NO)


def _require_beginning(source: Source, file: str | None) -> None:
    """Raises `LogDamaged` where the first entries are gone: nothing that follows could be derived without them."""
    from gpuboss.cli.look_ahead import number_begun_at
    from gpuboss.log import LogDamaged

    number = number_begun_at(source.entries)
    if number != 1:
        what = "the log in Redis" if file is None else f"the file {file}"
        raise LogDamaged(
            f"{what} begins in the middle of a log: the first number that a scheduler gave in it is {number}, and a "
            "replay needs the beginning, with number 1; export the whole log, or run `gpuboss replay` without a file "
            "and options, where the snapshot in Redis stands in for what is gone"
        )


def _verify(source: Source, until: str | None) -> tuple[Verifier, int]:
    from gpuboss.cli.look_ahead import forged_ids, last_cause
    from gpuboss.cli.progress import shown, without_collector
    from gpuboss.core.stream_ids import parse_id
    from gpuboss.core.verification import Verifier

    verifier = Verifier(
        source.start.state,
        lambda: forged_ids(source.entries()),
        source.cursor,
        lambda: last_cause(source.entries()),
    )
    last = None if until is None else parse_id(until)
    with without_collector():
        for entry in shown(source.entries(), source.length, "replaying"):
            if last is not None and parse_id(entry.id) > last:
                return verifier, verifier.finish(cut=True)
            _feed(verifier, entry)
    return verifier, verifier.finish(cut=last is not None)


def _feed(verifier: Verifier, entry: Entry) -> None:
    from gpuboss.core.takeover import NewerCore
    from gpuboss.log import NewerLog

    try:
        verifier.feed(entry.id, entry.fields)
    except NewerCore as newer:
        raise NewerLog(newer.core) from None


def _from_redis(log: LogReader, until: str | None, from_start: bool) -> Source:
    from gpuboss.cli.fold import beginning, whole_or_snapshot
    from gpuboss.core.stream_ids import parse_id
    from gpuboss.log import LogDamaged

    cursor = log.cursor()  # before the entries: what is decided while they are read may miss its decisions
    start = beginning() if from_start else whole_or_snapshot(log)
    first = start.state.last_id
    if until is not None and parse_id(until) < parse_id(first):
        raise LogDamaged(f"--until {until} lies before the {start.origin}, from which this log replays")
    return Source(start, lambda: log.entries(first), log.length(), cursor)


def _from_file(path: str, stack: ExitStack) -> Source:
    from gpuboss.cli.files import open_twice
    from gpuboss.cli.fold import beginning
    from gpuboss.jsonl import read_jsonl

    lines, length = open_twice(path, stack)
    return Source(beginning(), lambda: read_jsonl(lines(), path), length, None)
