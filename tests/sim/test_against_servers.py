"""The simulated server and real ones are told the same, thousands of times, and may not be told apart."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from tests.real.servers import RealServer
from tests.sim.drawn_commands import DrawnCommands
from tests.sim.drawn_scripts import SCRIPTS, DrawnScripts
from tests.sim.twins import Twins

COMMANDS = 400
COMPARE_EVERY = 40
LUA = (
    "return nil",
    "return {true, false, nil, 1}",
    "return {1, 2.9, -2.9, 'x', {3, {4}}, true, false, 'after'}",
    "return {ok = 'FINE'}",
    "return {err = 'BAD thing'}",
    "return {}",
    "return {err = 'BAD', 1, 2}",
    "return redis.status_reply('FINE')",
    "return redis.error_reply('BAD')",
    "return redis.error_reply('BAD thing')",
    "return redis.error_reply('-BAD thing')",
    "return redis.call('TYPE', KEYS[1])",
    "return redis.call('TYPE', KEYS[1])['ok']",
    "return redis.call('HGET', KEYS[1], 'a')",
    "return redis.pcall('HGET', KEYS[1], 'a')",
    "return redis.pcall('HGET', KEYS[1], 'a').err",
    "redis.call('HSET', KEYS[2], 'c', 'd') return redis.call('HGET', KEYS[1], 'a')",
    "local answer = redis.pcall('HGET', KEYS[1], 'a')\nredis.call('SET', 'text', 'y')\nerror(answer)",
    "return redis.call('HGET', KEYS[2], 'none')",
    "return tostring(redis.call('HGET', KEYS[2], 'none'))",
    "return redis.call('HMGET', KEYS[2], 'none', 'a')[1] or 'was false'",
    "return redis.call('XRANGE', KEYS[1], '-', '+')",
    "return #redis.call('XRANGE', KEYS[1], '6', '6')",
    "return redis.call('XREAD', 'STREAMS', KEYS[1], '9')",
    "return redis.call('XADD', KEYS[1], '5-1', 'a', 'b')",
    "return {redis.call('HSET', KEYS[2], 'n', 1), redis.call('HSET', KEYS[2], 'm', 1.5, 'k', 2 ^ 53)}",
    "return redis.call('ZADD', 'sorted', 1700000000000, 'member')",
    "return redis.call('HGET', KEYS[2], nil)",
    "return redis.call('HGET', KEYS[2], true)",
    "return redis.call('HGET', {}, 'a')",
    "return redis.call()",
    "return redis.pcall('NONESUCH')",
    "return redis.call('NONESUCH')",
    "return redis.call('HGET', KEYS[2])",
    "return redis.pcall('HGET', KEYS[2])",
    "return redis.call('EVAL', 'return 1', 0)",
    "return redis.call('SCRIPT', 'FLUSH')",
    "error('broken')",
    "error({err = 'BAD thing'})",
    "error()",
    "return nothing",
    "nothing = 1",
    "return nothing.more",
    "return ARGV[1] + 1",
    "return ARGV[2] + 1",
    "return KEYS[9]",
    "return ARGV[1] .. nil",
    "return #ARGV + #KEYS",
    "return string.format('%d', 1700000000000)",
    "return {unpack({1, 2, 3})}",
    "return",
    "not lua",
    "local many = {} for i = 1, 7000 do many[i] = 'x' end return redis.call('DEL', unpack(many))",
    "local many = {} for i = 1, 9000 do many[i] = 'x' end return redis.call('DEL', unpack(many))",
)


@pytest.fixture
def twins(server: RealServer) -> Iterator[Twins]:
    twins = Twins(server)
    yield twins
    twins.close()


@pytest.mark.parametrize("seed", range(12))
def test_drawn_commands_are_answered_alike(twins: Twins, seed: int) -> None:
    print(f"seed {seed}")
    drawn = DrawnCommands(Random(seed))
    for number in range(1, COMMANDS + 1):
        drawn.learn(twins.do(*drawn.command()))
        if number % COMPARE_EVERY == 0:
            twins.compare()
    assert twins.unsettled < COMMANDS / 10


@pytest.mark.parametrize("seed", range(12))
def test_the_scripts_of_the_product_do_alike(twins: Twins, seed: int) -> None:
    print(f"seed {seed}")
    drawn = DrawnScripts(Random(seed), twins.peek)
    for text in SCRIPTS.values():
        twins.do("SCRIPT", "LOAD", text)
    for number in range(1, COMMANDS + 1):
        twins.do(*drawn.command())
        if number % COMPARE_EVERY == 0:
            twins.compare()
    assert twins.unsettled < COMMANDS / 10


def test_trimming_about_a_length_takes_whole_nodes_alike(twins: Twins) -> None:
    for number in range(1, 350):
        twins.do("XADD", "log", "MAXLEN", "~", 120, f"1-{number}", "a", "b")
        assert twins.do("XLEN", "log") <= 220
    assert twins.do("XTRIM", "log", "MAXLEN", 70) > 0
    assert twins.do("XTRIM", "log", "MINID", "~", "1-301") > 0
    twins.compare()


@pytest.mark.parametrize("text", LUA)
def test_what_lua_returns_and_raises_is_answered_alike(twins: Twins, text: str) -> None:
    for command in (["XADD", "stream", "5-1", "a", "b"], ["HSET", "hash", "a", "b"], ["SET", "text", "x"]):
        twins.do(*command)
    twins.do("EVAL", text, 2, "stream", "hash", "first", "2")
    twins.compare()
