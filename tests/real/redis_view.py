"""What the contract shows in Redis, read and written by plain commands alone: no code of the product stands between."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import redis

from tests.real.schedulers import DEADLINE_S, eventually

DECISIONS = frozenset(
    {
        "LeaseGranted",
        "LeaseDenied",
        "YieldRequested",
        "LeaseExtended",
        "LeaseStateChanged",
        "LeaseEnded",
        "EventRejected",
    }
)
FACTS = frozenset(
    {
        "SchedulerElected",
        "PolicySet",
        "DeviceObserved",
        "LeaseObserved",
        "DeviceLost",
        "SessionLost",
        "ClockTicked",
        "ClockJumped",
        "VramReclaimed",
        "SnapshotTaken",
    }
)


class Entry(NamedTuple):
    """An entry of the log or of a reply stream. `data` is empty where it is no JSON object."""

    id: str
    type: str
    data: dict[str, Any]


class RedisView:
    """One namespace on one server. The client must be one of `RealServer.client()`; this view changes how it reads."""

    def __init__(self, client: redis.Redis, namespace: str = "gpuboss") -> None:
        self.client = client
        self.namespace = namespace
        # As flat field lists: a dict would hide a field that is there twice.
        for command in ("XRANGE", "XREVRANGE", "XREAD"):
            client.response_callbacks.pop(command, None)

    def key(self, name: str) -> str:
        """The key of that name in this namespace."""
        return f"{self.namespace}:{name}"

    def append(self, type_name: str, /, **data: object) -> str:
        """Append an event to the log; returns its id."""
        return self.append_fields(["type", type_name, "data", json.dumps(data)])

    def append_fields(self, fields: Iterable[bytes | str]) -> str:
        """Append an entry of exactly these fields and values; returns its id."""
        entry_id: Any = self.client.execute_command("XADD", self.key("events"), "*", *fields)
        return str(entry_id.decode())

    def raw(self, name: str = "events", after: str = "-") -> list[tuple[str, list[bytes]]]:
        """All entries of a stream behind `after`, as Redis holds them."""
        found: Any = self.client.xrange(self.key(name), min=after if after == "-" else f"({after}")
        return [(entry_id.decode(), fields) for entry_id, fields in found]

    def entries(self, name: str = "events", after: str = "-") -> list[Entry]:
        """The same, read."""
        return [read(entry_id, fields) for entry_id, fields in self.raw(name, after)]

    def of_type(self, *types: str) -> list[Entry]:
        """The entries of the log of these types."""
        return [entry for entry in self.entries() if entry.type in types]

    def replies(self, address: str) -> list[Entry]:
        """All that a service (`name` or `name:instance`) was told and that is still there."""
        return self.entries(f"replies:{address}")

    def rows(self, name: str) -> dict[str, Any]:
        """A projection (`leases`, `queue`, `devices`): each field with its row, read."""
        stored: Any = self.client.hgetall(self.key(name))
        return {field.decode(): json.loads(row) for field, row in stored.items()}

    def scheduler(self) -> dict[str, str]:
        """The hash of that name."""
        stored: Any = self.client.hgetall(self.key("scheduler"))
        return {field.decode(): value.decode() for field, value in stored.items()}

    def wait_entry(self, what: str, after: str = "-", deadline_s: float = DEADLINE_S, **data: object) -> Entry:
        """Wait for an entry of the log of type `what` whose data hold all of `data`; the first behind `after`."""
        return self._wait("events", what.split("|"), after, deadline_s, data)

    def wait_reply(
        self, address: str, what: str, after: str = "-", deadline_s: float = DEADLINE_S, **data: object
    ) -> Entry:
        """The same on a reply stream. `what` may name several types, with `|` between them."""
        return self._wait(f"replies:{address}", what.split("|"), after, deadline_s, data)

    def _wait(self, name: str, types: list[str], after: str, deadline_s: float, data: Mapping[str, object]) -> Entry:
        until_s = time.monotonic() + deadline_s
        while True:
            for entry in self.entries(name, after):
                if entry.type in types and data.items() <= entry.data.items():
                    return entry
                after = entry.id
            left_ms = int((until_s - time.monotonic()) * 1000)
            assert left_ms > 0, f"no {'|'.join(types)} with {dict(data)} in {name} within {deadline_s} s"
            position = "0-0" if after == "-" else after
            self.client.xread({self.key(name): position}, count=1, block=min(left_ms, 1000))


def read(entry_id: str, fields: list[bytes]) -> Entry:
    """An entry as far as it can be read."""
    named = dict(zip(fields[0::2], fields[1::2], strict=True))
    data: Any = {}
    with suppress(ValueError, RecursionError):
        data = json.loads(named.get(b"data", b"{}"))
    return Entry(entry_id, named.get(b"type", b"").decode("latin-1"), data if isinstance(data, dict) else {})


class Service:
    """One process of a service, as any language could write it. Replies go to `address`."""

    def __init__(
        self, view: RedisView, name: str, *, instance: str | None = None, session: str | None = None, ttl_ms: int = 0
    ) -> None:
        self.view = view
        self.name = name
        self.address = name if instance is None else f"{name}:{instance}"
        self._named = {"instance": instance, "session": session}
        self._ttl_ms = ttl_ms  # of the session; 0: it never beats

    def request(self, vram_mib: int, **fields: object) -> str:
        """Ask for VRAM; returns the lease_id."""
        lease_id = str(fields.pop("lease_id", f"lease-{secrets.token_hex(6)}"))
        self.beat()
        named = {name: value for name, value in self._named.items() if value is not None}
        self.view.append("LeaseRequested", lease_id=lease_id, service=self.name, vram_mib=vram_mib, **named, **fields)
        return lease_id

    def answer(self, lease_id: str, deadline_s: float = DEADLINE_S) -> Entry:
        """Wait for the grant or the denial of a request."""
        return self.told(lease_id, "LeaseGranted|LeaseDenied", deadline_s)

    def lease(self, vram_mib: int, **fields: object) -> str:
        """Ask, and wait until it is granted; returns the lease_id."""
        lease_id = self.request(vram_mib, **fields)
        answer = self.answer(lease_id)
        assert answer.type == "LeaseGranted", answer
        return lease_id

    def queue(self, vram_mib: int, **fields: object) -> str:
        """Ask, and wait until the request is seen to wait; returns the lease_id."""
        lease_id = self.request(vram_mib, **fields)
        queue = self.view.key("queue")
        eventually(lambda: self.view.client.hexists(queue, lease_id), f"{lease_id} to wait")
        return lease_id

    def release(self, lease_id: str) -> str:
        """Give a lease back, or take a request back; returns the entry's id."""
        return self.view.append("LeaseReleased", lease_id=lease_id, service=self.name)

    def told(self, lease_id: str, what: str, deadline_s: float = DEADLINE_S) -> Entry:
        """Wait until this service is told `what` about a lease_id."""
        return self.view.wait_reply(self.address, what, deadline_s=deadline_s, lease_id=lease_id)

    def beat(self, ttl_ms: int | None = None) -> None:
        """Say that this session is alive for one more session TTL (ms)."""
        ttl_ms = self._ttl_ms if ttl_ms is None else ttl_ms
        if ttl_ms:
            seconds, microseconds = self.view.client.time()
            member = f"{self.name}/{self._named['session']}"
            self.view.client.zadd(self.view.key("sessions"), {member: seconds * 1000 + microseconds // 1000 + ttl_ms})
