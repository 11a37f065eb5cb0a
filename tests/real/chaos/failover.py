"""A failover to a replica that lagged: writes that were acknowledged are gone, under traffic, again and again."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.real.chaos.outcome import Outcome
from tests.real.chaos.stage import Stage
from tests.real.proxy import Proxy
from tests.real.redis_view import RedisView
from tests.real.schedulers import eventually
from tests.real.servers import RealServer

GRANTS_LOST = 4


def fail_over(server: RealServer, faults: int, seed: int, namespace: str = "gpuboss") -> Outcome:
    """`faults` failovers, to and fro between `server` and a replica. All reach the primary through one address. What is
    timed: from the failover until something is granted, a session TTL of recovery among it."""
    took_ms = []
    with (
        tempfile.TemporaryDirectory() as folder,
        RealServer(Path(folder) / "other", server.kind) as other,
        Proxy(server.socket_path) as front,
        Stage(server, seed, url=front.url, namespace=namespace) as stage,
    ):
        stage.start_scheduler().wait_for("standing by")
        primary, replica = server, other
        for _ in range(faults):
            _let_lag(stage, primary, replica)
            _promote(replica)
            front.target = replica.socket_path
            failed_s = time.monotonic()
            front.cut_all()
            stage.server = replica
            took_ms.append(stage.await_grant(failed_s))
            primary, replica = replica, primary
        outcome = stage.judge(faults, took_ms)
        if (noticed := _losses(stage)) != faults:
            outcome.lost.append(f"{faults} failovers lost acknowledged writes; {noticed} were noticed")
        return outcome


def _let_lag(stage: Stage, primary: RealServer, replica: RealServer) -> None:
    """Follow the primary, and no more from a moment on: what is granted then only the primary knows."""
    with primary.client() as first, replica.client() as second, Proxy(primary.socket_path) as link:
        first.config_set("repl-diskless-sync-delay", 0)
        second.replicaof("127.0.0.1", str(link.port))
        in_step = f"replica to follow {primary.socket_path}"
        eventually(lambda: second.info("replication").get("master_link_status") == "up", in_step)
        stage.await_grants(1)
        link.silence()
        stage.await_grants(GRANTS_LOST)


def _promote(replica: RealServer) -> None:
    with replica.client() as client:
        client.replicaof("NO", "ONE")


def _losses(stage: Stage) -> int:
    """How many losses the log speaks of."""
    with stage.server.client() as client:
        elected = RedisView(client, stage.namespace).of_type("SchedulerElected")
    return len([entry for entry in elected if "lost" in entry.data])
