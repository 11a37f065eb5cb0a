"""`gpuboss replay --what-if`: whom would it have helped, from Redis and from a file, whole and trimmed."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from tests.cli.console import Console, append, keep_snapshot, store
from tests.core.scenario import Scenario, fold, padded

TWO = ("--what-if", "--devices", "cuda:0=24576,cuda:1=24576")


def crowd() -> Scenario:
    """Three who want the same card at once, each for a minute, and one whom no card could hold."""
    given = Scenario(24_576)
    for name, service in (("first", "imajin"), ("second", "ollama"), ("third", "ollama")):
        given.request(name, 20_480, service=service)
    given.request("huge", 30_000, service="whisper")
    for name, service in (("first", "imajin"), ("second", "ollama"), ("third", "ollama")):
        given.now_ms += 60_000
        given.release(name, service=service)
    return given


def exported(console: Console, tmp_path: Path) -> Path:
    file = tmp_path / "log.jsonl"
    file.write_text(console.call("export").out)
    return file


def test_the_answer_comes_first(console: Console, client: redis.Redis) -> None:
    store(client, crowd())
    ended = console.call("replay", *TWO)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[:9] == [
        "mean wait of those granted 1 min -> 20 s, longest 2 min -> 1 min",
        "of 4 requests, 2 are granted sooner and 0 later; 0 are granted that were not, 0 no more",
        "helped most: ollama (waits 2 min less in all)",
        "",
        "                           RECORDED       WHAT IF",
        "granted                           3             3",
        "denied                 1 impossible  1 impossible",
        "waiting at the end                0             0",
        "utilisation                   83.3%         62.5%",
    ]
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert "ollama 2 min 2 1 min 30 s 30 s 2 min 1 min 2 min 1 min" in lines
    assert "all 3 1 min 20 s 2 min 1 min 2 min 1 min" in lines
    assert "20 GiB 3 1 min 20 s 2 min 1 min 2 min 1 min" in lines
    assert "second__ ollama 20 GiB normal 1 min 0 ms 1 min" in lines
    assert not any(line.startswith("first___") for line in lines)


def test_as_json(console: Console, client: redis.Redis) -> None:
    store(client, crowd())
    document = console.call("replay", *TWO, "--json").document
    counts = ("saved_ms", "sooner", "later", "same", "newly_granted", "no_longer_granted", "assumed_holds", "left_out")
    assert {name: document[name] for name in counts} == dict.fromkeys(counts, 0) | {
        "saved_ms": 120_000,
        "sooner": 2,
        "same": 1,
    }
    assert document["recorded"]["wait_ms"]["all"]["mean"] == 60_000
    assert document["what_if"]["wait_ms"]["per_size"]["20480"]["longest"] == 60_000
    assert document["what_if"].keys() == document["recorded"].keys()
    assert [(each["service"], each["saved_ms"]) for each in document["services"]] == [
        ("ollama", 120_000),
        ("imajin", 0),
        ("whisper", 0),
    ]
    assert document["helped_most"][0] == {
        "lease_id": padded("second"),
        "service": "ollama",
        "priority": "normal",
        "size_mib": 20_480,
        "recorded_wait_ms": 60_000,
        "what_if_wait_ms": 0,
        "saved_ms": 60_000,
    }


def test_a_larger_card_and_what_is_assumed_of_whom_it_holds(console: Console, client: redis.Redis) -> None:
    store(client, crowd())
    ended = console.call("replay", "--what-if", "--devices", "cuda:0=80GB")
    assert "; 1 are granted that were not, 0 no more" in ended.out.splitlines()[1]
    assert ended.out.splitlines()[3].startswith("1 lease of requests that were never granted: assumed to be held")


def test_a_smaller_card_helps_nobody(console: Console, client: redis.Redis) -> None:
    store(client, crowd())
    ended = console.call("replay", "--what-if", "--devices", "cuda:0=8GB")
    assert ended.out.splitlines()[:3] == [
        "mean wait of those granted 1 min -> -, longest 2 min -> -",
        "of 4 requests, 0 are granted sooner and 0 later; 0 are granted that were not, 3 no more",
        "no service waits less in all",
    ]


def test_other_rules(console: Console, client: redis.Redis, tmp_path: Path) -> None:
    given = Scenario(100)
    given.request("first", 100)
    given.request("low", 100, priority="low")
    given.request("normal", 100)
    for name in ("first", "normal", "low"):
        given.now_ms += 1_000
        given.release(name)
    store(client, given)
    file = tmp_path / "policy.yaml"
    file.write_text("head_start_ms: {normal: 0}\n")
    document = console.call("replay", "--what-if", "--policy", str(file), "--json").document
    assert [(each["lease_id"], each["saved_ms"]) for each in document["helped_most"]] == [(padded("low"), 1_000)]
    assert (document["sooner"], document["later"], document["saved_ms"]) == (1, 1, 0)


def test_a_file_is_run_again_as_the_log_is(console: Console, client: redis.Redis, tmp_path: Path) -> None:
    store(client, crowd())
    from_redis = console.call("replay", *TWO, "--json")
    file = exported(console, tmp_path)
    nowhere = Console("redis://127.0.0.1:1")
    assert nowhere.call("replay", str(file), *TWO, "--json") == from_redis
    assert nowhere.run("replay", "-", *TWO, "--json", stdin=file.read_bytes()) == from_redis


def test_until_an_entry(console: Console, client: redis.Redis) -> None:
    given = crowd()
    store(client, given)
    until = next(entry.id for entry in given.entries if b"second" in entry.fields[3])
    assert console.call("replay", *TWO, "--until", until, "--json").document["recorded"]["requests"] == 2


# ---------------------------------------------------------------- trimmed


def trimmed(client: redis.Redis, *, keep: bool) -> str:
    """The crowd's log without all that came before the first release, with a snapshot of then if wished."""
    given = crowd()
    cut = next(index for index, entry in enumerate(given.entries) if entry.fields[1] == b"LeaseReleased")
    append(client, given)
    if keep:
        keep_snapshot(client, fold(given.entries[:cut]))
    client.xtrim("gpuboss:events", minid=given.entries[cut].id, approximate=False)
    return given.entries[cut - 1].id


def test_with_a_snapshot_it_says_what_is_known(console: Console, client: redis.Redis) -> None:
    snapshot_id = trimmed(client, keep=True)
    ended = console.call("replay", *TWO, "--json")
    assert ended.code == 0
    assert f"known are the requests from its snapshot {snapshot_id} on, and those that waited or held" in ended.err
    assert (ended.document["recorded"]["requests"], ended.document["saved_ms"]) == (3, 120_000)
    early = console.call("replay", *TWO, "--until", "5")
    assert (early.code, early.out) == (1, "")
    assert f"lies before the snapshot {snapshot_id}" in early.err


def test_without_one_it_says_what_is_left_out(console: Console, client: redis.Redis, tmp_path: Path) -> None:
    trimmed(client, keep=False)
    ended = console.call("replay", *TWO, "--json")
    assert (ended.code, ended.document["recorded"]["requests"], ended.document["left_out"]) == (0, 0, 3)
    assert "requests from before its first entry are left out, as if they had held nothing" in ended.err
    assert "gpuboss: left out: 3 leases of which the log does not hold the request" in ended.err
    from_file = console.call("replay", str(exported(console, tmp_path)), *TWO, "--json")
    assert from_file.out == ended.out
    assert "requests from before its first entry are left out" in from_file.err


def test_from_the_start_the_snapshot_does_not_count(console: Console, client: redis.Redis) -> None:
    trimmed(client, keep=True)
    assert console.call("replay", *TWO, "--from-start", "--json").document["left_out"] == 3


def test_where_no_devices_are_known_they_have_to_be_given(
    console: Console, client: redis.Redis, tmp_path: Path
) -> None:
    trimmed(client, keep=False)
    file = tmp_path / "policy.yaml"
    file.write_text("head_start_ms: {normal: 0}\n")
    ended = console.call("replay", "--what-if", "--policy", str(file))
    assert (ended.code, ended.out) == (1, "")
    assert "the log does not say what devices there were; say it with --devices" in ended.err


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--what-if"], 2, "what is to be different? expected --devices, --policy or both"),
        (["--devices", "cuda:0=1"], 2, "it says what is different from the log: add --what-if"),
        (["--policy", "policy.yaml"], 2, "it says what is different from the log: add --what-if"),
        (["--plot", "waits.svg"], 2, "it says what is different from the log: add --what-if"),
        (["--what-if", "--devices", "cuda:0"], 2, "'cuda:0' in 'cuda:0' is no device"),
        (["--what-if", "--policy", "/no/such/file"], 3, "cannot read '/no/such/file'"),
        (["--what-if", "--devices", "cuda:0=1", "--plot", "waits.gif"], 2, "expected a file .png or .svg"),
        (["/no/such/file", *TWO], 2, "cannot read /no/such/file"),
        ([*TWO], 69, "Redis at redis://127.0.0.1:1 does not answer"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], code: int, said: str) -> None:
    ended = Console("redis://127.0.0.1:1").call("replay", *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert said in ended.err
    assert ended.err.count("\n") == 1


def test_both_schedules_are_drawn(console: Console, client: redis.Redis, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    store(client, crowd())
    file = tmp_path / "both.svg"
    assert console.call("replay", *TWO, "--plot", str(file)).code == 0
    assert b"recorded: what the devices can hold" in file.read_bytes()
