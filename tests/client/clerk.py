"""A client's desk for tests, and everything that it told those who wait."""

import itertools
from typing import Any

import msgspec

from gpuboss.client.answers import take
from gpuboss.client.desk import Desk, Waiting
from gpuboss.client.lease import Lease
from gpuboss.client.replies import Reply
from gpuboss.errors import GPUBossError
from gpuboss.events import LeaseRequested

NOW_S = 100.0


class Clerk:
    """A desk, and everything that it told those who wait."""

    def __init__(self) -> None:
        numbers = itertools.count(1)
        self.desk = Desk("painter", lambda: f"session-{next(numbers)}")
        self.told: dict[str, list[Lease | GPUBossError]] = {}

    def ask(self, lease_id: str, **fields: Any) -> None:
        request = LeaseRequested(lease_id, "painter", 8192, session=self.desk.session, **fields)
        self.told[lease_id] = []
        self.desk.waiting[lease_id] = Waiting(request, self.told[lease_id].append)

    def hear(self, kind: str, now_s: float = NOW_S, **fields: object) -> None:
        reply = msgspec.convert({"session": self.desk.session, **fields}, Reply)
        take(self.desk, kind, reply, now_s)

    def grant(self, lease_id: str, **fields: object) -> None:
        granted: dict[str, Any] = {"lease_id": lease_id, "node": "node-a", "device": "cuda:0", "fence": 7}
        self.hear("LeaseGranted", **granted | fields)

    def hold(self, lease_id: str, **fields: object) -> Lease:
        self.ask(lease_id)
        self.grant(lease_id, **fields)
        [lease] = self.told[lease_id]
        assert isinstance(lease, Lease)
        return lease
