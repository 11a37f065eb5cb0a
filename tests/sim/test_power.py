"""What a simulated server keeps, and what it may lose: whole steps, the latest ones, and never what was synced."""

from __future__ import annotations

from random import Random

import pytest

from tests.sim.bench import Bench, Worst
from tests.sim.drawn_commands import DrawnCommands
from tests.sim.drawn_scripts import SCRIPTS, DrawnScripts
from tests.sim.resp import Error
from tests.sim.server import SYNCED_AFTER_US

NO_SCRIPT = Error("NOSCRIPT No matching script. Please use EVAL.")


@pytest.fixture
def bench() -> Bench:
    return Bench(Worst())


def test_a_kill_keeps_all_data_and_forgets_the_scripts(bench: Bench) -> None:
    sha = bench.do("SCRIPT", "LOAD", "return redis.call('SET', KEYS[1], 'kept')")
    assert isinstance(sha, bytes)
    bench.do("EVALSHA", sha, 1, "key")
    bench.server.kill()
    assert bench.do("GET", "key") == b"kept"
    assert bench.do("EVALSHA", sha, 1, "key") == NO_SCRIPT


def test_a_power_failure_takes_back_any_number_of_the_last_steps() -> None:
    bench = Bench(Random(1))
    outcomes = set()
    for _ in range(100):
        bench.server.lose_all()
        for number in range(1, 4):
            bench.do("SET", "last", number)
        lost = bench.server.lose_power(back_us=1)
        outcomes.add((lost, bench.do("GET", "last")))
    assert outcomes == {(0, b"3"), (1, b"2"), (2, b"1"), (3, None)}


def test_a_power_failure_forgets_the_scripts(bench: Bench) -> None:
    sha = bench.do("SCRIPT", "LOAD", "return 1")
    assert isinstance(sha, bytes)
    bench.server.lose_power(back_us=1)
    assert bench.do("EVALSHA", sha, 0) == NO_SCRIPT


def test_a_power_failure_reaches_back_no_further_than_was_said(bench: Bench) -> None:
    for number in range(1, 6):
        bench.pass_us(100)
        bench.do("SET", "last", number)
    assert bench.server.lose_power(back_us=150) == 2
    assert bench.do("GET", "last") == b"3"


def test_what_was_synced_is_never_lost(bench: Bench) -> None:
    bench.do("SET", "old", "kept")
    bench.pass_us(SYNCED_AFTER_US + 1)
    assert bench.server.lose_power(back_us=10 * SYNCED_AFTER_US) == 0
    bench.do("SET", "young", "maybe")
    assert bench.server.lose_power(back_us=10 * SYNCED_AFTER_US) == 1
    assert bench.do("GET", "old") == b"kept"


def test_a_power_failure_syncs_what_it_leaves() -> None:
    bench = Bench(Random(1))
    for number in range(50):
        bench.do("SET", "last", number)
    bench.server.lose_power(back_us=1)
    left = bench.do("GET", "last")
    assert bench.server.lose_power(back_us=1) == 0
    assert bench.do("GET", "last") == left


def test_even_a_flush_may_be_lost(bench: Bench) -> None:
    bench.do("SET", "key", "value")
    bench.do("PEXPIRE", "key", 60_000)
    before = bench.contents()
    bench.pass_us(1)
    bench.do("FLUSHALL")
    assert bench.contents() == {}
    assert bench.server.lose_power(back_us=0) == 1
    assert bench.contents() == before


def test_the_wall_clock_has_no_say_in_what_is_synced(bench: Bench) -> None:
    bench.do("SET", "key", "value")
    bench.wall_us += 3_600_000_000
    assert bench.server.lose_power(back_us=1) == 1


def test_nothing_that_was_answered_is_lost_where_every_step_is_synced(bench: Bench) -> None:
    bench.do("SET", "key", "before")
    bench.server.appendfsync = "always"
    for number in range(20):
        bench.do("SET", "key", number)
    assert bench.server.lose_power(back_us=10) == 0
    assert bench.do("GET", "key") == b"19"


@pytest.mark.parametrize("seed", range(40))
def test_what_a_power_failure_leaves_was_there_after_some_command(seed: int) -> None:
    print(f"seed {seed}")
    random = Random(seed)
    bench = Bench(Random(seed))
    drawn = DrawnCommands(random), DrawnScripts(random, bench.do)
    for text in SCRIPTS.values():
        bench.do("SCRIPT", "LOAD", text)
    held = [(bench.elapsed_us, bench.contents())]
    for _ in range(80):
        bench.pass_us(random.choice((0, 0, 1_000, 300_000)))
        drawn[0].learn(bench.do(*random.choice(drawn).command()))
        held.append((bench.elapsed_us, bench.contents()))
    back_us = random.randint(0, 2 * SYNCED_AFTER_US)
    lost = bench.server.lose_power(back_us)
    since_us = bench.elapsed_us - min(back_us, SYNCED_AFTER_US)
    kept = sum(at_us < since_us for at_us, _ in held)
    possible = [each for _, each in held[max(0, kept - 1) :]]
    assert bench.contents() in (possible if lost else possible[-1:])


def test_a_script_is_lost_whole_even_one_that_failed_half_way() -> None:
    bench = Bench(Worst())
    bench.do("SET", "text", "before")
    bench.pass_us(1)
    answer = bench.do("EVAL", "redis.call('SET', KEYS[1], 'x') redis.call('HGET', KEYS[1], 'a')", 1, "text")
    assert isinstance(answer, Error)
    assert bench.do("GET", "text") == b"x"  # the server has no way back either
    assert bench.server.lose_power(back_us=0) == 1
    assert bench.do("GET", "text") == b"before"


def test_an_empty_server_holds_nothing_and_has_nothing_to_lose(bench: Bench) -> None:
    bench.do("SET", "key", "value")
    bench.server.lose_all()
    assert bench.contents() == {}
    assert bench.server.lose_power(back_us=1) == 0


def test_a_replica_takes_over_with_what_it_had(bench: Bench) -> None:
    for words in (["XADD", "s", "1-1", "a", "b"], ["HSET", "h", "a", "b"], ["ZADD", "z", "1", "a"], ["SET", "t", "x"]):
        bench.do(*words)
    bench.do("PEXPIRE", "t", 1_000)
    before = bench.contents()
    replica = bench.server.checkpoint()
    for _ in range(2):  # it is not used up, nor does it follow what is written later
        for words in (["XADD", "s", "*", "a", "b"], ["HSET", "h", "a", "c"], ["ZADD", "z", "2", "a"], ["DEL", "t"]):
            bench.do(*words)
        bench.server.fail_over(replica)
        assert bench.contents() == before
        assert bench.server.lose_power(back_us=1) == 0
