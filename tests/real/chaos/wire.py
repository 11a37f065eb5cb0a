"""Networks that cut, hold back and swallow, between a server and everybody who uses it, or one of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from tests.real.chaos.outcome import Outcome
from tests.real.chaos.stage import Stage
from tests.real.proxy import Proxy
from tests.real.redis_view import RedisView
from tests.real.schedulers import eventually
from tests.real.servers import RealServer, wait_for

CUT_BYTES = 600  # a commit, or a request and its answer, have some hundreds
HELD_BACK_S = 0.7
GRANTS_BETWEEN = 3


def cut_connections(server: RealServer, faults: int, seed: int, namespace: str = "gpuboss") -> Outcome:
    """`faults` times all connections are reset somewhere in what is being said or answered, or, now and then, kept
    waiting. What is timed: from the fault until something is granted."""
    chance = random.Random(f"{seed}/wire")

    def strike(proxy: Proxy) -> None:
        if chance.random() < 0.2:
            proxy.hold()
            _pass(HELD_BACK_S)
            proxy.let_go()
        else:
            proxy.cut_all("request" if chance.random() < 0.5 else "reply", chance.randint(1, CUT_BYTES))

    return _break(server, faults, seed, namespace, strike)


def half_open(server: RealServer, faults: int, seed: int, namespace: str = "gpuboss") -> Outcome:
    """`faults` times everything that is sent over the connections that are open then is swallowed, for ever. Timed is
    the same: it takes the time-outs of both sides."""

    def strike(proxy: Proxy) -> None:
        proxy.silence()
        proxy.heal()

    return _break(server, faults, seed, namespace, strike)


def partition(server: RealServer, faults: int, seed: int, namespace: str = "gpuboss") -> Outcome:
    """`faults` times one process of services is cut off from the server, alone, until its sessions are lost: by then
    it relies on nothing any more. What is timed: until its VRAM is back."""
    took_ms = []
    with (
        Proxy(server.socket_path) as proxy,
        Stage(server, seed, namespace=namespace) as stage,
        server.client() as client,
    ):
        view = RedisView(client, namespace)
        alone = stage.start_worker("alone", proxy.url)
        for _ in range(faults):
            stage.await_grant(time.monotonic(), alone)
            cut_s = time.monotonic()
            proxy.silence()
            eventually(lambda: not _open_of(alone.name, view), "what it held and waited for to be over")
            took_ms.append(round((time.monotonic() - cut_s) * 1000))
            stage.await_grant(time.monotonic())
            proxy.heal()
        return stage.judge(faults, took_ms)


def _open_of(service: str, view: RedisView) -> list[str]:
    rows = [*view.rows("leases").values(), *view.rows("queue").values()]
    return [row["lease_id"] for row in rows if row["service"] == service]


def _break(server: RealServer, faults: int, seed: int, namespace: str, strike: Callable[[Proxy], None]) -> Outcome:
    took_ms = []
    with Proxy(server.socket_path) as proxy, Stage(server, seed, url=proxy.url, namespace=namespace) as stage:
        stage.start_scheduler().wait_for("standing by")
        for _ in range(faults):
            stage.await_grants(GRANTS_BETWEEN)
            struck_s = time.monotonic()
            strike(proxy)
            took_ms.append(stage.await_grant(struck_s))
        return stage.judge(faults, took_ms)


def _pass(seconds: float) -> None:
    until_s = time.monotonic() + seconds
    wait_for("a fault to be over", lambda: time.monotonic() > until_s, seconds + 10)
