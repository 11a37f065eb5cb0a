"""`gpuboss replay`: from Redis and from a file, whole or until an entry, honest and tampered with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from gpuboss.core import projections
from gpuboss.events import LeaseRequested
from tests.cli.console import Console, store
from tests.cli.stories import digest_of, exported, hostile, story
from tests.core.scenario import START_MS, Scenario, fold

LEASE = "holder__"


def lines_of(file: Path) -> list[str]:
    return file.read_text().splitlines(keepends=True)


def index_of(lines: list[str], kind: str) -> int:
    return next(index for index, line in enumerate(lines) if f'"type":"{kind}"' in line)


def test_an_honest_log(console: Console, client: redis.Redis) -> None:
    given = story()
    store(client, given)
    ended = console.run("replay", "--json")
    assert (ended.code, ended.err) == (0, "")
    state = fold(given.entries)
    rows = {
        "leases": projections.lease_rows(state),
        "queue": projections.queue_rows(state),
        "devices": projections.device_rows(state),
    }
    assert ended.document == {
        "events": len(given.entries),
        "decisions": 5,
        "divergences": [],
        "digest": digest_of(given),
        **msgspec.json.decode(msgspec.json.encode(rows)),
        "undecided": 0,
        "from": "beginning",
        "snapshots": 0,
        "taken_over": 0,
    }


def test_an_honest_log_in_words(console: Console, client: redis.Redis) -> None:
    given = story()
    store(client, given)
    ended = console.call("replay")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        "verified: every recorded decision was derived again, and nothing differs",
        f"replayed {len(given.entries)} events from the beginning through {given.entries[-1].id}, "
        "5 decisions among them",
        "then there are 2 leases, 0 waiting, 2 devices",
        f"digest {digest_of(given)}",
    ]


def test_a_file_is_replayed_as_the_log_is(console: Console, client: redis.Redis, tmp_path: Path) -> None:
    store(client, hostile())
    from_redis = console.call("replay", "--json")
    file = exported(console, tmp_path)
    client.flushall()
    assert console.call("replay", str(file), "--json") == from_redis
    assert console.call("replay", "-", "--json", stdin=file.read_bytes()) == from_redis
    assert console.run("replay", "-", "--json", stdin=file.read_bytes()) == from_redis
    assert from_redis.code == 0


def test_a_file_needs_no_redis(console: Console, client: redis.Redis, tmp_path: Path) -> None:
    store(client, story())
    file = exported(console, tmp_path)
    assert Console("redis://127.0.0.1:1").call("replay", str(file)).code == 0


@pytest.mark.parametrize("line", ["nonsense\n", '{"id":"1-1"}\n', "[]\n"])
def test_a_line_that_is_no_entry_exits_2_with_its_place(console: Console, tmp_path: Path, line: str) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text('{"id":"1-0","type":"A","data":{}}\n' + line)
    ended = console.call("replay", str(file))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"gpuboss: {file}:2: no entry of a log: ")
    assert ended.err.count("\n") == 1


def test_an_empty_log(console: Console, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.touch()
    for arguments in (["replay", "--json"], ["replay", str(file), "--json"]):
        ended = console.call(*arguments)
        assert (ended.code, ended.document["events"], ended.document["leases"]) == (0, 0, {})


def test_until_an_entry_inclusive(console: Console, client: redis.Redis, tmp_path: Path) -> None:
    given = story()
    store(client, given)
    file = exported(console, tmp_path)
    for length in range(1, len(given.entries) + 1):
        until = given.entries[length - 1].id
        ended = console.call("replay", "--until", until, "--json")
        assert (ended.code, ended.document["events"]) == (0, length)
        assert ended.document["digest"] == digest_of(given, length)
        assert console.call("replay", str(file), "--until", until, "--json") == ended


def test_until_a_ms_means_all_of_it(console: Console, client: redis.Redis) -> None:
    given = story()
    store(client, given)
    in_it = sum(entry.id.startswith(f"{START_MS}-") for entry in given.entries)
    assert 0 < in_it < len(given.entries)
    assert console.call("replay", "--until", str(START_MS), "--json").document["events"] == in_it


def test_what_is_not_decided_yet_is_counted_apart(console: Console, client: redis.Redis) -> None:
    given = story()
    store(client, given)
    late = LeaseRequested("late____", "imajin", 1)
    client.xadd("gpuboss:events", {"type": "LeaseRequested", "data": msgspec.json.encode(late)})
    ended = console.call("replay", "--json")
    assert (ended.code, ended.document["divergences"], ended.document["undecided"]) == (0, [], 1)
    assert "1 input at the end not decided yet, which is no divergence" in console.call("replay").out


# ---------------------------------------------------------------- tampered with


def changed(line: str, **fields: Any) -> str:
    entry = json.loads(line)
    entry["data"] |= fields
    return json.dumps(entry) + "\n"


def test_a_tampered_decision_in_a_file(console: Console, client: redis.Redis, tmp_path: Path) -> None:
    store(client, story())
    file = exported(console, tmp_path)
    lines = lines_of(file)
    at = index_of(lines, "LeaseGranted")
    lines[at] = changed(lines[at], vram_mib=1, device="cuda:1")
    file.write_text("".join(lines))
    ended = console.call("replay", str(file), "--json")
    assert ended.code == 1
    [found] = ended.document["divergences"]
    assert found["entry_id"] == json.loads(lines[at])["id"]
    assert (found["recorded"]["data"]["vram_mib"], found["derived"]["data"]["vram_mib"]) == (1, 20_000)
    words = console.run("replay", str(file))
    assert words.code == 1
    assert words.out.startswith("1 divergence: the log is not what its inputs lead to\n")
    assert words.out.endswith(
        f"\nentry {found['entry_id']}: another decision was derived\n"
        f"  LeaseGranted of {LEASE}\n"
        '    device: recorded "cuda:1", derived "cuda:0"\n'
        "    vram_mib: recorded 1, derived 20000\n"
    )


def with_snapshots() -> Scenario:
    """A request with the name of a model between two snapshots, and nothing that depends on that name."""
    given = story()
    for model in ("first", "second", "third"):
        given.request(model, 1, model=model)
        given.take_snapshot()
        given.settle()
    return given


def test_inputs_that_are_what_they_were(console: Console, client: redis.Redis) -> None:
    given = with_snapshots()
    store(client, given)
    ended = console.call("replay")
    assert ended.code == 0
    assert f"compared with what 3 snapshots had kept of them, through {given.entries[-2].id}" in ended.out
    assert console.call("replay", "--json").document["snapshots"] == 3


def test_a_changed_input_that_leads_to_nothing_else(console: Console, client: redis.Redis, tmp_path: Path) -> None:
    given = with_snapshots()
    store(client, given)
    file = exported(console, tmp_path)
    file.write_text(file.read_text().replace('"model":"second"', '"model":"secand"'))
    through = [json.loads(line)["data"]["through"] for line in lines_of(file) if '"SnapshotTaken"' in line]
    [found] = console.call("replay", str(file), "--json").document["divergences"]
    assert found["between"] == through[:2]
    words = console.run("replay", str(file))
    assert words.code == 1
    assert f"between {through[0]} and {through[1]} an input was changed, taken out or put in later" in words.out
    assert f"  SnapshotTaken of {through[1]}\n    inputs: recorded " in words.out
    before = console.call("replay", str(file), "--until", through[1])
    assert before.code == 0, "nothing behind the entry says what it was"
    changed_at = json.loads(lines_of(file)[index_of(lines_of(file), "SnapshotTaken")])["id"]
    assert console.call("replay", str(file), "--until", changed_at).code == 0
    assert console.call("replay", str(file), "--until", given.entries[-1].id).code == 1


@pytest.mark.parametrize("kind", ["LeaseRequested", "LeaseGranted", "ClockTicked", "EventRejected", "DeviceObserved"])
def test_a_line_that_is_gone_from_a_file(console: Console, client: redis.Redis, tmp_path: Path, kind: str) -> None:
    store(client, story())
    file = exported(console, tmp_path)
    lines = lines_of(file)
    del lines[index_of(lines, kind)]
    file.write_text("".join(lines))
    ended = console.call("replay", str(file), "--json")
    assert ended.code == 1
    assert ended.document["divergences"]
    assert console.call("replay", "-", stdin=file.read_bytes()).code == 1


@pytest.mark.parametrize("kind", ["LeaseGranted", "LeaseRequested", "EventRejected"])
def test_an_entry_that_is_gone_from_redis(console: Console, client: redis.Redis, kind: str) -> None:
    given = story()
    store(client, given)
    gone = next(entry for entry in given.entries if entry.fields[1] == kind.encode())
    client.xdel("gpuboss:events", gone.id)
    ended = console.call("replay", "--json")
    assert (ended.code, ended.document["from"]) == (1, "beginning")
    assert ended.document["divergences"]


def test_the_cursor_tells_that_the_last_decision_is_gone(console: Console, client: redis.Redis) -> None:
    given = story()
    store(client, given)
    client.xdel("gpuboss:events", given.entries[-1].id)
    ended = console.call("replay", "--json")
    assert ended.code == 1
    cause = json.loads(given.entries[-1].fields[3])["cause"]
    assert [found["entry_id"] for found in ended.document["divergences"]] == [cause]


def test_two_lines_that_changed_places(console: Console, client: redis.Redis, tmp_path: Path) -> None:
    store(client, story())
    file = exported(console, tmp_path)
    lines = lines_of(file)
    at = index_of(lines, "LeaseGranted")
    lines[at], lines[at + 1] = lines[at + 1], lines[at]
    file.write_text("".join(lines))
    ended = console.call("replay", str(file), "--json")
    assert ended.code == 1
    assert json.loads(lines[at + 1])["id"] in [found["entry_id"] for found in ended.document["divergences"]]


def test_many_divergences_are_shown_in_part_and_safely(console: Console, client: redis.Redis, tmp_path: Path) -> None:
    given = Scenario(24_576)
    for number in range(60):
        given.request(f"asking{number}", 30_000)
    store(client, given)
    file = exported(console, tmp_path)
    lines = [changed(line, detail="\x1b[2J\u202e") if "LeaseDenied" in line else line for line in lines_of(file)]
    file.write_text("".join(lines))
    ended = console.call("replay", str(file))
    assert ended.code == 1
    assert ended.out.count("\nentry ") == 20
    assert ended.out.endswith("\n... and 40 more, which --json shows\n")
    assert 'recorded "\\u001b[2J\\u202e"' in ended.out
    assert not [char for char in ended.out if char != "\n" and not char.isprintable()]
    assert len(console.call("replay", str(file), "--json").document["divergences"]) == 60
