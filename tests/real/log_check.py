"""The log of a namespace on a real server, checked and folded from its beginning."""

from __future__ import annotations

from pathlib import Path

from gpuboss.archive import whole_log
from gpuboss.core import snapshot
from gpuboss.core.machine import step
from gpuboss.core.state import State
from gpuboss.keys import Keys
from gpuboss.log import LogReader
from tests.real.redis_view import RedisView
from tests.verdict.log import faults_in_log


def faults_of(view: RedisView, archive: Path | None = None) -> list[str]:
    """What is wrong with the log of a namespace. `archive`: where what was trimmed is."""
    cursor = view.scheduler().get("cursor")  # before the log is read: what is decided by then stands in it
    return faults_in_log(whole(view, archive), cursor)


def whole(view: RedisView, archive: Path | None) -> list[tuple[str, list[bytes]]]:
    """All entries that the log of a namespace ever had, as far as they are in the archive or in Redis."""
    if archive is None:
        return view.raw()
    return [(entry.id, entry.fields) for entry in whole_log(LogReader(view.client, Keys(view.namespace)), archive)]


def replayed_digest(view: RedisView, until: str) -> str:
    """The digest of the state that the log means at the entry `until`, folded from its beginning."""
    state = State()
    for entry_id, fields in view.raw():
        step(state, entry_id, fields)
        if entry_id == until:
            return snapshot.digest(snapshot.dump(state))
    raise AssertionError(f"the log holds no entry {until}")
