"""Appending an event to the log, and waiting for what the scheduler decides about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import msgspec

from gpuboss.cli.output import print_json, print_text
from gpuboss.cli.reach import Place
from gpuboss.cli.tail import follow
from gpuboss.core.door import is_decision, read_data, read_event, read_type
from gpuboss.errors import SchedulerUnavailable
from gpuboss.events import Decision, Event, LeaseDenied, LeaseEnded, YieldRequested
from gpuboss.full import APPEND
from gpuboss.terminal import escaped

BLOCK_MS = 100


class Answer(NamedTuple):
    """A decision, and the entry that records it."""

    entry_id: str
    decision: Decision

    def show(self, as_json: bool) -> None:
        """Print it, for programs or for people."""
        if as_json:
            kind = type(self.decision).__name__
            print_json({"id": self.entry_id, "type": kind, "data": self.decision})
        else:
            print_text(escaped(_sentence(self.decision)))


def append(place: Place, event: Event) -> str:
    """Append an event to the log, also where Redis is full; returns its id."""
    appended: Any = place.client.eval(
        APPEND, 1, place.keys.events, type(event).__name__, cast(str, msgspec.json.encode(event))
    )
    return cast(bytes, appended).decode()


def read_row(place: Place, lease_id: str) -> dict[str, Any] | None:
    """The row of a lease, or else of a waiting request; None if there is none that can be read."""
    for key in (place.keys.leases, place.keys.queue):
        stored = cast(bytes | None, place.client.hget(key, lease_id))
        try:
            row = None if stored is None else msgspec.json.decode(stored)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            return row
    return None


def wait_for_answer(place: Place, event_id: str, wait_ms: int, settled: Callable[[], bool]) -> Answer | None:
    """The first decision about this event; None once `settled` says that there will be none.

    Raises `SchedulerUnavailable` after `wait_ms`.
    """
    deadline_s = time.monotonic() + wait_ms / 1000
    is_settled = False
    for entry in follow(place, event_id, deadline_s, block_ms=BLOCK_MS):
        if entry is None:
            # Twice: a decision may have come between the last read and the first time.
            if is_settled:
                return None
            is_settled = settled()
            continue
        type_name = read_type(entry.fields)
        if type_name is None or not is_decision(type_name) or event_id.encode() not in read_data(entry.fields):
            continue
        decision = read_event(entry.fields)
        if isinstance(decision, Decision) and decision.cause == event_id:
            return Answer(entry.id, decision)
    raise SchedulerUnavailable(
        f"no scheduler answered within {wait_ms} ms; the event is in the log as {event_id}, and the next scheduler "
        "that leads will decide it"
    )


def _sentence(decision: Decision) -> str:
    if isinstance(decision, LeaseEnded):
        vram = "its VRAM is free" if decision.freed else "its VRAM is being reclaimed"
        return f"lease {decision.lease_id} of {decision.service} ended ({decision.reason}); {vram}"
    if isinstance(decision, LeaseDenied):
        return f"request {decision.lease_id} of {decision.service} is over ({decision.reason}): {decision.detail}"
    if isinstance(decision, YieldRequested):
        return f"lease {decision.lease_id} of {decision.service} was asked back; it will be taken if it is not released"
    return f"{type(decision).__name__} {msgspec.json.encode(decision).decode()}"
