"""What every lease_id was told, for 24 h of log time after its end: so that a repeated request is answered again,
and never becomes a second lease."""

from __future__ import annotations

from msgspec import Struct

from gpuboss.events import LeaseDenied, LeaseEnded, LeaseGranted, LeaseRequested

REMEMBERED_MS = 24 * 60 * 60 * 1000


class Past(Struct, frozen=True, gc=False):
    """A request that is over: what was asked, what was granted (None: nothing) and how it ended."""

    request: LeaseRequested
    granted: LeaseGranted | None
    ended: LeaseEnded | LeaseDenied
    at_ms: int


class History:
    """The ids that are over, oldest first."""

    def __init__(self) -> None:
        self.by_id: dict[str, Past] = {}

    def add(self, past: Past) -> None:
        """Remember the end of a lease_id. Ends come in the order of the log's clock."""
        self.by_id[past.request.lease_id] = past

    def forget_before(self, now_ms: int) -> None:
        """Forget what ended more than 24 h before `now_ms`."""
        by_id = self.by_id
        while by_id:
            oldest = next(iter(by_id))
            if by_id[oldest].at_ms + REMEMBERED_MS > now_ms:
                return
            del by_id[oldest]
