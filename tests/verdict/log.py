"""What must hold of a finished log, whatever happened while it was written."""

from __future__ import annotations

from collections.abc import Iterable

from gpuboss.core.state import State
from gpuboss.core.verification import Verifier
from tests.core.auditor import audit
from tests.real.redis_view import DECISIONS, FACTS, Entry, read


def faults_in_log(raw: list[tuple[str, list[bytes]]], cursor: str | None) -> list[str]:
    """What is wrong with a log, given as its entries and the cursor that was read before them: decisions that do not
    follow from it by the rules, numbers with gaps, promises that an auditor finds broken who does not know the rules.
    """
    entries = [read(entry_id, fields) for entry_id, fields in raw]
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


def granted_twice(entries: Iterable[Entry]) -> list[str]:
    """Grants that repeat one of the same incarnation of the log, whoever wrote them: where nobody forges entries, only
    a scheduler that does not know that another one leads does that."""
    faults = []
    granted: dict[object, str] = {}
    for entry in entries:
        if entry.type == "SchedulerElected" and "lost" in entry.data:
            granted.clear()
        elif entry.type == "LeaseGranted":
            lease_id = entry.data.get("lease_id")
            if lease_id in granted:
                faults.append(f"{entry.id}: {lease_id} is granted again, after {granted[lease_id]}")
            granted[lease_id] = entry.id
    return faults


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
