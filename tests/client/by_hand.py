"""A scheduler played by hand: a test reads what clients ask, and writes the answers that it wants them to get."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import anyio

from gpuboss import GPUBoss, Lease
from gpuboss.keys import Keys
from tests.real.servers import RealServer

DEADLINE_S = 5.0


async def until(what: str, condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """Return once `condition()` is true, without holding up the event loop; fail with `what` was waited for."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, f"waited {deadline_s:g} s for {what}, in vain"
        await anyio.sleep(0.002)


async def until_ended() -> None:
    """What a body does that is to be ended from outside; fails if nobody does."""
    await anyio.sleep(DEADLINE_S)
    raise AssertionError(f"waited {DEADLINE_S:g} s to be ended, in vain")


class HandScheduler:
    """Leads from the start. `log` is what clients appended, `heard` how much of it was asked for with `hear`."""

    def __init__(self, server: RealServer, service: str = "painter", namespace: str = "gpuboss") -> None:
        self.keys = Keys(namespace)
        self.service = service
        self.redis: Any = server.client()
        self._answers = 0
        self._heard: set[bytes] = set()

    def close(self) -> None:
        self.redis.close()

    # ------------------------------------------------------------ leading

    def lead(self, *, alive_for_ms: int = 600_000, session_ttl_ms: int = 15_000, incarnation: str = "first") -> None:
        """Lead, as the hash has it, for so long without another word."""
        about = {"session_ttl_ms": session_ttl_ms, "incarnation": incarnation, "leader": "hand", "epoch": 1}
        self.redis.hset(self.keys.scheduler, mapping=about | {"alive_until_ms": self.now_ms() + alive_for_ms})

    def resign(self) -> None:
        self.redis.hset(self.keys.scheduler, mapping={"alive_until_ms": 0, "leader": ""})

    def vanish(self) -> None:
        """Have been silent for too long already."""
        self.redis.hset(self.keys.scheduler, "alive_until_ms", self.now_ms() - 5_001)

    def now_ms(self) -> int:
        seconds, microseconds = self.redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    # ------------------------------------------------------------ hearing

    def log(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What clients appended, as data with its `type` and `id`."""
        entries = [
            {"id": entry, "type": fields[b"type"].decode(), **json.loads(fields[b"data"])}
            for entry, fields in self.redis.xrange(self.keys.events)
        ]
        return [entry for entry in entries if kind in (None, entry["type"])]

    async def hear(self, kind: str) -> dict[str, Any]:
        """The next event of this type that was not heard yet."""
        unheard: list[dict[str, Any]] = []

        def came() -> bool:
            unheard[:] = [entry for entry in self.log(kind) if entry["id"] not in self._heard]
            return bool(unheard)

        await until(f"a {kind}", came)
        self._heard.add(unheard[0]["id"])
        return unheard[0]

    # ------------------------------------------------------------ answering

    def say(self, kind: str, to: Mapping[str, Any], *, entry_id: str = "*", **fields: Any) -> None:
        """Append an answer to the request `to`, into the reply stream of the service."""
        self._answers += 1
        told = {
            "cause": f"1-{self._answers}",
            "session": to.get("session"),
            "lease_id": to["lease_id"],
            "service": self.service,
            "now_ms": 50_000,
            **fields,
        }
        data = json.dumps({name: value for name, value in told.items() if value is not None})
        self.redis.xadd(self.keys.replies(self.service), {"type": kind, "data": data}, id=entry_id)

    def grant(self, to: Mapping[str, Any], device: str = "cuda:0", **fields: Any) -> None:
        granted = {
            "node": "node-a",
            "device": device,
            "devices": [device],
            "uuids": [f"GPU-{device[5:] * 8}"],
            "vram_mib": to.get("vram_mib", 1024),
            "granted_at_ms": 49_000,
            "waited_ms": 0,
            "fence": 1,
        }
        self.say("LeaseGranted", to, **granted | fields)

    def deny(self, to: Mapping[str, Any], reason: str, detail: str = "") -> None:
        self.say("LeaseDenied", to, reason=reason, detail=detail)

    def end(self, to: Mapping[str, Any], reason: str) -> None:
        self.say("LeaseEnded", to, reason=reason, freed=True)


async def hold(boss: GPUBoss, hand: HandScheduler) -> Lease:
    """A lease of 8 GB, asked for and granted."""
    acquiring = asyncio.create_task(boss.acquire(vram_gb=8))
    hand.grant(await hand.hear("LeaseRequested"))
    return await acquiring


def asked(hand: HandScheduler) -> list[str]:
    """The lease_ids that were asked for, each as often as it was."""
    return [event["lease_id"] for event in hand.log("LeaseRequested")]
