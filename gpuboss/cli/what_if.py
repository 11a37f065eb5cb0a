"""`gpuboss replay --what-if`: the requests of a log run again with other devices or rules, beside what happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import msgspec
import typer

from gpuboss.archive import whole_log
from gpuboss.cli.archives import entries_about
from gpuboss.cli.files import open_twice
from gpuboss.cli.fold import is_whole, whole_or_snapshot
from gpuboss.cli.look_ahead import forged_ids, number_begun_at
from gpuboss.cli.options import checked_devices
from gpuboss.cli.output import print_json, print_text, say
from gpuboss.cli.plot import checked_plot, draw
from gpuboss.cli.progress import shown, without_collector
from gpuboss.cli.what_if_report import report
from gpuboss.cli.wording import count
from gpuboss.config import PolicyConfig, load_policy
from gpuboss.core.state import State
from gpuboss.core.stream_ids import parse_id
from gpuboss.events import DeviceObserved
from gpuboss.jsonl import read_jsonl
from gpuboss.log import Entry, LogDamaged, LogReader
from gpuboss.simulation.recorded import Recording
from gpuboss.simulation.what_if import compare, run_again


class Change(NamedTuple):
    """What is to be different; None is as it was recorded. And where to draw both, if at all."""

    devices: list[tuple[int, int]] | None
    policy: PolicyConfig | None
    plot: Path | None


class Recorded(NamedTuple):
    """The log to run again. `start` is its state before the first entry; None: its beginning is gone."""

    start: State | None
    entries: Callable[[], Iterator[Entry]]
    length: int


def checked_change(devices: str | None, policy: str | None, plot: str | None) -> Change:
    """What the options ask for. Raises `typer.BadParameter` and `ConfigError`."""
    if devices is None and policy is None:
        raise typer.BadParameter(
            "what is to be different? expected --devices, --policy or both", param_hint="--what-if"
        )
    sizes = None if devices is None else checked_devices(devices)
    return Change(sizes, None if policy is None else load_policy(policy), checked_plot(plot))


def from_file(path: str, stack: ExitStack) -> Recorded:
    """The log in a file. Raises `typer.BadParameter` if it cannot be read."""
    lines, length = open_twice(path, stack)

    def entries() -> Iterator[Entry]:
        return read_jsonl(lines(), path)

    return Recorded(State() if number_begun_at(entries) == 1 else None, entries, length)


def from_redis(log: LogReader, from_start: bool, archive: Path | None) -> Recorded:
    """The log in Redis, from its beginning, else from its snapshot, else from where it begins now; behind what was
    archived of it, if that is given."""
    if archive is not None:
        return Recorded(State(), lambda: whole_log(log, archive), entries_about(archive) + log.length())
    start: State | None = None
    if is_whole(log):
        start = State()
    elif not from_start:
        try:
            start = whole_or_snapshot(log).state
        except LogDamaged as error:
            say(str(error))
    first = "0-0" if start is None else start.last_id
    return Recorded(start, lambda: log.entries(first), log.length())


def answer(recorded: Recorded, until: str | None, change: Change, as_json: bool) -> None:
    """Run it again, and print both side by side. Raises `LogDamaged` where the log says too little."""
    _say_what_is_known(recorded)
    with without_collector():
        recording = _read(recorded, until)
        if change.devices is None and not any(isinstance(event, DeviceObserved) for _, event in recording.facts):
            raise LogDamaged("the log does not say what devices there were; say it with --devices")
        before = recording.schedule()
        after = run_again(
            before,
            recording.facts,
            change.devices,
            change.policy,
            watched=lambda order: shown(order, len(before.jobs), "simulating"),
        )
    if recording.left_out:
        leases = count(len(recording.left_out), "lease")
        say(f"left out: {leases} of which the log does not hold the request, or whose id was used before")
    if change.plot is not None:
        draw(change.plot, {"recorded": before, "what if": after})
    comparison = compare(before, after)
    if as_json:
        print_json(msgspec.structs.asdict(comparison) | {"left_out": len(recording.left_out)})
    else:
        print_text(report(before, after, comparison))


def _read(recorded: Recorded, until: str | None) -> Recording:
    recording = Recording(recorded.start)
    if until is not None and recorded.start is not None and parse_id(until) < parse_id(recorded.start.last_id):
        raise LogDamaged(f"--until {until} lies before the snapshot {recorded.start.last_id}, where this log begins")
    forged = forged_ids(recorded.entries())
    last = None if until is None else parse_id(until)

    def through_the_last() -> Iterator[Entry]:
        for entry in shown(recorded.entries(), recorded.length, "reading the log"):
            if last is not None and parse_id(entry.id) > last:
                return
            yield entry

    recording.collect(through_the_last(), forged)
    return recording


def _say_what_is_known(recorded: Recorded) -> None:
    if recorded.start is None:
        say(
            "the beginning of the log is gone: requests from before its first entry are left out, as if they had held "
            "nothing, and what it says first of the rules and of each device counts from there on"
        )
    elif recorded.start.last_id != "0-0":
        say(
            f"the beginning of the log is gone: known are the requests from its snapshot {recorded.start.last_id} on, "
            "and those that waited or held a lease then; what was over by then is left out, as if it had held nothing"
        )
