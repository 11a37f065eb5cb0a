"""`gpuboss export`: the log as a file that replays exactly as the log does."""

from __future__ import annotations

import json

import pytest
import redis

from gpuboss.jsonl import read_jsonl
from tests.cli.console import Console, append, store
from tests.cli.stories import hostile, quiet
from tests.core.scenario import START_MS, Scenario


def test_it_comes_back_byte_for_byte(console: Console, client: redis.Redis) -> None:
    given = hostile()
    store(client, given)
    ended = console.run("export")
    assert (ended.code, ended.err) == (0, "")
    entries = read_jsonl(ended.out.encode().splitlines(keepends=True), "export")
    assert [tuple(entry) for entry in entries] == [tuple(entry) for entry in given.entries]


def test_a_line_holds_the_data_as_the_log_holds_it(console: Console, client: redis.Redis) -> None:
    given = Scenario()
    given.append(b"type", b"LeaseReleased", b"data", b'{"service": "x",  "lease_id":"\xc3\xa4", "n":1.50}')
    append(client, given)
    assert console.call("export").out.splitlines()[-1] == (
        f'{{"id":"{given.entries[-1].id}","type":"LeaseReleased","data":{{"service": "x",  "lease_id":"ä", "n":1.50}}}}'
    )


@pytest.mark.parametrize("arguments", [["--json"], ["--format", "jsonl"]])
def test_there_is_one_format(console: Console, client: redis.Redis, arguments: list[str]) -> None:
    store(client, quiet())
    assert console.call("export", *arguments).out == console.call("export").out != ""


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["--from", f"{START_MS}-3"], slice(3, None)),
        (["--to", f"{START_MS}-3"], slice(4)),
        (["--from", f"{START_MS}-2", "--to", f"{START_MS}-4"], slice(2, 5)),
        (["--from", f"{START_MS}-2", "--to", f"{START_MS}-2"], slice(2, 3)),
        (["--from", str(START_MS), "--to", str(START_MS)], slice(None)),
        (["--from", str(START_MS + 1)], slice(0)),
        (["--to", str(START_MS - 1)], slice(0)),
        (["--from", "0"], slice(None)),
        (["--to", "18446744073709551615-18446744073709551615"], slice(None)),
    ],
)
def test_a_part_of_it_both_ends_included(
    console: Console, client: redis.Redis, arguments: list[str], kept: slice
) -> None:
    given = quiet()
    store(client, given)
    ids = [json.loads(line)["id"] for line in console.call("export", *arguments).out.splitlines()]
    assert ids == [entry.id for entry in given.entries][kept]


def test_an_empty_log_is_an_empty_file(console: Console) -> None:
    assert console.call("export") == (0, "", "")


def test_it_reads_on_over_many_pages(console: Console, client: redis.Redis) -> None:
    given = Scenario()
    for number in range(2_345):
        given.append(b"type", b"Filler", b"data", b'{"number":%d}' % number)
    append(client, given)
    assert len(console.call("export").out.splitlines()) == len(given.entries)
