"""`gpuboss release` and `revoke`: what an operator does, and the answer of a real scheduler to it."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from tests.cli.console import Console, environment, store
from tests.core.scenario import Scenario
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer

SERVICE = "imajin-diffusion"


@pytest.fixture
def start(server: RealServer) -> Iterator[Callable[..., SchedulerProcess]]:
    """Starts a scheduler with one card of 24 GiB, and ends it with the test."""
    started: list[SchedulerProcess] = []

    def start_one(lock_delay: str = "0") -> SchedulerProcess:
        environ = environment()
        process = SchedulerProcess(server.url, devices="cuda:0=24576", lock_delay=lock_delay, environ=environ)
        started.append(process.start())
        process.wait_leading()
        return process

    yield start_one
    for process in started:
        process.__exit__(None, None, None)


def ask(client: redis.Redis, lease_id: str, vram_mib: int = 1_000, **fields: Any) -> None:
    """Ask for a lease, and wait until its row is there."""
    data = {"lease_id": lease_id, "service": SERVICE, "vram_mib": vram_mib, **fields}
    client.xadd("gpuboss:events", {"type": "LeaseRequested", "data": json.dumps(data)})
    eventually(
        lambda: client.hexists("gpuboss:leases", lease_id) or client.hexists("gpuboss:queue", lease_id),
        f"the row of {lease_id}",
    )


def last_of(client: redis.Redis, kind: str) -> dict[str, Any]:
    log: Any = client.xrange("gpuboss:events")
    entries = [fields for _, fields in log if fields[b"type"] == kind.encode()]
    data: dict[str, Any] = json.loads(entries[-1][b"data"])
    return data


def length(client: redis.Redis) -> int:
    return int(client.xlen("gpuboss:events"))


def test_release(console: Console, client: redis.Redis, start: Callable[..., SchedulerProcess]) -> None:
    start()
    ask(client, "lease-0001", 20_000)
    ask(client, "lease-0002", 20_000)
    waiting = console.call("release", "lease-0002")
    assert waiting == (
        0,
        f"request lease-0002 of {SERVICE} is over (cancelled): taken back by {SERVICE}\n",
        "",
    )
    held = console.run("release", "lease-0001", "--json")
    assert (held.code, held.err, held.document["type"]) == (0, "", "LeaseEnded")
    assert held.document["data"].items() >= {"lease_id": "lease-0001", "reason": "released", "freed": True}.items()
    assert last_of(client, "LeaseReleased") == {"lease_id": "lease-0001", "service": SERVICE}
    assert client.hlen("gpuboss:leases") == 0
    again = console.call("release", "lease-0001")
    assert (again.code, again.out) == (1, "")
    assert "lease-0001 is over already (released)" in again.err


def test_release_of_what_is_not_there(
    console: Console, client: redis.Redis, start: Callable[..., SchedulerProcess]
) -> None:
    start(lock_delay="60s")
    ask(client, "lease-0001")
    console.call("revoke", "lease-0001")
    before = length(client)
    for lease_id, said in (
        ("no-such-lease", "there is no lease or request no-such-lease"),
        ("short", "there is no lease 'short': ids have 8 to 64"),
        ("lease-0001", "lease-0001 is over already (revoked)"),
    ):
        ended = console.call("release", lease_id)
        assert (ended.code, ended.out) == (1, "")
        assert said in ended.err
    assert length(client) == before


@pytest.mark.parametrize("verb", ["release", "revoke"])
def test_who_waits_while_a_lost_log_recovers_may_hold_what_it_asked_for(
    console: Console, client: redis.Redis, start: Callable[..., SchedulerProcess], verb: str
) -> None:
    start()
    client.delete("gpuboss:events")
    eventually(lambda: client.hexists("gpuboss:scheduler", "recovering_until_ms"), "the recovery to be shown")
    ask(client, "lease-0001")
    ended = console.call(verb, "lease-0001")
    assert (ended.code, ended.out) == (1, "")
    assert "its grant may be among them" in ended.err
    assert client.hexists("gpuboss:queue", "lease-0001")


def test_release_finds_the_owner_in_the_log_where_the_projection_is_broken(
    console: Console, client: redis.Redis, start: Callable[..., SchedulerProcess]
) -> None:
    start()
    ask(client, "lease-0001")
    client.hset("gpuboss:leases", "lease-0001", "broken")
    assert console.call("release", "lease-0001").code == 0


def test_revoke(console: Console, client: redis.Redis, start: Callable[..., SchedulerProcess]) -> None:
    start()
    for lease_id in ("lease-0001", "lease-0002", "lease-0003"):
        ask(client, lease_id, 12_000)
    at_once = console.call("revoke", "lease-0001", "--reason", "it hangs", "--by", "root")
    assert at_once == (0, f"lease lease-0001 of {SERVICE} ended (revoked); its VRAM is free\n", "")
    assert last_of(client, "LeaseRevoked") == {
        "lease_id": "lease-0001",
        "reason": "it hangs",
        "by": "root",
    }
    gently = console.call("revoke", "lease-0002", "--grace", "60s", "--json")
    assert (gently.code, gently.document["type"]) == (0, "YieldRequested")
    assert last_of(client, "LeaseRevoked")["by"] == f"{getpass.getuser()}@{socket.gethostname()}"
    before = length(client)
    twice = console.call("revoke", "lease-0002", "--grace", "60s")
    assert (twice.code, twice.out) == (1, "")
    assert "is being asked back already" in twice.err
    assert length(client) == before
    assert console.call("revoke", "lease-0002").out.startswith(f"lease lease-0002 of {SERVICE} ended (revoked)")
    ask(client, "lease-0004", 20_000)
    waiting = console.run("revoke", "lease-0004")
    assert (waiting.code, waiting.err) == (0, "")
    assert waiting.out.startswith(f"request lease-0004 of {SERVICE} is over (cancelled): revoked by ")


def test_revoke_of_what_is_not_there(
    console: Console, client: redis.Redis, start: Callable[..., SchedulerProcess]
) -> None:
    start()
    unknown = console.call("revoke", "no-such-lease")
    assert (unknown.code, unknown.out) == (1, "")
    assert unknown.err.startswith("gpuboss: unknown_lease: lease no-such-lease: the log knows no such lease")
    before = length(client)
    assert console.call("revoke", "short").code == 1
    assert length(client) == before


def test_revoke_frees_what_is_being_reclaimed(
    console: Console, client: redis.Redis, start: Callable[..., SchedulerProcess]
) -> None:
    start(lock_delay="60s")
    ask(client, "lease-0001")
    first = console.call("revoke", "lease-0001")
    assert first.out == f"lease lease-0001 of {SERVICE} ended (revoked); its VRAM is being reclaimed\n"
    assert json.loads(client.hget("gpuboss:leases", "lease-0001") or "")["state"] == "reclaiming"
    second = console.call("revoke", "lease-0001")
    assert second == (0, "the VRAM of lease lease-0001, which had ended, is free\n", "")
    assert client.hlen("gpuboss:leases") == 0


@pytest.mark.parametrize("verb", ["release", "revoke"])
def test_nothing_is_appended_where_nobody_leads(console: Console, client: redis.Redis, verb: str) -> None:
    given = Scenario(24_576)
    given.request("holder", 1_000)
    store(client, given)
    client.hset("gpuboss:scheduler", "alive_until_ms", 0)
    ended = console.call(verb, "holder__")
    assert (ended.code, ended.out) == (69, "")
    assert "no scheduler leads" in ended.err
    assert length(client) == len(given.entries)


@pytest.mark.parametrize("verb", ["release", "revoke"])
def test_a_leader_that_does_not_answer(console: Console, client: redis.Redis, verb: str) -> None:
    given = Scenario(24_576)
    given.request("holder", 1_000)
    store(client, given)
    ended = console.call(verb, "holder__", "--wait", "300ms")
    assert (ended.code, ended.out) == (69, "")
    assert "no scheduler answered within 300 ms; the event is in the log as " in ended.err
    assert length(client) == len(given.entries) + 1


def test_status_and_replay_of_a_real_scheduler(
    console: Console, client: redis.Redis, start: Callable[..., SchedulerProcess]
) -> None:
    process = start()
    for number in range(1, 5):
        ask(client, f"lease-000{number}", 10_000)
    status = console.call("status", "--json")
    assert status.code == 0
    assert status.document["scheduler"]["epoch"] == 1
    assert status.document["devices"]["node-a/cuda:0"]["free_mib"] == 4_576
    assert sorted(status.document["leases"]) == ["lease-0001", "lease-0002"]
    assert sorted(status.document["queue"]) == ["lease-0003", "lease-0004"]
    why = console.call("why", "lease-0004", "--json").document
    assert (why["state"], why["place"], why["blocked_by"]) == ("waiting", 2, ["lease-0001", "lease-0002"])
    replay = console.call("replay", "--json")
    assert (replay.code, replay.document["divergences"]) == (0, [])
    assert replay.document["leases"] == status.document["leases"]
    assert replay.document["devices"] == status.document["devices"]
    assert process.terminate() == 0
    assert console.call("status").code == 69
    assert console.call("replay").code == 0
