"""Reading the log from its end: the last entries first, and those that are still to come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gpuboss.cli.reach import Place

if TYPE_CHECKING:
    from gpuboss.log import Entry

BLOCK_MS = 1_000
PAGE = 1000


def backwards(place: Place) -> Iterator[Entry]:
    """All entries of the log, the last one first."""
    from gpuboss.log import Entry

    before = "+"
    while True:
        page: Any = place.client.xrevrange(place.keys.events, max=before, count=PAGE)
        for entry_id, fields in page:
            before = f"({entry_id.decode()}"
            yield Entry(entry_id.decode(), fields)
        if len(page) < PAGE:
            return


def follow(
    place: Place, after: str, deadline_s: float | None = None, block_ms: int = BLOCK_MS
) -> Iterator[Entry | None]:
    """The entries behind `after` as they come, for ever or until `deadline_s` of `time.monotonic()`.

    None after each answer of the server, which comes once there is something, or after `block_ms`.
    """
    from gpuboss.connection import connect
    from gpuboss.log import Entry

    # A connection of its own, whose socket waits longer than the server does.
    with connect(place.url, timeout_s=block_ms / 1000 + 2) as client:
        while True:
            if deadline_s is not None:
                block_ms = max(1, min(block_ms, int((deadline_s - time.monotonic()) * 1000)))
            answer: Any = client.xread({place.keys.events: after}, count=PAGE, block=block_ms)
            for entry_id, fields in answer[0][1] if answer else ():
                after = entry_id.decode()
                yield Entry(after, fields)
            yield None
            if deadline_s is not None and time.monotonic() >= deadline_s:
                return
