"""A whole GPUBoss to test a client on: a real server, and the real scheduler with two simulated cards of 24 GB."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpuboss.keys import Keys
from tests.real.schedulers import SchedulerProcess
from tests.real.servers import RealServer, wait_for


class Platform:
    """What clients connect to (`url`), and what Redis shows of it. `redis` is a plain client of the server."""

    def __init__(self, server: RealServer, scheduler: SchedulerProcess) -> None:
        self.server = server
        self.scheduler = scheduler
        self.url = server.url
        self.keys = Keys()
        self.redis: Any = server.client()

    def leases(self) -> dict[str, dict[str, Any]]:
        """What `redis-cli hgetall gpuboss:leases` shows."""
        return {key.decode(): json.loads(row) for key, row in self.redis.hgetall(self.keys.leases).items()}

    def queue(self) -> dict[str, dict[str, Any]]:
        """The same of `gpuboss:queue`."""
        return {key.decode(): json.loads(row) for key, row in self.redis.hgetall(self.keys.queue).items()}

    def wait_for_queue(self, length: int) -> None:
        wait_for(f"{length} requests to wait", lambda: len(self.queue()) == length)

    def log(self, kind: str) -> list[dict[str, Any]]:
        """The events of one type, in the order of the log."""
        return [
            json.loads(fields[b"data"])
            for _, fields in self.redis.xrange(self.keys.events)
            if fields[b"type"] == kind.encode()
        ]

    def wait_until_nothing_is_left(self) -> None:
        """Whatever a test did, its clients are closed: so nothing is held and nobody waits."""
        wait_for("all leases to be gone", lambda: not self.leases() and not self.queue())

    def revoke(self, lease_id: str, *, grace_ms: int = 0) -> None:
        """What `gpuboss revoke` does."""
        data = json.dumps({"lease_id": lease_id, "reason": "maintenance", "by": "an operator", "grace_ms": grace_ms})
        self.redis.xadd(self.keys.events, {"type": "LeaseRevoked", "data": data})


def killed_and_back(server: RealServer) -> None:
    """Kill the server, and start it again with what it had stored."""
    server.kill()
    server.start()


@contextmanager
def running(server: RealServer, *, session_ttl: str = "15s") -> Iterator[Platform]:
    """An empty server with a scheduler that leads."""
    with server.client() as client:
        client.flushall()
    with SchedulerProcess(server.url, session_ttl=session_ttl) as scheduler:
        scheduler.wait_leading()
        platform = Platform(server, scheduler)
        try:
            yield platform
        finally:
            platform.redis.close()
