"""What must hold of a finished log, whatever happened while it was written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gpuboss.archive import whole_log
from gpuboss.core import snapshot
from gpuboss.core.machine import step
from gpuboss.core.state import State
from gpuboss.core.verification import Verifier
from gpuboss.keys import Keys
from gpuboss.log import LogReader
from tests.core.auditor import audit
from tests.real.redis_view import DECISIONS, FACTS, Entry, RedisView, read


def faults_of(view: RedisView, archive: Path | None = None) -> list[str]:
    """What is wrong with the log of a namespace: decisions that do not follow from it by the rules, numbers with gaps,
    promises that an auditor finds broken who does not know the rules. `archive`: where what was trimmed is."""
    cursor = view.scheduler().get("cursor")  # before the log is read: what is decided by then stands in it
    raw = whole(view, archive)
    entries = [read(*each) for each in raw]
    forged = frozenset(
        str(entry.data.get("event_id"))
        for entry in entries
        if entry.type == "EventRejected" and entry.data.get("reason") == "forged"
    )
    verifier = Verifier(State(), lambda: forged, cursor)
    for entry_id, fields in raw:
        verifier.feed(entry_id, fields)
    verifier.finish()
    faults = [f"{found.entry_id}: {found.problem}" for found in verifier.divergences]
    genuine = [entry for entry in entries if entry.id not in forged]
    return faults + gaps_in(genuine) + audit(raw)


def whole(view: RedisView, archive: Path | None) -> list[tuple[str, list[bytes]]]:
    """All entries that the log of a namespace ever had, as far as they are in the archive or in Redis."""
    if archive is None:
        return view.raw()
    return [(entry.id, entry.fields) for entry in whole_log(LogReader(view.client, Keys(view.namespace)), archive)]


def gaps_in(entries: Iterable[Entry]) -> list[str]:
    """Entries of a scheduler whose `seq` does not follow the one before, or whose `epoch` goes back."""
    faults = []
    epoch, seq = 0, 0
    for entry in entries:
        if entry.type not in DECISIONS | FACTS and "seq" not in entry.data:
            continue
        found = entry.data.get("epoch", 0), entry.data.get("seq", 0)
        if found[1] != seq + 1 or found[0] < epoch or (found[0] > epoch) != (entry.type == "SchedulerElected"):
            faults.append(f"{entry.id}: {entry.type} has epoch and seq {found} after {(epoch, seq)}")
        epoch, seq = found
    return faults


def replayed_digest(view: RedisView, until: str) -> str:
    """The digest of the state that the log means at the entry `until`, folded from its beginning."""
    state = State()
    for entry_id, fields in view.raw():
        step(state, entry_id, fields)
        if entry_id == until:
            return snapshot.digest(snapshot.dump(state))
    raise AssertionError(f"the log holds no entry {until}")
