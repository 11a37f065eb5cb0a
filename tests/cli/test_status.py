"""`gpuboss status`, `leases`, `queue` and `devices`: the projections, for programs as they are, for people in words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import redis

from gpuboss.core import projections
from tests.cli.console import Console, now_ms, store
from tests.core.scenario import Scenario, fold, observed

PARTS = ("leases", "queue", "devices")


def crowded() -> Scenario:
    """Two cards, of which one is full, one shared with nobody; and two requests that wait."""
    given = Scenario(24_576, 8_192)
    given.request("holder", 20_000, ttl_ms=90_000, service="imajin-diffusion")
    given.request("alone", 300, device="cuda:1", exclusive=True)
    given.request("first", 20_000, priority="high")
    given.request("second", 20_000)
    return given


def rows_of(given: Scenario) -> dict[str, Any]:
    state = fold(given.entries)
    rows = {
        "leases": projections.lease_rows(state),
        "queue": projections.queue_rows(state),
        "devices": projections.device_rows(state),
    }
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(rows))
    return plain


def test_status_is_all_projections_as_they_are(console: Console, client: redis.Redis) -> None:
    given = crowded()
    store(client, given)
    ended = console.call("status", "--json")
    assert (ended.code, ended.err) == (0, "")
    scheduler = ended.document.pop("scheduler")
    assert {name: each for name, each in ended.document.items() if name != "scheduler"} == rows_of(given)
    assert scheduler == {
        "leader": "gpu-box:1",
        "epoch": 1,
        "seq": given.seq,
        "cursor": given.entries[-1].id,
        "version": "0.1.0",
        "durability": "standard",
        "session_ttl_ms": 15_000,
        "incarnation": "log-1",
        "alive_until_ms": int(client.hget("gpuboss:scheduler", "alive_until_ms") or 0),
    }


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_that_projection_alone(console: Console, client: redis.Redis, part: str) -> None:
    given = crowded()
    store(client, given)
    ended = console.call(part, "--json")
    assert (ended.code, ended.document, ended.err) == (0, rows_of(given)[part], "")


def test_the_queue_is_in_its_order_and_the_devices_in_theirs(console: Console, client: redis.Redis) -> None:
    given = crowded()
    for number in (10, 2):
        given.happens(observed(number, 1_024))
    store(client, given)
    assert list(console.call("queue", "--json").document) == ["first___", "second__"]
    assert list(console.call("devices", "--json").document) == [f"alpha/cuda:{number}" for number in (0, 1, 2, 10)]
    client.hset("gpuboss:queue", "no-place-yet", '{"lease_id":"no-place-yet","requested_at_ms":1}')
    assert list(console.call("queue", "--json").document)[-1] == "no-place-yet"


def test_status_for_people(console: Console, client: redis.Redis) -> None:
    store(client, crowded())
    ended = console.call("status")
    assert (ended.code, ended.err) == (0, "")
    leader, summary, *tables = ended.out.splitlines()
    assert leader.startswith("gpu-box:1 leads (epoch 1, decided through ")
    assert "session TTL 15 s, durability standard, version 0.1.0" in leader
    assert summary == "2 devices, 2 leases, 2 waiting"
    words = [line.split() for line in tables]
    assert ["alpha/cuda:0", "simulated", "24", "GiB", "19.5", "GiB"] in [line[:6] for line in words]
    assert ["holder__", "imajin-diffusion", "alpha/cuda:0", "19.5", "GiB", "normal", "held"] in [w[:7] for w in words]
    assert ["alone___", "imajin", "alpha/cuda:1", "300", "MiB", "normal", "held"] in [line[:7] for line in words]
    assert ["1", "first___", "imajin", "19.5", "GiB", "high"] in [line[:6] for line in words]


def test_times_count_from_the_log_s_time(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.now_ms = now_ms(client) + 3_600_000  # the server's clock went back an hour since
    given.request("now", 1, ttl_ms=60_000)
    given.now_ms += 3_000
    given.request("later", 1)
    store(client, given)
    line = next(line for line in console.call("leases").out.splitlines() if line.startswith("now_____"))
    assert "3 s ago" in line
    assert "in 57 s" in line


def test_columns_are_aligned(console: Console, client: redis.Redis) -> None:
    store(client, crowded())
    heading, *rows = console.call("leases").out.splitlines()
    for name in ("SERVICE", "DEVICES", "PRIORITY", "STATE"):
        at = heading.index(name)
        assert all(row[at - 1] == " " and row[at] != " " for row in rows)


def test_an_empty_namespace(console: Console) -> None:
    assert console.call("status").code == 69
    assert console.call("status").out.startswith("no scheduler ever led here")
    assert console.call("status", "--json") == (
        69,
        '{\n  "scheduler": {},\n  "devices": {},\n  "leases": {},\n  "queue": {}\n}\n',
        "",
    )
    for part, said in (("leases", "no leases\n"), ("queue", "nobody waits\n"), ("devices", "no devices\n")):
        assert console.call(part) == (0, said, "")
        assert console.call(part, "--json") == (0, "{}\n", "")


@pytest.mark.parametrize(
    ("alive_for_ms", "code", "said"),
    [
        (60_000, 0, "leads ("),
        (-3_000, 0, "leads ("),
        (-7_000, 69, "nobody leads: the last sign of life is from 7 s ago (gpu-box:1, epoch 1"),
    ],
)
def test_a_leader_that_was_not_heard_of_for_five_seconds_leads_no_more(
    console: Console, client: redis.Redis, alive_for_ms: int, code: int, said: str
) -> None:
    store(client, crowded())
    client.hset("gpuboss:scheduler", "alive_until_ms", now_ms(client) + alive_for_ms)
    ended = console.call("status")
    assert ended.code == code
    assert said in ended.out.splitlines()[0]
    assert "holder__" in ended.out
    assert console.call("status", "--json").code == code
    assert console.call("leases").code == 0


@pytest.mark.parametrize("value", ["0", "", "soon", "9" * 30])
def test_a_leader_that_resigned_leads_no_more(console: Console, client: redis.Redis, value: str) -> None:
    store(client, crowded())
    client.hset("gpuboss:scheduler", mapping={"alive_until_ms": value, "leader": ""})
    ended = console.call("status")
    assert ended.code == 69
    assert ended.out.startswith("nobody leads: the last scheduler resigned (epoch 1, decided through ")


def test_broken_and_hostile_rows_stop_nothing(console: Console, client: redis.Redis) -> None:
    store(client, crowded())
    hostile = '{"lease_id":"\x1b]0;x","service":"\u202e\x9b31m","vram_mib":"many","devices":[1,[]],"blocked_by":{}}'
    for part in PARTS:
        client.hset(f"gpuboss:{part}", "broken\x1b[2J", b"\xff{")
        client.hset(f"gpuboss:{part}", "hostile\u2028", hostile.encode())
        client.hset(f"gpuboss:{part}", "number", "5")
        client.hset(f"gpuboss:{part}", "nothing", "null")
        client.hset(f"gpuboss:{part}", "deep", "[" * 5_000)
    client.hset("gpuboss:scheduler", mapping={"leader": "\x1b[31m", "epoch": "\x9b", "\x1b": "x"})
    for arguments in (["status"], ["status", "--json"], *([part] for part in PARTS), ["queue", "--json"]):
        ended = console.call(*arguments)
        assert (ended.code, ended.err) == (0, "")
        assert not [char for char in ended.out if char != "\n" and not char.isprintable()]
    assert console.call("leases", "--json").document["broken\x1b[2J"] == "\\xff{"
