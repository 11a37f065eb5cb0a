"""A simulated server to be tried out by hand."""

from __future__ import annotations

from random import Random
from typing import Any

import hiredis

from tests.sim.compared import contents
from tests.sim.resp import Answer, Blocked, encode
from tests.sim.server import SimulatedServer
from tests.sim.words import Word, spelled

START_US = 1_700_000_000_000_000


class Worst(Random):
    """Always draws the highest: a power failure takes whatever it may."""

    def randint(self, low: int, high: int) -> int:
        return high


class Bench:
    """A server whose clocks a test turns by hand."""

    def __init__(self, random: Random) -> None:
        self.wall_us = START_US
        self.elapsed_us = 0
        self.server = SimulatedServer(lambda: self.wall_us, random, lambda: self.elapsed_us)

    def do(self, *words: Word) -> Answer:
        """One command."""
        return self.server.execute(spelled(words))

    def pass_us(self, us: int) -> None:
        """Both clocks go on."""
        self.wall_us += us
        self.elapsed_us += us

    def contents(self) -> dict[bytes, Any]:
        """All that it holds."""
        return contents(self._ask)

    def _ask(self, command: list[bytes]) -> Any:
        answer = self.server.execute(command)
        reader = hiredis.Reader()
        reader.feed(encode(None if isinstance(answer, Blocked) else answer))
        return reader.gets()
