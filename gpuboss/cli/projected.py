"""What the projections in Redis say, and the tables that show them to people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

from gpuboss.cli.output import table
from gpuboss.cli.reach import Place, leads, scheduler_fields
from gpuboss.cli.wording import ago, count, duration, size

Rows = dict[str, Any]

BLOCKERS_SHOWN = 3


class Projected(NamedTuple):
    """All projections at one moment. A row that somebody broke is the text that stands there."""

    scheduler: dict[str, Any]
    devices: Rows
    leases: Rows
    queue: Rows
    server_ms: int
    log_ms: int  # the log's time: what "3 s ago" is counted from

    @property
    def somebody_leads(self) -> bool:
        """Whether a scheduler leads."""
        return leads(self.scheduler, self.server_ms)


def read_projected(place: Place) -> Projected:
    """Read all of them in one step of the server, so that they fit together."""
    keys = place.keys
    with place.client.pipeline(transaction=True) as pipe:
        for key in (keys.scheduler, keys.devices, keys.leases, keys.queue):
            pipe.hgetall(key)
        pipe.time()
        pipe.xrevrange(keys.events, count=1)
        scheduler, devices, leases, queue, (seconds, microseconds), last = pipe.execute()
    server_ms = seconds * 1000 + microseconds // 1000
    last_ms = int(last[0][0].partition(b"-")[0]) if last else 0
    return Projected(
        scheduler=scheduler_fields(scheduler),
        devices=_rows(devices, _device_order),
        leases=_rows(leases, lambda key, row: (_number(row, "granted_at_ms"), _number(row, "fence"), key)),
        queue=_rows(queue, _queue_order),
        server_ms=server_ms,
        log_ms=max(server_ms, last_ms),
    )


def devices_table(shown: Projected) -> str:
    """The devices for people."""
    if not shown.devices:
        return "no devices"
    headings = ("DEVICE", "NAME", ">TOTAL", ">LEASED", ">RECLAIMING", ">FOREIGN", ">FREE", "STATE")
    fields = ("total_mib", "leased_mib", "reclaiming_mib", "foreign_mib", "free_mib")
    return table(
        headings,
        (
            [key, _text(row, "name"), *(size(_field(row, name)) for name in fields), _health(row)]
            for key, row in shown.devices.items()
        ),
    )


def leases_table(shown: Projected) -> str:
    """The leases for people."""
    if not shown.leases:
        return "no leases"
    headings = ("LEASE", "SERVICE", "DEVICES", ">VRAM", "PRIORITY", "STATE", "GRANTED", "EXPIRES")
    return table(
        headings,
        (
            [
                lease_id,
                _text(row, "service"),
                place_of(row),
                size(_field(row, "vram_mib")),
                _text(row, "priority"),
                _text(row, "state"),
                ago(_field(row, "granted_at_ms"), shown.log_ms),
                "never" if _field(row, "expires_at_ms") is None else ago(_field(row, "expires_at_ms"), shown.log_ms),
            ]
            for lease_id, row in shown.leases.items()
        ),
    )


def queue_table(shown: Projected) -> str:
    """The queue for people."""
    if not shown.queue:
        return "nobody waits"
    headings = (">PLACE", "LEASE", "SERVICE", ">VRAM", "PRIORITY", "ASKED", "REASON", "BLOCKED BY")
    return table(
        headings,
        (
            [
                _text(row, "place", "-"),
                lease_id,
                _text(row, "service"),
                size(_field(row, "vram_mib")),
                _text(row, "priority"),
                ago(_field(row, "requested_at_ms"), shown.log_ms),
                _text(row, "reason", "-"),
                _blockers(_field(row, "blocked_by")),
            ]
            for lease_id, row in shown.queue.items()
        ),
    )


def leader_line(shown: Projected) -> str:
    """Who leads, or that nobody does, as one sentence. Not escaped."""
    scheduler = shown.scheduler
    if not scheduler:
        return "no scheduler ever led here: start gpuboss-scheduler"
    decided = f"decided through {scheduler.get('cursor', '?')}"
    if not shown.somebody_leads:
        alive_until_ms = scheduler.get("alive_until_ms")
        if not isinstance(alive_until_ms, int) or not alive_until_ms:
            return f"nobody leads: the last scheduler resigned (epoch {scheduler.get('epoch', '?')}, {decided})"
        since = ago(alive_until_ms, shown.server_ms)
        who = f"{scheduler.get('leader', '?')}, epoch {scheduler.get('epoch', '?')}, {decided}"
        return f"nobody leads: the last sign of life is from {since} ({who})"
    facts = [f"epoch {scheduler.get('epoch', '?')}", decided]
    if isinstance(scheduler.get("session_ttl_ms"), int):
        facts.append(f"session TTL {duration(scheduler['session_ttl_ms'])}")
    facts += [f"{name} {scheduler[name]}" for name in ("durability", "version") if name in scheduler]
    line = f"{scheduler.get('leader', '?')} leads ({', '.join(facts)})"
    until_ms = scheduler.get("recovering_until_ms")
    if isinstance(until_ms, int):
        left = duration(max(0, until_ms - shown.server_ms))
        line += f"\nrecovering: entries of the log were lost; nothing is granted for {left}, who holds leases says so"
    if scheduler.get("trouble"):
        line += f"\n{scheduler['trouble']}"
    return line


def summary(shown: Projected) -> str:
    """How many there are of each, in one line."""
    parts = (count(len(shown.devices), "device"), count(len(shown.leases), "lease"), f"{len(shown.queue):,} waiting")
    return ", ".join(parts)


def place_of(row: object) -> str:
    """The devices of a lease's row: `node/cuda:0`, or `node/cuda:0+1` for several."""
    devices = _field(row, "devices")
    names = [str(name) for name in devices] if isinstance(devices, list) and devices else [_text(row, "device")]
    return f"{_text(row, 'node')}/{'+'.join([names[0], *(name.removeprefix('cuda:') for name in names[1:])])}"


def _rows(stored: dict[bytes, bytes], order: Callable[[str, object], Any]) -> Rows:
    import msgspec

    rows: Rows = {}
    for key, value in stored.items():
        try:
            row = msgspec.json.decode(value)
        except (ValueError, RecursionError):
            row = value.decode("utf-8", "backslashreplace")
        rows[key.decode("utf-8", "backslashreplace")] = row
    return dict(sorted(rows.items(), key=lambda item: order(*item)))


def _device_order(key: str, row: object) -> tuple[str, int, str]:
    node, _, name = key.rpartition("/")
    index = name.removeprefix("cuda:")
    return node, int(index) if index.isascii() and index.isdigit() and len(index) < 10 else -1, key


def _queue_order(key: str, row: object) -> tuple[bool, int, int, str]:
    place = _field(row, "place")
    known = isinstance(place, int)
    return not known, cast(int, place) if known else 0, _number(row, "requested_at_ms"), key


def _field(row: object, name: str) -> object:
    return row.get(name) if isinstance(row, dict) else "?"


def _text(row: object, name: str, absent: str = "?") -> str:
    value = _field(row, name)
    return absent if value is None else str(value)


def _number(row: object, name: str) -> int:
    value = _field(row, name)
    return value if isinstance(value, int) else 0


def _health(row: object) -> str:
    healthy = _field(row, "healthy")
    return "healthy" if healthy is True else "out of order" if healthy is False else "?"


def _blockers(ids: object) -> str:
    if not isinstance(ids, list) or not ids:
        return "-"
    shown = ", ".join(str(lease_id) for lease_id in ids[:BLOCKERS_SHOWN])
    return shown if len(ids) <= BLOCKERS_SHOWN else f"{shown}, +{len(ids) - BLOCKERS_SHOWN}"
