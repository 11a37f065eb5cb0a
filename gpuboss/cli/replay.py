"""`gpuboss replay`: derive every decision of a log again, and compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypeAlias

import typer

from gpuboss.cli.options import (
    DEVICES,
    POLICY,
    ArchiveFolder,
    ConfigFile,
    Json,
    Namespace,
    Plot,
    RedisUrl,
    examples,
)

if TYPE_CHECKING:
    from gpuboss.cli.fold import Start
    from gpuboss.core.verification import Verifier
    from gpuboss.log import Entry, LogReader

EXAMPLES = examples(
    "gpuboss replay                            # verify the log in Redis",
    "gpuboss replay log.jsonl --json           # one that `gpuboss export` wrote; - is stdin",
    "gpuboss replay --archive /var/lib/gpuboss/archive   # what was taken out of Redis, and then Redis",
    'gpuboss replay --what-if --devices "cuda:0=24GB,cuda:1=24GB,cuda:2=24GB"    # would a third card have helped?',
)

File = Annotated[
    str | None,
    typer.Argument(
        metavar="[FILE]", help="What `gpuboss export` wrote, also as .gz; - for stdin; an archive's folder; else Redis."
    ),
]
Until = Annotated[str | None, typer.Option("--until", metavar="ID", help="Stop behind this entry.")]
FromStart = Annotated[
    bool, typer.Option("--from-start", help="Begin at the first entry, never at the snapshot; not where it is gone.")
]
WhatIf = Annotated[
    bool, typer.Option("--what-if", help="Run the requests of the log again, with other devices or another policy.")
]


Where: TypeAlias = "tuple[str | None, str | None, str | None]"  # URL, namespace and config file, as given


class Asked(NamedTuple):
    """Which log is meant, and how much of it: of a file, or of Redis, with an archive before it or without."""

    file: str | None
    until: str | None
    from_start: bool
    archive: Path | None
    where: Where


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
    archive: ArchiveFolder = None,
    what_if: WhatIf = False,
    devices: Annotated[str | None, DEVICES] = None,
    policy: Annotated[str | None, POLICY] = None,
    plot: Plot = None,
    json: Json = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    config: ConfigFile = None,
) -> None:
    """Derive every decision of a log again, and compare.

    Exits 1 if what is recorded is not what follows from the inputs, and names each entry where it is not; and if an
    input was changed after the fact, and names the two snapshots between which it was.

    With --what-if it asks instead what else would have been decided, in virtual time: whom would it have helped? What
    is given of --devices (one node) and --policy is different, the rest as recorded: devices and rules as they
    changed, priority, ttl_ms, wait_ms. A lease is held as long as it was recorded, however it ended, one that is held
    at the end of the log for ever; whoever took a waiting request back does so at the same moment. A request that was
    never granted is assumed to hold for the median of its service's leases, else of all leases. Ended VRAM is free at
    once. Figures are those of `gpuboss simulate --help`; saved is the recorded wait less the new one, of requests
    granted in both. With --json: recorded and what_if, each with the keys of simulate, saved_ms, sooner, later, same,
    newly_granted, no_longer_granted, assumed_holds, services and helped_most by saved_ms, left_out.
    """
    from gpuboss.cli.archives import archive_folder
    from gpuboss.cli.stream_ids import last_of

    until_id = None if until is None else last_of(until, "--until")
    folder = None if archive is None else archive_folder(archive, "--archive")
    if file is not None and folder is not None:
        raise typer.BadParameter("it goes with Redis, not with a file", param_hint="--archive")
    asked = Asked(file, until_id, from_start, folder, (redis_url, namespace, config))
    if what_if:
        _run_again(asked, (devices, policy, plot), json)
    else:
        _refuse_without_what_if({"--devices": devices, "--policy": policy, "--plot": plot})
        _derive_again(asked, json)


def _derive_again(asked: Asked, as_json: bool) -> None:
    from gpuboss.cli.exits import NO
    from gpuboss.cli.output import print_json, print_text, say
    from gpuboss.cli.reach import reach
    from gpuboss.cli.replay_report import document, report

    with ExitStack() as stack:
        if asked.file is None:
            source = _from_redis(stack.enter_context(reach(*asked.where)).log, asked)
        else:
            source = _from_file(asked.file, stack)
        if asked.file is not None or asked.archive is not None or asked.from_start:
            _require_beginning(source, asked.file)
        if source.start.origin != "beginning":
            say(f"the beginning of the log is gone: replaying from its {source.start.origin}")
        verifier, undecided = _verify(source, asked.until)
    if as_json:
        print_json(document(verifier, undecided, source.start.origin))
    else:
        print_text(report(verifier, undecided, source.start.origin))
    if verifier.divergences:
        raise typer.Exit(NO)


def _refuse_without_what_if(given: dict[str, str | None]) -> None:
    for option, value in given.items():
        if value is not None:
            raise typer.BadParameter("it says what is different from the log: add --what-if", param_hint=option)


def _run_again(asked: Asked, change: tuple[str | None, str | None, str | None], as_json: bool) -> None:
    from gpuboss.cli.reach import reach
    from gpuboss.cli.what_if import answer, checked_change, from_file, from_redis

    changed = checked_change(*change)
    with ExitStack() as stack:
        if asked.file is None:
            recorded = from_redis(stack.enter_context(reach(*asked.where)).log, asked.from_start, asked.archive)
        else:
            recorded = from_file(asked.file, stack)
        answer(recorded, asked.until, changed, as_json)


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


def _from_redis(log: LogReader, asked: Asked) -> Source:
    from gpuboss.archive import whole_log
    from gpuboss.cli.archives import entries_about
    from gpuboss.cli.fold import beginning, whole_or_snapshot
    from gpuboss.core.stream_ids import parse_id
    from gpuboss.log import LogDamaged

    cursor = log.cursor()  # before the entries: what is decided while they are read may miss its decisions
    folder, until = asked.archive, asked.until
    if folder is not None:
        return Source(beginning(), lambda: whole_log(log, folder), entries_about(folder) + log.length(), cursor)
    start = beginning() if asked.from_start else whole_or_snapshot(log)
    first = start.state.last_id
    if until is not None and parse_id(until) < parse_id(first):
        raise LogDamaged(f"--until {until} lies before the {start.origin}, from which this log replays")
    return Source(start, lambda: whole_log(log, None, first), log.length(), cursor)


def _from_file(path: str, stack: ExitStack) -> Source:
    from gpuboss.archive import archived, segments_in
    from gpuboss.cli.archives import archive_folder, entries_about
    from gpuboss.cli.files import open_twice
    from gpuboss.cli.fold import beginning
    from gpuboss.jsonl import read_jsonl

    if Path(path).is_dir():
        folder = archive_folder(path, "FILE")
        if not segments_in(folder):
            raise typer.BadParameter(f"cannot read {path}: it is no file, and no archive either", param_hint="FILE")
        return Source(beginning(), lambda: archived(folder), entries_about(folder), None)
    lines, length = open_twice(path, stack)
    return Source(beginning(), lambda: read_jsonl(lines(), path), length, None)
