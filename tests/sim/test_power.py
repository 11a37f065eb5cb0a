"""What a simulated server keeps, and what it may lose: whole steps, the latest ones, and never what was synced."""

from __future__ import annotations

import random

import pytest

from tests.sim.resp import Answer, Error
from tests.sim.server import SimulatedServer

START_US = 1_700_000_000_000_000


class Bench:
    """A server whose clocks a test turns by hand."""

    def __init__(self, seed: int = 1) -> None:
        self.wall_us = START_US
        self.elapsed_us = 0
        self.server = SimulatedServer(lambda: self.wall_us, random.Random(seed), lambda: self.elapsed_us)

    def do(self, *words: str | int | bytes) -> Answer:
        """One command."""
        return self.server.execute([word if isinstance(word, bytes) else str(word).encode() for word in words])

    def pass_us(self, us: int) -> None:
        """Both clocks go on."""
        self.wall_us += us
        self.elapsed_us += us


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_kill_keeps_all_data_and_forgets_the_scripts(bench: Bench) -> None:
    sha = bench.do("SCRIPT", "LOAD", "return redis.call('SET', KEYS[1], 'kept')")
    assert isinstance(sha, bytes)
    bench.do("EVALSHA", sha, 1, "key")
    bench.server.kill()
    assert bench.do("GET", "key") == b"kept"
    assert bench.do("EVALSHA", sha, 1, "key") == Error("NOSCRIPT No matching script. Please use EVAL.")
