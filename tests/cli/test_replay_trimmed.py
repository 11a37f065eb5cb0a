"""`gpuboss replay` of a log without its beginning: from its snapshot, or one error that says what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import redis

from gpuboss.core import snapshot
from tests.cli.console import Console, append, keep_snapshot, store
from tests.cli.stories import digest_of, exported, story
from tests.core.scenario import START_MS, Scenario


def trimmed(client: redis.Redis, *, keep: bool = True) -> tuple[Scenario, str]:
    """A log without its beginning, with a snapshot of a later entry if wished; and that entry's id."""
    given = story()
    state = snapshot.load(snapshot.dump(given.state))
    given.request("later", 1_000)
    given.release("later")
    store(client, given)
    if keep:
        keep_snapshot(client, state)
    client.xtrim("gpuboss:events", minid=state.last_id, approximate=False)
    return given, state.last_id


def test_a_trimmed_log_is_replayed_from_its_snapshot_and_says_so(console: Console, client: redis.Redis) -> None:
    given, snapshot_id = trimmed(client)
    ended = console.call("replay", "--json")
    assert (ended.code, ended.document["digest"]) == (0, digest_of(given))
    assert ended.document["from"] == f"snapshot {snapshot_id}"
    assert (ended.document["events"], ended.document["decisions"]) == (4, 2)
    assert ended.err == f"gpuboss: the beginning of the log is gone: replaying from its snapshot {snapshot_id}\n"
    assert f"from the snapshot {snapshot_id} through {given.entries[-1].id}" in console.call("replay").out


def test_a_trimmed_log_without_a_snapshot(console: Console, client: redis.Redis) -> None:
    trimmed(client, keep=False)
    ended = console.call("replay", "--json")
    assert (ended.code, ended.out) == (1, "")
    assert "the beginning of the log was trimmed" in ended.err
    assert "gpuboss replay FILE" in ended.err
    assert "--from-start" not in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("digest", "0" * 64, "the snapshot was changed after it was written"),
        ("state", "{}", "the snapshot was changed after it was written"),
        ("core", "", "there is no snapshot that these rules can read"),
        ("core", "99", "core 99 decides this log"),
    ],
)
def test_a_trimmed_log_with_a_snapshot_that_cannot_be_used(
    console: Console, client: redis.Redis, field: str, value: str, said: str
) -> None:
    trimmed(client)
    client.hset("gpuboss:snapshot", field, value)
    ended = console.call("replay")
    assert (ended.code, ended.out) == (1, "")
    assert said in ended.err


def test_a_log_without_its_beginning_is_one_error_and_no_flood(
    console: Console, client: redis.Redis, tmp_path: Path
) -> None:
    given, snapshot_id = trimmed(client)
    number = (
        json.loads(given.entries[-1].fields[3])["seq"] - 2
    )  # what the snapshot is of was kept, and two decisions behind it
    left = console.call("export", "--from", snapshot_id)
    file = tmp_path / "left.jsonl"
    file.write_text(left.out)
    for ended in (
        console.call("replay", "--from-start", "--json"),
        console.call("replay", str(file)),
        console.call("replay", "-", "--json", stdin=left.out.encode()),
    ):
        assert (ended.code, ended.out) == (1, "")
        assert "begins in the middle of a log" in ended.err
        assert f"is {number}," in ended.err
        assert "--from-start" not in ended.err
        assert ended.err.count("\n") == 1
    assert console.call("replay").code == 0


def test_a_beginning_that_somebody_made_up_is_none(console: Console, client: redis.Redis, tmp_path: Path) -> None:
    given = story()
    from_id = given.entries[-1].id
    given.writes(
        b"SchedulerElected",
        b'{"scheduler":"thief","version":"1","core":1,"incarnation":"x","policy":"x","epoch":1,"seq":1}',
    )
    store(client, given)
    file = tmp_path / "left.jsonl"
    file.write_text(console.call("export", "--from", from_id).out)
    ended = console.call("replay", str(file))
    assert (ended.code, ended.out) == (1, "")
    assert "begins in the middle of a log" in ended.err


def test_a_number_that_somebody_made_up_before_the_first_scheduler_is_not_its_beginning(
    console: Console, client: redis.Redis, tmp_path: Path
) -> None:
    given = story()
    forged = next(entry for entry in given.entries if b'"seq":99' in entry.fields[3])
    given.entries.insert(0, forged._replace(id=f"{START_MS - 1}-0"))
    append(client, given)
    ended = console.call("replay", "--from-start", "--json")
    assert "begins in the middle" not in ended.err
    assert ended.document["from"] == "beginning"
    assert console.call("replay", str(exported(console, tmp_path)), "--json").document["from"] == "beginning"


def test_until_before_the_snapshot_cannot_be_had(console: Console, client: redis.Redis) -> None:
    given, snapshot_id = trimmed(client)
    ended = console.call("replay", "--until", given.entries[3].id)
    assert (ended.code, ended.out) == (1, "")
    assert f"lies before the snapshot {snapshot_id}" in ended.err


def test_a_log_that_was_lost_behind_its_snapshot(console: Console, client: redis.Redis) -> None:
    given, snapshot_id = trimmed(client)
    client.delete("gpuboss:events")
    lost = Scenario()
    lost.entries = given.entries[3:5]
    append(client, lost)
    client.xtrim("gpuboss:events", maxlen=1, approximate=False)
    ended = console.call("replay")
    assert (ended.code, ended.out) == (1, "")
    assert f"the snapshot is of entry {snapshot_id}, but the log ends at {given.entries[4].id}" in ended.err


def test_a_whole_log_is_replayed_from_its_beginning_whatever_the_snapshot_is(
    console: Console, client: redis.Redis
) -> None:
    given = story()
    store(client, given)
    client.hset("gpuboss:snapshot", mapping={"core": "1", "digest": "wrong", "state": "{}"})
    ended = console.call("replay", "--json")
    assert (ended.code, ended.document["from"], ended.err) == (0, "beginning", "")
    assert ended.document["digest"] == digest_of(given)
