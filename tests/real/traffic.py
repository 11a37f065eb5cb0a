"""Services at work: they ask, hold, renew, release and let expire, at random by a seed, and survive outages."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Mapping
from types import TracebackType

import redis

from tests.real.redis_view import RedisView, Service
from tests.real.schedulers import eventually
from tests.real.servers import RealServer

PATIENCE_S = 20.0
RECONNECT_S = 0.02

Wish = dict[str, object]


class Traffic:
    """Some services on one server, each in a thread of its own, from `start` to `stop`. Most of the time they ask for
    one lease after the other, now and then for `burst` of them at once.

    `asked` counts requests, `lost` says which were not over within `patience_s`.
    """

    def __init__(
        self,
        server: RealServer,
        seed: int,
        *,
        services: int = 5,
        burst: int = 12,
        namespace: str = "gpuboss",
        most_mib: int = 20_000,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.asked = 0
        self.ended = 0
        self.lost: list[str] = []
        self._server = server
        self._namespace = namespace
        self._burst = burst
        self._most_mib = most_mib
        self._patience_s = patience_s
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, args=(f"service-{number}", random.Random(f"{seed}/{number}")))
            for number in range(services)
        ]

    def start(self) -> Traffic:
        """Begin to ask."""
        for thread in self._threads:
            thread.start()
        return self

    def await_more(self, requests: int) -> None:
        """Wait until that many more are over."""
        until = self.ended + requests
        eventually(lambda: self.ended >= until or self.lost, f"{requests} more requests to be over")
        assert self.lost == []

    def stop(self) -> None:
        """Ask nothing more, and wait until everything that was asked is answered and over."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Traffic:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _serve(self, name: str, chance: random.Random) -> None:
        with self._server.client() as client:
            service = Service(RedisView(client, self._namespace), name)
            number = 0
            while not self._stopping.is_set():
                wishes = {}
                for _ in range(self._burst if chance.random() < 0.3 else 1):
                    number += 1
                    wishes[f"{name}-{number:06}"] = self._wish(chance)
                self.asked += len(wishes)
                try:
                    self._use(service, wishes)
                except AssertionError as late:
                    self.lost.append(str(late))
                    return
                self.ended += len(wishes)

    def _wish(self, chance: random.Random) -> Wish:
        wish: Wish = {
            "vram_mib": chance.randrange(1000, self._most_mib),
            "priority": chance.choice(["low", "normal", "high"]),
        }
        if chance.random() < 0.2:
            wish["gpus"] = 2
        if chance.random() < 0.1:
            wish["wait_ms"] = 40
        if chance.random() < 0.2:
            wish["ttl_ms"] = 30  # and it is not released
        return wish

    def _use(self, service: Service, wishes: Mapping[str, Wish]) -> None:
        """Some requests from their beginning to their end. Whenever Redis was away: read from the beginning, and
        repeat what is open."""
        until_s = time.monotonic() + self._patience_s
        is_open = dict.fromkeys(wishes, True)
        while any(is_open.values()):
            assert time.monotonic() < until_s, f"not over in time: {[each for each in is_open if is_open[each]]}"
            try:
                self._ask(service, {lease_id: wish for lease_id, wish in wishes.items() if is_open[lease_id]})
                self._see_through(service, wishes, is_open, until_s)
            except (redis.ConnectionError, redis.TimeoutError):
                time.sleep(RECONNECT_S)

    def _ask(self, service: Service, wishes: Mapping[str, Wish]) -> None:
        """All at once, so that they reach the scheduler together."""
        view = service.view
        pipeline = view.client.pipeline(transaction=False)
        for lease_id, wish in wishes.items():
            data = json.dumps({"lease_id": lease_id, "service": service.name, **wish})
            pipeline.xadd(view.key("events"), {"type": "LeaseRequested", "data": data})
        pipeline.execute()

    def _see_through(
        self, service: Service, wishes: Mapping[str, Wish], is_open: dict[str, bool], until_s: float
    ) -> None:
        """Release what is granted, until all is over."""
        view, stream = service.view, f"replies:{service.address}"
        after = "0-0"
        while any(is_open.values()) and time.monotonic() < until_s:
            for reply in view.entries(stream, after):
                after = reply.id
                lease_id = str(reply.data.get("lease_id"))
                if reply.type == "LeaseGranted" and is_open.get(lease_id) and "ttl_ms" not in wishes[lease_id]:
                    service.release(lease_id)
                elif reply.type in ("LeaseEnded", "LeaseDenied", "EventRejected") and lease_id in is_open:
                    is_open[lease_id] = False
            if any(is_open.values()):
                view.client.xread({view.key(stream): after}, count=1, block=500)
