"""`gpuboss why`: what a request waits for, or what became of it, exactly and from the log alone."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
import redis

from gpuboss.core import snapshot
from gpuboss.core.history import REMEMBERED_MS
from gpuboss.events import LeaseRequested
from gpuboss.fields import ServiceRules
from tests.cli.console import Console, append, keep_snapshot, store
from tests.core.scenario import START_MS, Scenario, fold, idled, policy, session_lost


def why(console: Console, lease_id: str) -> dict[str, Any]:
    ended = console.call("why", lease_id, "--json")
    assert (ended.code, ended.err) == (0, "")
    found: dict[str, Any] = ended.document
    assert (found["lease_id"], found["decided"]) == (lease_id, True)
    return found


def told(console: Console, lease_id: str) -> str:
    ended = console.call("why", lease_id)
    assert (ended.code, ended.err) == (0, "")
    return ended.out


def test_who_waits_for_room(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.request("holder", 20_000, service="imajin-prompt", ttl_ms=60_000)
    given.request("other", 4_000)
    given.request("asking", 22_000, wait_ms=30_000)
    store(client, given)
    found = why(console, "asking__")
    assert {name: found[name] for name in ("state", "place", "reason", "blocked_by", "detail")} == {
        "state": "waiting",
        "place": 1,
        "reason": "no_room",
        "blocked_by": ["holder__", "other___"],
        "detail": "needs 22000 MiB; alpha/cuda:0 has 576 MiB free",
    }
    assert [(each["lease_id"], each["service"], each["vram_mib"], each["state"]) for each in found["blockers"]] == [
        ("holder__", "imajin-prompt", 20_000, "held"),
        ("other___", "imajin", 4_000, "held"),
    ]
    assert found["wait_until_ms"] == START_MS + 30_000
    assert found["advice"] == [
        "the oldest lease in the way can be asked back: gpuboss revoke holder__ --grace 30s",
        "a request of 576 MiB or less has room now",
    ]


def test_who_waits_for_room_in_words(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.request("holder", 20_000, service="imajin-prompt", ttl_ms=60_000)
    given.request("asking", 22_000, wait_ms=30_000)
    store(client, given)
    lines = told(console, "asking__").splitlines()
    assert lines[0].startswith("asking__ waits: imajin asked for 21.5 GiB ")
    assert lines[0].endswith(" ago, with normal priority")
    assert lines[1:3] == ["place 1 of 1 waiting request", "no_room: needs 22000 MiB; alpha/cuda:0 has 4576 MiB free"]
    assert lines[3].startswith("  blocked by holder__ (imajin-prompt, 19.5 GiB, normal), held on alpha/cuda:0 for ")
    assert lines[4].startswith("it should have started ")  # the log's time is long past
    assert lines[5].startswith("it gives up ")
    assert lines[6].startswith("what would help: ")


def test_when_it_starts_is_promised_to_the_first_and_a_guess_for_the_others(
    console: Console, client: redis.Redis
) -> None:
    given = Scenario(24_576)
    given.now_ms = int(time.time() * 1000)
    given.request("holder", 20_000, ttl_ms=3_600_000)
    given.request("first", 24_000)
    given.request("second", 24_576, device="cuda:0")
    store(client, given)
    found = [why(console, name) for name in ("first___", "second__")]
    assert [(each["starts_by_ms"] - given.now_ms, each["is_promise"]) for each in found] == [
        (3_600_000, True),
        (3_600_000, False),
    ]
    assert re.search(r"^it starts in (59|60) min.* at the latest$", told(console, "first___"), re.M)
    assert re.search(r"^it might start in (59|60) min.*: a guess", told(console, "second__"), re.M)


def test_nobody_can_tell_when_leases_end_that_have_no_end(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.request("holder", 20_000)
    given.request("asking", 24_000)
    store(client, given)
    assert why(console, "asking__")["starts_by_ms"] is None
    assert "start" not in told(console, "asking__")


def test_who_waits_for_a_pinned_device(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576, 24_576)
    given.request("holder", 20_000, device="cuda:0")
    given.request("asking", 20_000, device="cuda:0")
    store(client, given)
    found = why(console, "asking__")
    assert (found["reason"], found["blocked_by"], found["device"]) == ("pinned_device_full", ["holder__"], "cuda:0")
    assert "without the wish for cuda:0 it would fit on alpha/cuda:1 now" in found["advice"]


def test_who_waits_for_a_device_alone(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.request("holder", 1_000)
    given.request("asking", 1_000, exclusive=True)
    store(client, given)
    found = why(console, "asking__")
    assert (found["reason"], found["blocked_by"]) == ("exclusive_busy", ["holder__"])
    assert "if it shared its device (exclusive=false), it would fit on alpha/cuda:0 now" in found["advice"]


def test_who_waits_for_several_devices(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576, 24_576)
    given.request("holder", 20_000)
    given.request("asking", 20_000, gpus=2)
    store(client, given)
    found = why(console, "asking__")
    assert (found["reason"], found["blocked_by"], found["gpus"]) == ("gang_incomplete", ["holder__"], 2)
    assert "asked for 19.5 GiB on each of 2 devices" in told(console, "asking__")


def test_who_waits_for_its_own_service_to_hold_less(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.happens(policy(services={"imajin": ServiceRules(limit_mib=10_240, max_priority="low")}))
    given.request("holder", 8_192)
    given.request("asking", 8_192, priority="high")
    store(client, given)
    found = why(console, "asking__")
    assert (found["reason"], found["blocked_by"], found["priority"]) == ("quota", ["holder__"], "low")
    assert found["advice"] == [
        "the oldest lease in the way can be asked back: gpuboss revoke holder__ --grace 30s",
        "a request of 2 GiB or less is within the limit of imajin",
        "imajin could hold more with a higher limit_mib in scheduler.policy",
    ]
    assert "imajin may hold 10240 MiB and holds 8192 MiB; this needs 8192 MiB" in told(console, "asking__")


def test_who_waits_for_what_was_asked_back(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.request("holder", 20_000, reclaimable=True)
    given.says(idled("holder"))
    given.request("asking", 20_000)
    store(client, given)
    (blocker,) = why(console, "asking__")["blockers"]
    assert (blocker["state"], blocker["yield_by_ms"]) == ("yielding", START_MS + 15_000)
    assert "yielding on alpha/cuda:0 for " in told(console, "asking__")
    assert ", was asked back, and will be taken " in told(console, "asking__")


def test_who_waits_for_what_its_own_service_may_hold_beside_those_who_come_first(
    console: Console, client: redis.Redis
) -> None:
    given = Scenario(24_576, 24_576)
    given.happens(policy(services={"imajin": ServiceRules(limit_mib=12_288)}))
    given.request("holder", 20_000, service="other", device="cuda:0", ttl_ms=60_000)
    given.request("first", 10_240, device="cuda:0")
    given.request("asking", 4_096, device="cuda:1")
    store(client, given)
    found = why(console, "asking__")
    assert (found["reason"], found["blocked_by"]) == ("reserved_for", ["first___"])
    assert "a request of 2 GiB or less is within the limit of imajin" in found["advice"]


def test_who_waits_for_those_who_come_first(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.request("holder", 20_000, ttl_ms=60_000)
    given.request("first", 24_000)
    given.request("asking", 1_000)
    store(client, given)
    found = why(console, "asking__")
    assert (found["reason"], found["blocked_by"], found["place"]) == ("reserved_for", ["first___"], 2)
    assert found["blockers"][0]["state"] == "waiting"
    assert "with a TTL that ends before those named above start it could use the room until then" in found["advice"]
    assert "blocked by first___ (imajin, 23.4 GiB, normal), which has waited for " in told(console, "asking__")


def test_who_waits_for_a_device_at_all(console: Console, client: redis.Redis) -> None:
    given = Scenario()
    given.request("asking", 1_000)
    store(client, given)
    found = why(console, "asking__")
    assert (found["reason"], found["detail"]) == ("no_room", "no device is known yet")
    assert found["advice"] == ["start a scheduler that has devices: none is known yet"]


def test_a_place_far_back_is_exact(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.request("holder", 24_576)
    for number in range(1_500):
        given.write(LeaseRequested(f"asking{number:04d}", "imajin", 1_000))
    given.settle()
    store(client, given)
    assert why(console, "asking1400")["place"] == 1_401


def test_a_lease_that_is_held(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576, 24_576)
    given.request("holder", 20_000, ttl_ms=60_000, gpus=2)
    store(client, given)
    found = why(console, "holder__")
    assert (found["state"], found["devices"], found["expires_at_ms"], found["waited_ms"], found["fence"]) == (
        "held",
        ["cuda:0", "cuda:1"],
        START_MS + 60_000,
        0,
        1,
    )
    assert "holder__ is held: imajin has 19.5 GiB on alpha/cuda:0+cuda:1 for " in told(console, "holder__")


def test_a_lease_without_an_end(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.request("holder", 20_000)
    store(client, given)
    assert why(console, "holder__")["expires_at_ms"] is None
    assert "it has no TTL" in told(console, "holder__")


def test_the_other_states_of_a_lease(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576, lock_delay_ms=60_000)
    for name in ("warm", "asked", "lost"):
        given.request(name, 1_000, session=name, reclaimable=True)
    given.says(idled("warm"))
    given.revoke("asked", grace_ms=10_000)
    given.happens(session_lost("lost"))
    store(client, given)
    assert why(console, "warm____")["state"] == "idle"
    assert "it may be asked back as soon as" in told(console, "warm____")
    asked = why(console, "asked___")
    assert (asked["state"], asked["yield_by_ms"]) == ("yielding", START_MS + 10_000)
    assert "it was asked back, and will be taken" in told(console, "asked___")
    lost = why(console, "lost____")
    assert (lost["state"], lost["reason"], lost["freed"]) == ("reclaiming", "session_lost", False)
    assert "(session_lost); its VRAM is not seen free yet" in told(console, "lost____")


def test_how_it_ended(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.request("holder", 20_000)
    given.now_ms += 5_000
    given.release("holder")
    store(client, given)
    found = why(console, "holder__")
    assert (found["state"], found["reason"], found["freed"], found["ended_at_ms"], found["granted_at_ms"]) == (
        "ended",
        "released",
        True,
        START_MS + 5_000,
        START_MS,
    )
    assert "ended " in told(console, "holder__")
    assert ": released\nit belonged to imajin, having held 19.5 GiB on alpha/cuda:0" in told(console, "holder__")


def test_why_it_was_denied(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.request("asking", 30_000)
    store(client, given)
    found = why(console, "asking__")
    assert (found["state"], found["reason"], found["denied_at_ms"]) == ("denied", "impossible", START_MS)
    assert "asked for 30000 MiB on one device" in found["detail"]
    assert "impossible, asked for 30000 MiB on one device" in told(console, "asking__")


def test_what_is_forgotten_is_looked_up_in_the_log(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.request("holder", 20_000)
    given.release("holder")
    given.request("asking", 30_000)
    given.tick(REMEMBERED_MS + 1)
    given.writes(
        b"LeaseEnded", b'{"lease_id":"holder__","service":"thief","reason":"revoked","freed":true,"cause":"1-1"}'
    )
    store(client, given)
    assert "holder__" not in fold(given.entries).history.by_name
    found = why(console, "holder__")
    assert (found["state"], found["reason"], found["service"]) == ("ended", "released", "imajin")
    assert (found["granted_at_ms"], found["devices"]) == (START_MS, ["cuda:0"])
    assert why(console, "asking__")["reason"] == "impossible"


@pytest.mark.parametrize("lease_id", ["unheard-of", "short", "not/an/id", "", "x" * 65, "a\nb"])
def test_an_id_that_nobody_knows_exits_1(console: Console, client: redis.Redis, lease_id: str) -> None:
    store(client, Scenario(24_576))
    ended = console.call("why", "--json", "--", lease_id)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.count("\n") == 1


def test_what_is_not_decided_yet_is_what_the_log_leads_to(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.request("holder", 24_000)
    given.write(LeaseRequested("asking__", "imajin", 1_000))
    store(client, given)
    client.delete("gpuboss:scheduler")
    ended = console.call("why", "asking__", "--json")
    assert (ended.code, ended.document["state"], ended.document["decided"]) == (0, "waiting", False)
    assert "nobody leads" in ended.err
    assert "no scheduler has decided this yet" in console.call("why", "asking__").out
    assert console.call("why", "holder__", "--json").document["decided"] is True


@pytest.mark.parametrize("with_snapshot", [False, True])
def test_a_dead_leaders_cursor_tells_what_is_decided(
    console: Console, client: redis.Redis, with_snapshot: bool
) -> None:
    given = Scenario(24_576, 24_576)
    given.request("holder", 24_000, device="cuda:0")
    given.request("asking", 1_000, device="cuda:0")
    decided = given.entries[-1].id
    if with_snapshot:
        keep_snapshot(client, snapshot.load(snapshot.dump(given.state)))
    given.write(LeaseRequested("later___", "imajin", 500, device="cuda:1"))
    store(client, given)
    client.hset("gpuboss:scheduler", mapping={"cursor": decided, "alive_until_ms": 0})
    found = {name: console.call("why", name, "--json").document for name in ("holder__", "asking__", "later___")}
    assert {name: each["decided"] for name, each in found.items()} == {
        "holder__": True,
        "asking__": True,
        "later___": False,
    }
    assert [each["state"] for each in found.values()] == ["held", "waiting", "held"]
    assert "no scheduler has decided this yet" not in console.call("why", "asking__").out
    assert "no scheduler has decided this yet" in console.call("why", "later___").out


def test_a_trimmed_log_is_read_from_its_snapshot(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.request("holder", 20_000)
    state = snapshot.load(snapshot.dump(given.state))
    given.request("asking", 20_000)
    store(client, given)
    keep_snapshot(client, state)
    client.xtrim("gpuboss:events", minid=state.last_id, approximate=False)
    assert why(console, "asking__")["blocked_by"] == ["holder__"]


def test_a_trimmed_log_without_a_snapshot_cannot_tell(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.request("holder", 20_000)
    append(client, given)
    client.xtrim("gpuboss:events", maxlen=2, approximate=False)
    ended = console.call("why", "holder__")
    assert (ended.code, ended.out) == (1, "")
    assert "the beginning of the log was trimmed" in ended.err


def test_a_snapshot_that_was_changed_is_not_believed(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.request("holder", 20_000)
    store(client, given)
    keep_snapshot(client, given.state)
    client.hset("gpuboss:snapshot", "state", snapshot.dump(given.state).replace(b"20000", b"20001"))
    assert why(console, "holder__")["vram_mib"] == 20_000  # the log is whole, and says so
    client.xtrim("gpuboss:events", maxlen=1, approximate=False)
    ended = console.call("why", "holder__")
    assert (ended.code, ended.out) == (1, "")
    assert "the snapshot was changed after it was written" in ended.err
