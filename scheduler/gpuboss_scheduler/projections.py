"""Keeping what Redis shows true, outside the commits: rows that somebody deleted or invented, and the refreshed
explanations of the queue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, cast

import msgspec

from gpuboss.core.explain import explaining
from gpuboss.core.projections import device_rows, lease_rows, queue_row
from gpuboss.core.state import State
from gpuboss_scheduler.reign import Reign
from gpuboss_scheduler.scripts import Script

EXPLAINED_AT_ONCE = 20  # under half a millisecond

_project = Script("project")


def deleted_leases(reign: Reign, state: State, *, thorough: bool = True) -> list[str]:
    """The leases whose row is gone from Redis, which is how an operator without tools ends them. Rows of leases that
    do not exist are taken out. Unless `thorough`, the rows are only counted, which costs the same for any number."""
    leases = state.ledger.leases
    if not thorough and _count(reign, reign.keys.leases) == len(leases):
        return []
    present = _fields(reign, reign.keys.leases)
    _write(reign, reign.keys.leases, present - leases.keys(), {})
    return [lease_id for lease_id in leases if lease_id not in present]


def repair_queue(reign: Reign, state: State, *, thorough: bool = True) -> None:
    """Put back the rows of waiting requests that were deleted, and take out what does not wait. See above."""
    waiting = state.waitlist.by_id
    if not thorough and _count(reign, reign.keys.queue) == len(waiting):
        return
    present = _fields(reign, reign.keys.queue)
    missing = {lease_id: queue_row(waiting[lease_id]) for lease_id in waiting if lease_id not in present}
    _write(reign, reign.keys.queue, present - waiting.keys(), missing)


def repair_devices(reign: Reign, state: State) -> None:
    """Put back the rows of devices that were deleted, and take out what is no device."""
    present = _fields(reign, reign.keys.devices)
    if present != state.ledger.devices.keys():
        _write(reign, reign.keys.devices, present - state.ledger.devices.keys(), device_rows(state))


def refresh_queue(reign: Reign, state: State) -> Iterator[bool]:
    """Write place, reason and blockers of the first of the queue, some in each step: every request that comes waits for
    the step that is under way."""
    explained = explaining(state)
    while some := list(islice(explained, EXPLAINED_AT_ONCE)):
        rows = {waiting.request.lease_id: queue_row(waiting, why) for waiting, why in some}
        _write(reign, reign.keys.queue, (), rows)
        yield True


def write_all(reign: Reign, state: State) -> None:
    """A new leader writes what it has derived, whatever stood there. Leases' rows it only corrects: one that is
    missing was deleted on purpose."""
    present = _fields(reign, reign.keys.leases)
    rows = {lease_id: row for lease_id, row in lease_rows(state).items() if lease_id in present}
    _write(reign, reign.keys.leases, present - rows.keys(), rows)
    repair_queue(reign, state)
    _write(
        reign, reign.keys.devices, _fields(reign, reign.keys.devices) - state.ledger.devices.keys(), device_rows(state)
    )


def _fields(reign: Reign, key: str) -> set[str]:
    from redis.exceptions import ResponseError

    try:
        names = cast(list[bytes], reign.client.hkeys(key))
    except ResponseError:  # somebody made it another type: as good as deleted
        return set()
    return {name.decode("utf-8", "surrogateescape") for name in names}


def _count(reign: Reign, key: str) -> int:
    from redis.exceptions import ResponseError

    try:
        return reign.client.hlen(key)
    except ResponseError:
        return -1


def _write(reign: Reign, key: str, gone: Iterable[str], rows: Mapping[str, Any]) -> None:
    names = [name.encode("utf-8", "surrogateescape") for name in sorted(gone)]  # of a set: the same in every run
    if not names and not rows:
        return
    arguments: list[str | bytes | int] = [reign.token, len(names), *names]
    for name, row in rows.items():
        arguments += [name, msgspec.json.encode(row)]
    _project(reign.client, [reign.keys.scheduler, key], arguments)
