"""A log of which entries are gone: what says so, and what is granted once its recovery is over."""

from __future__ import annotations

from typing import Any

from tests.real.redis_view import Entry, RedisView, Service
from tests.real.schedulers import eventually

CARD_MIB = 24_576
TTL_MS = 1_000
OPTIONS: dict[str, Any] = {"session_ttl": "1s", "devices": f"cuda:0={CARD_MIB}"}


def row_of(view: RedisView, lease_id: str) -> dict[str, Any]:
    """The row of a lease, once it is shown."""
    eventually(lambda: lease_id in view.rows("leases"), f"the row of {lease_id}")
    row: dict[str, Any] = view.rows("leases")[lease_id]
    return row


def elected_anew(view: RedisView) -> Entry:
    """The election that says what was lost, once it has happened."""
    found: list[Entry] = []

    def happened() -> bool:
        found[:] = [entry for entry in view.of_type("SchedulerElected") if "lost" in entry.data]
        return bool(found)

    eventually(happened, "an election that says that entries of the log are gone")
    return found[-1]


def ms_of(entry: Entry) -> int:
    """When it was written, by the server's clock."""
    return int(entry.id.partition("-")[0])


def assert_granted_late(service: Service, lease_id: str, elected: Entry, recovery_ms: int = TTL_MS) -> Entry:
    """The grant comes once whoever holds a lease had its time, and soon after that."""
    answer = service.answer(lease_id)
    assert answer.type == "LeaseGranted"
    late_ms = answer.data["granted_at_ms"] - ms_of(elected)
    assert recovery_ms <= late_ms <= recovery_ms + 1_500
    return answer
