"""The log of a namespace on a real server, checked and folded from its beginning."""

from __future__ import annotations

from gpuboss.core import snapshot
from gpuboss.core.machine import step
from gpuboss.core.state import State
from tests.real.redis_view import RedisView
from tests.verdict.log import faults_in_log


def faults_of(view: RedisView) -> list[str]:
    """What is wrong with the log of a namespace."""
    cursor = view.scheduler().get("cursor")  # before the log is read: what is decided by then stands in it
    return faults_in_log(view.raw(), cursor)


def replayed_digest(view: RedisView, until: str) -> str:
    """The digest of the state that the log means at the entry `until`, folded from its beginning."""
    state = State()
    for entry_id, fields in view.raw():
        step(state, entry_id, fields)
        if entry_id == until:
            return snapshot.digest(snapshot.dump(state))
    raise AssertionError(f"the log holds no entry {until}")
