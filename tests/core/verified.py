"""A log in which nearly everything is decided, and what a verification finds in it or in what was made of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from gpuboss.core.divergence import Divergence
from gpuboss.core.door import read_data, read_type
from gpuboss.core.state import State
from gpuboss.core.stream_ids import parse_id
from gpuboss.core.verification import Verifier
from gpuboss.events import DECISIONS, FACTS
from tests.core.scenario import Entry, Scenario, renewed

Data = dict[str, Any]


def story() -> Scenario:
    """A log with every kind of decision but one, a tick, a forgery and nonsense, all decided."""
    given = Scenario(24_576, 24_576)
    given.request("holder", 20_000, ttl_ms=60_000)
    given.says(renewed("holder", 90_000))
    given.request("second", 20_000, session="process")
    given.request("third", 20_000, wait_ms=1_000)
    given.request("fourth", 20_000)
    given.request("toolarge", 30_000)
    given.writes(b"LeaseGranted", b'{"lease_id":"thief___","epoch":1,"seq":99,"cause":"1-1"}')
    given.writes(b"Nonsense", b"{}")
    given.says(renewed("holder", 95_000))
    given.request("first", 20_000, priority="high", wait_ms=500)
    given.revoke("second", grace_ms=5_000)
    given.tick(2_000)
    given.release("second")
    given.tick(100_000)
    given.request("last", 1_000)
    given.release("last")
    return given


def type_of(entry: Entry) -> str:
    """The type that it says it has."""
    return entry.fields[1].decode()


def data_of(entry: Entry) -> Data:
    """Its data, read."""
    data: Data = json.loads(entry.fields[3])
    return data


def with_data(entry: Entry, data: Data) -> Entry:
    """The same entry, saying something else."""
    return Entry(entry.id, [*entry.fields[:3], json.dumps(data, separators=(",", ":")).encode()])


def forged_in(entries: Iterable[Entry]) -> frozenset[str]:
    """The entries that the log itself rejects as forged."""
    found = set()
    for entry in entries:
        if read_type(entry.fields) == b"EventRejected" and b'"forged"' in (data := read_data(entry.fields)):
            found.update(re.findall(r'"event_id": ?"([0-9-]+)"', data.decode()))
    return frozenset(found)


def last_cause_in(entries: Iterable[Entry]) -> str:
    """The last entry of which there is a decision."""
    causes = [data_of(entry)["cause"] for entry in entries if type_of(entry) in DECISIONS]
    return max(causes, key=parse_id, default="0-0")


def verify(entries: Sequence[Entry], cursor: str | None = None, cut: bool = False) -> tuple[Verifier, int]:
    """Derive every decision of a log again: what was found, and how many inputs at its end are undecided."""
    verifier = Verifier(State(), lambda: forged_in(entries), cursor, lambda: last_cause_in(entries))
    for entry in entries:
        verifier.feed(*entry)
    return verifier, verifier.finish(cut=cut)


def divergences(entries: Sequence[Entry], cursor: str | None = None) -> list[Divergence]:
    """Where a log differs from what its inputs lead to."""
    return verify(entries, cursor=cursor)[0].divergences


def named(entries: Sequence[Entry], cursor: str | None = None) -> set[str]:
    """The entries that a verification names, as the ones where the log differs or as the cause of what is missing."""
    return {divergence.entry_id for divergence in divergences(entries, cursor)}


STORY = story().entries
# Where in it the scheduler wrote, and where it decided something.
OF_SCHEDULER = [
    index
    for index, entry in enumerate(STORY)
    if type_of(entry) in DECISIONS | FACTS and entry.id not in forged_in(STORY)
]
GENUINE = [index for index in OF_SCHEDULER if type_of(STORY[index]) in DECISIONS]
