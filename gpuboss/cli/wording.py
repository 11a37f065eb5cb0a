"""Sizes, times and ids in the words of people."""

from __future__ import annotations

from datetime import UTC, datetime

_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000))


def size(mib: object) -> str:
    """`8 GiB`, `7.5 GiB`, `300 MiB`: GiB from one on, exact where it is printed without a point."""
    if not isinstance(mib, int):
        return "?"
    if abs(mib) < 1024:
        return f"{mib} MiB"
    whole, rest = divmod(mib, 1024)
    return f"{mib / 1024:.1f} GiB" if rest else f"{whole} GiB"


def duration(ms: int) -> str:
    """`250 ms`, `3 s`, `4 min 10 s`, `2 h 5 min`: the two largest units, cut off below."""
    if ms < 0:
        return f"-{duration(-ms)}"
    if ms < 1_000:
        return f"{ms} ms"
    parts: list[str] = []
    for unit, length_ms in _UNITS:
        count, ms = divmod(ms, length_ms)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
        if len(parts) == 2:
            break
    return " ".join(filter(None, parts))


def ago(at_ms: object, now_ms: int) -> str:
    """`3 s ago`, or `in 3 s` for what is to come."""
    if not isinstance(at_ms, int):
        return "?"
    return f"in {duration(at_ms - now_ms)}" if at_ms > now_ms else f"{duration(now_ms - at_ms)} ago"


def since(at_ms: object, now_ms: int) -> str:
    """`3 s`: how long it has been, and nothing below zero where two clocks disagree."""
    return duration(max(0, now_ms - at_ms)) if isinstance(at_ms, int) else "?"


def moment(ms: int) -> str:
    """A time of the log's clock as a date, in UTC; `?` for one that no calendar holds."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.") + f"{ms % 1000:03d}Z"
    except (ValueError, OverflowError, OSError):
        return "?"


def count(number: int, one: str, many: str = "") -> str:
    """`1 lease`, `2 leases`, `1,234 entries`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
