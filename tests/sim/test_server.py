"""What no comparison with a real server shows: what depends on the clock, who waits, and how bytes are spelled."""

from __future__ import annotations

from random import Random
from typing import Any, cast

import hiredis
import pytest
from redis._parsers.helpers import parse_info

from tests.sim.bench import START_US, Bench
from tests.sim.commands import COMMANDS
from tests.sim.resp import Answer, Blocked, Error, Requests, Status, encode

START_MS = START_US // 1000
HOUR_MS = 3_600_000
HOUR_US = HOUR_MS * 1000


@pytest.fixture
def bench() -> Bench:
    return Bench(Random(1))


def test_ids_never_go_back_when_the_clock_does(bench: Bench) -> None:
    bench.wall_us += HOUR_US
    assert bench.do("XADD", "log", "*", "a", "b") == b"%d-0" % (START_MS + HOUR_MS)
    bench.wall_us -= HOUR_US
    assert bench.do("XADD", "log", "*", "a", "b") == b"%d-1" % (START_MS + HOUR_MS)
    assert bench.do("XADD", "other", "*", "a", "b") == b"%d-0" % START_MS
    bench.wall_us += HOUR_US + 1_000
    assert bench.do("XADD", "log", "*", "a", "b") == b"%d-0" % (START_MS + HOUR_MS + 1)


def test_ids_go_on_from_what_was_deleted(bench: Bench) -> None:
    last = bench.do("XADD", "log", "*", "a", "b")
    assert isinstance(last, bytes)
    bench.do("XDEL", "log", last)
    assert bench.do("XADD", "log", "*", "a", "b") == b"%d-1" % START_MS


def test_a_key_goes_by_the_wall_clock(bench: Bench) -> None:
    bench.do("SET", "key", "value")
    bench.do("PEXPIRE", "key", HOUR_MS)
    bench.wall_us += HOUR_US
    assert (bench.do("PTTL", "key"), bench.do("DBSIZE")) == (0, 1)
    bench.wall_us += 1_000
    assert (bench.do("PTTL", "key"), bench.do("DBSIZE"), bench.do("GET", "key")) == (-2, 0, None)
    bench.wall_us -= HOUR_US
    assert bench.do("GET", "key") is None


def test_whoever_replaces_a_key_makes_it_live_for_ever(bench: Bench) -> None:
    bench.do("SET", "key", "value")
    bench.do("PEXPIRE", "key", 1)
    bench.do("SET", "key", "value")
    assert bench.do("PTTL", "key") == -1


def test_a_read_that_finds_nothing_waits_for_what_is_added_from_then_on(bench: Bench) -> None:
    bench.do("XADD", "log", "1-1", "a", "b")
    blocked = bench.do("XREAD", "BLOCK", 500, "STREAMS", "log", "other", "$", "$")
    assert isinstance(blocked, Blocked)
    assert (blocked.keys, blocked.block_ms) == ([b"log", b"other"], 500)
    assert bench.server.execute(blocked.again) == blocked
    bench.do("XADD", "other", "3-1", "c", "d")
    assert bench.server.execute(blocked.again) == [[b"other", [[b"3-1", [b"c", b"d"]]]]]


def test_a_script_cannot_wait(bench: Bench) -> None:
    answer = bench.do("EVAL", "return redis.call('XREAD', 'BLOCK', 0, 'STREAMS', KEYS[1], '0-0')", 1, "log")
    assert answer == Error("ERR XREAD command is not allowed with BLOCK option from scripts")


def test_a_read_goes_on_waiting_where_what_was_added_is_gone_again(bench: Bench) -> None:
    blocked = bench.do("XREAD", "BLOCK", 0, "STREAMS", "log", "0-0")
    assert isinstance(blocked, Blocked)
    bench.do("XADD", "log", "1-1", "a", "b")
    bench.do("XDEL", "log", "1-1")
    assert bench.server.execute(blocked.again) == blocked


def test_streams_that_were_added_to_are_told(bench: Bench) -> None:
    bench.do("SET", "text", "x")
    bench.do("XADD", "log", "1-1", "a", "b")
    assert bench.server.touched == {b"log"}
    bench.server.touched.clear()
    bench.do("XADD", "log", "1-1", "a", "b")
    bench.do("XADD", "none", "NOMKSTREAM", "*", "a", "b")
    bench.do("XDEL", "log", "1-1")
    assert bench.server.touched == set()
    bench.do("EVAL", "return redis.call('XADD', KEYS[1], '*', 'a', 'b')", 1, "log")
    assert bench.server.touched == {b"log"}


def test_it_describes_itself_as_a_server_that_the_product_takes(bench: Bench) -> None:
    about = bench.do("INFO")
    assert isinstance(about, bytes)
    info = parse_info(about)
    assert (info["maxmemory_policy"], info["aof_enabled"]) == ("noeviction", 1)
    for fsync in ("always", "everysec"):
        bench.server.appendfsync = fsync
        assert bench.do("CONFIG", "GET", "appendfsync") == [b"appendfsync", fsync.encode()]


def test_a_script_is_known_to_the_server_that_loaded_it(bench: Bench) -> None:
    sha = bench.do("SCRIPT", "LOAD", "return 1")
    assert isinstance(sha, bytes)
    assert bench.do("SCRIPT", "EXISTS", sha) == [1]
    other = Bench(Random(2))
    assert other.do("EVALSHA", sha, 0) == Error("NOSCRIPT No matching script. Please use EVAL.")


def test_what_is_wrong_with_a_command_of_ours_is_not_taken_for_an_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = COMMANDS[b"GET"]._replace(run=lambda data, words: [][1])
    monkeypatch.setitem(cast(Any, COMMANDS), b"GET", broken)
    with pytest.raises(IndexError):
        bench.do("EVAL", "return redis.pcall('GET', 'key')", 0)


@pytest.mark.parametrize("word", [b"\xff", b"XINFO", b"SCRIPT", b"CLIENT", b"CONFIG", b"EVALSHA", b"HELLO", b"SELECT"])
def test_words_that_are_no_text_are_refused_like_others(bench: Bench, word: bytes) -> None:
    assert isinstance(bench.do(word, b"\xff", b"\xff"), Error)


def test_each_life_has_a_name_of_its_own(bench: Bench) -> None:
    before = bench.do("INFO")
    assert bench.do("INFO") == before
    bench.server.kill()
    assert bench.do("INFO") != before


@pytest.mark.parametrize(
    ("answer", "spelling"),
    [
        (None, b"$-1\r\n"),
        (-5, b":-5\r\n"),
        (b"a\r\n", b"$3\r\na\r\n\r\n"),
        (Status("OK"), b"+OK\r\n"),
        (Error("ERR no"), b"-ERR no\r\n"),
        ([], b"*0\r\n"),
        ([b"a", [1, None]], b"*2\r\n$1\r\na\r\n*2\r\n:1\r\n$-1\r\n"),
    ],
)
def test_answers_are_spelled_as_resp_has_them(answer: Answer, spelling: bytes) -> None:
    assert encode(answer) == spelling


def test_what_is_not_answered_yet_cannot_be_spelled() -> None:
    with pytest.raises(TypeError, match="not answered yet"):
        encode(Blocked([b"log"], 0, []))


def test_commands_are_read_in_whatever_pieces_they_come() -> None:
    commands: list[tuple[Any, ...]] = [("SET", "key", b"\r\n\x00"), ("PING",)]
    sent = b"".join(hiredis.pack_command(cast(Any, command)) for command in commands)
    requests = Requests()
    read = [words for at in range(len(sent)) for words in requests.feed(sent[at : at + 1])]
    assert read == list(Requests().feed(sent)) == [[b"SET", b"key", b"\r\n\x00"], [b"PING"]]
