"""From where a log is folded: its beginning, or its snapshot where the beginning is gone."""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

from gpuboss.core.door import is_stamped, read_data, read_stamp, read_type
from gpuboss.core.machine import follows, step
from gpuboss.core.state import State
from gpuboss.core.stream_ids import parse_id
from gpuboss.log import PAGE, LogDamaged, LogReader

BEGINNING = "beginning"
WHAT_TO_DO = "replay an export from before it was trimmed: `gpuboss replay FILE`"


class Start(NamedTuple):
    """A state, and what it is the state at: `beginning`, or `snapshot <id>`."""

    state: State
    origin: str


def beginning() -> Start:
    """Before the first entry."""
    return Start(State(), BEGINNING)


def whole_or_snapshot(log: LogReader) -> Start:
    """The beginning if it is still there, else the snapshot. Raises `LogDamaged` if there is neither."""
    if is_whole(log):
        return beginning()
    snapshot = _snapshot(log)
    if snapshot is None:
        raise LogDamaged(
            f"the beginning of the log was trimmed (its first entry now is {log.first_id()}), and there is no "
            f"snapshot that these rules can read; {WHAT_TO_DO}"
        )
    return snapshot


def snapshot_or_whole(log: LogReader) -> Start:
    """The snapshot, which is faster, else the beginning. Raises `LogDamaged` if neither can be had."""
    try:
        snapshot = _snapshot(log)
    except LogDamaged:
        if not is_whole(log):
            raise
        snapshot = None
    return whole_or_snapshot(log) if snapshot is None else snapshot


def fold(log: LogReader, start: Start, until: str = "+") -> State:
    """The state at the log's end, decided or not; or behind the entry `until`, where `start` is before that."""
    from gpuboss.cli.progress import shown, without_collector

    state = start.state
    with without_collector():
        for entry in shown(log.entries(state.last_id, until), log.length(), "reading the log"):
            step(state, entry.id, entry.fields)
    return state


def is_whole(log: LogReader) -> bool:
    """Whether the log still begins where it began: nothing was ever removed, or the scheduler's first entry is there.

    Entries that were deleted from its middle are for a replay to find.
    """
    if not log.gone().any:
        return True
    for entry in islice(log.entries(), PAGE):
        type_name = read_type(entry.fields)
        if type_name is not None and is_stamped(type_name):
            stamp = read_stamp(read_data(entry.fields))
            if follows(State(), type_name, stamp):
                return True
    return False


def _snapshot(log: LogReader) -> Start | None:
    state = log.snapshot()
    if state is None:
        return None
    last_id = log.last_id()
    if last_id is None or parse_id(last_id) < parse_id(state.last_id):
        raise LogDamaged(
            f"the snapshot is of entry {state.last_id}, but the log ends at {last_id or 'nothing at all'}: the log "
            "was lost or cut after the snapshot was written"
        )
    return Start(state, f"snapshot {state.last_id}")
