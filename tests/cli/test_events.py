"""`gpuboss events`: the log, for programs, for people, and never raw for a terminal."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
import redis

from gpuboss.jsonl import read_jsonl
from tests.cli.console import Console, append, store
from tests.cli.stories import hostile, quiet
from tests.core.scenario import START_MS, Entry, Scenario


def lines_of(console: Console, *arguments: str) -> list[str]:
    ended = console.call("events", *arguments)
    assert (ended.code, ended.err) == (0, "")
    return ended.out.splitlines()


def ids_of(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines]


def test_an_entry_is_a_line_and_the_newest_is_last(console: Console, client: redis.Redis) -> None:
    given = quiet()
    store(client, given)
    lines = lines_of(console)
    assert ids_of(lines) == [entry.id for entry in given.entries]
    assert lines[3] == (
        f"{given.entries[3].id}  2023-11-14 22:13:20.000Z  LeaseRequested lease_id=holder__ service=imajin "
        "vram_mib=8192 priority=normal device=null node=null gpus=1 exclusive=false ttl_ms=null wait_ms=null "
        "reclaimable=false preemptible=true instance=null session=null pid=null model=null traceparent=null"
    )


def test_values_are_quoted_where_doubt_could_arise(console: Console, client: redis.Redis) -> None:
    given = Scenario()
    given.append(b"type", b"T", b"data", b'{"a":"x y","b":"","c":"k=v","d":[1,"x"],"e":"1","f":"\\"","g":"true"}')
    append(client, given)
    assert lines_of(console)[-1].endswith('T a="x y" b="" c="k=v" d=[1,"x"] e=1 f="\\"" g=true')


def test_as_json_it_is_the_export(console: Console, client: redis.Redis) -> None:
    given = hostile()
    store(client, given)
    ended = console.call("events", "--json")
    assert ended.out == console.call("export").out
    read = list(read_jsonl(ended.out.encode().splitlines(), "events"))
    assert [tuple(entry) for entry in read] == [tuple(entry) for entry in given.entries]


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--last", "30"]])
def test_hostile_entries_never_reach_a_terminal_raw(
    console: Console, client: redis.Redis, arguments: list[str]
) -> None:
    given = hostile()
    store(client, given)
    ended = console.call("events", *arguments)
    assert (ended.code, ended.err) == (0, "")
    assert len(ended.out.splitlines()) == min(len(given.entries), 30 if arguments == ["--last", "30"] else 1_000)
    assert not [char for char in ended.out if char != "\n" and (ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0)]
    assert not [char for char in ended.out if char != "\n" and not char.isprintable()]


def test_hostile_entries_are_shown_by_the_numbers_of_their_characters(console: Console, client: redis.Redis) -> None:
    given = hostile()
    store(client, given)
    lines = lines_of(console)
    shown = {line.split("Z  ", 1)[1] for line in lines}
    assert '\\x1b[31mRed a="\\u001b[2J"' in shown
    assert "LeaseRequested service=\\x9b31m lease_id=\\u202egnp" in shown
    assert "LeaseGranted \\x1b]0;title\\x07\\x9b\\xff\\x0d\\x0a\\x00" in shown
    assert "(no event) \\x1b \\x9b \\x85 \\x0e" in shown
    assert '"" ""' in shown
    assert max(map(len, lines)) < 20_000


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        (["--last", "3"], -3),
        (["-n", "1"], -1),
        (["--last", "100"], 0),
        (["--since", f"{START_MS}-4"], 4),
        (["--since", str(START_MS)], 0),
        (["--since", f"{START_MS}-4", "--last", "2"], -2),
        (["--since", f"{START_MS}-7", "--last", "100"], 7),
    ],
)
def test_a_part_of_it(console: Console, client: redis.Redis, arguments: list[str], first: int) -> None:
    given = quiet()
    store(client, given)
    assert ids_of(lines_of(console, *arguments)) == [entry.id for entry in given.entries][first:]


def test_none_of_it(console: Console, client: redis.Redis) -> None:
    assert lines_of(console) == []
    assert lines_of(console, "--last", "5") == []
    store(client, quiet())
    assert lines_of(console, "--last", "0") == []
    assert lines_of(console, "--since", str(START_MS + 1)) == []
    assert lines_of(console, "--since", str(START_MS + 1), "--last", "5") == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--type", "LeaseGranted"], {"LeaseGranted": 2}),
        (["--type", "LeaseGranted", "--type", "LeaseEnded"], {"LeaseGranted": 2, "LeaseEnded": 1}),
        (["--lease", "second__"], {"LeaseRequested": 1, "LeaseGranted": 1}),
        (["--lease", "second__", "--type", "LeaseGranted", "--last", "5"], {"LeaseGranted": 1}),
        (["--lease", "another_"], {}),
    ],
)
def test_only_some_of_it(console: Console, client: redis.Redis, arguments: list[str], expected: dict[str, int]) -> None:
    store(client, quiet())
    found: dict[str, int] = {}
    for line in lines_of(console, "--json", *arguments):
        entry: dict[str, Any] = json.loads(line)
        found[entry["type"]] = found.get(entry["type"], 0) + 1
    assert found == expected


def test_the_last_few_of_a_type_are_found_far_back(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    given.request("holder", 8_192)
    for _ in range(2_500):
        given.append(b"type", b"Filler", b"data", b"{}")
    append(client, given)
    [line] = lines_of(console, "--type", "LeaseGranted", "--last", "2")
    assert "lease_id=holder__" in line


def test_a_type_that_is_none_is_pointed_out(console: Console, client: redis.Redis) -> None:
    store(client, quiet())
    ended = console.call("events", "--type", "LeaseGrantd")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err == "gpuboss: no type of event is called 'LeaseGrantd'; did you mean LeaseGranted?\n"


def test_following_shows_the_last_ten_and_then_what_comes(console: Console, client: redis.Redis) -> None:
    given = Scenario(24_576)
    for number in range(20):
        given.append(b"type", b"Filler", b"data", b'{"number":%d}' % number)
    store(client, given)
    with console.start("events", "-f") as running:
        shown = [running.line() for _ in range(10)]
        assert [f"number={number}" in line for number, line in enumerate(shown, 10)] == [True] * 10
        client.xadd("gpuboss:events", {"type": "New", "data": '{"text":"\x1b"}'})
        assert running.line().rstrip().endswith('New {"text":"\\x1b"}')
        ended = running.end(signal.SIGINT)
    assert (ended.code, ended.out, ended.err) == (130, "", "")


def test_following_as_json_with_a_filter(console: Console, client: redis.Redis) -> None:
    store(client, quiet())
    with console.start("events", "-f", "--json", "--type", "Wanted", "--type", "LeaseEnded") as running:
        assert json.loads(running.line())["type"] == "LeaseEnded"
        client.xadd("gpuboss:events", {"type": "Unwanted", "data": "{}"})
        client.xadd("gpuboss:events", {"type": "Wanted", "data": '{"a":1}'})
        assert json.loads(running.line())["data"] == {"a": 1}


def test_following_begins_anew_where_the_log_was_lost(console: Console, client: redis.Redis) -> None:
    store(client, quiet())
    with console.start("events", "-f", "--last", "1") as running:
        assert running.line()
        client.delete("gpuboss:events")
        client.execute_command("XADD", "gpuboss:events", "5-1", "type", "New", "data", "{}")
        assert running.line().startswith("5-1 ")
        ended = running.end(signal.SIGINT)
    assert "the log ends before what was read already" in ended.err


def test_an_entry_beyond_every_calendar(console: Console, client: redis.Redis) -> None:
    given = Scenario()
    given.entries.append(Entry("18446744073709551615-18446744073709551615", [b"type", b"T", b"data", b"{}"]))
    append(client, given)
    assert lines_of(console, "--last", "1") == ["18446744073709551615-18446744073709551615  ?  T"]
