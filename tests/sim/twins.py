"""One real server and one simulated one, told the same: whatever they answer or hold differently is a mistake."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from typing import Any, cast

import hiredis

from tests.real.servers import DEADLINE_S, RealServer
from tests.sim.compared import Failure, comparable, contents
from tests.sim.resp import Answer, Blocked, encode
from tests.sim.server import SimulatedServer
from tests.sim.words import Word, spelled


class RealConnection:
    """A bare connection: answers come as they are, errors among them."""

    def __init__(self, server: RealServer) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE_S)
        self._socket.connect(str(server.socket_path))
        self._reader = hiredis.Reader(replyError=cast(Any, Failure))

    def ask(self, *commands: Sequence[bytes]) -> list[Any]:
        """The answers to some commands that are sent together."""
        self._socket.sendall(b"".join(hiredis.pack_command(cast(Any, tuple(command))) for command in commands))
        return [self._next() for _ in commands]

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def _next(self) -> Any:
        while (answer := self._reader.gets()) is False:
            received = self._socket.recv(1 << 16)
            assert received, "the server closed the connection"
            self._reader.feed(received)
        return answer


class Differs(AssertionError):
    """The two do not agree."""


class Twins:
    """Both servers. The simulated one's clock is set, for each command, to what the real one's was meanwhile."""

    def __init__(self, server: RealServer) -> None:
        self.real = RealConnection(server)
        self._now_us = 0
        self.simulated = SimulatedServer(lambda: self._now_us, random.Random(0))
        self._reader = hiredis.Reader(replyError=cast(Any, Failure))
        self._loaded: list[list[bytes]] = []  # the scripts, which no checkpoint holds
        self.unsettled = 0  # how many commands could not be compared, because the time passed meanwhile

    def close(self) -> None:
        """Close the connection."""
        self.real.close()

    def do(self, *words: Word) -> Any:
        """One command on both; its answer. Raises `Differs`."""
        command = spelled(words)
        if command[:2] == [b"SCRIPT", b"LOAD"]:
            self._loaded.append(command)
        # In a transaction, so that next to no time passes between looking at the clock and the command; none of
        # what is compared behaves differently there, save that nothing blocks.
        *_, queued, _, executed = self.real.ask([b"MULTI"], [b"TIME"], command, [b"TIME"], [b"EXEC"])
        if isinstance(queued, Failure):
            self._now_us = _microseconds(self.real.ask([b"TIME"])[0])
            self._expect(command, queued, self._simulate(command))
            return queued
        before, answer, after = executed
        self._at_some_time(command, answer, _microseconds(before), _microseconds(after))
        return answer

    def peek(self, *words: Word) -> Answer:
        """What the simulated one answers to a question that changes nothing."""
        return self.simulated.execute(spelled(words))

    def compare(self) -> None:
        """Look at all that the two hold. Raises `Differs`."""
        real, simulated = contents(self._really), contents(self._simulate)
        if real != simulated:
            raise Differs(f"they hold different things:\n  real      {real}\n  simulated {simulated}")

    def _at_some_time(self, command: list[bytes], answer: Any, before_us: int, after_us: int) -> None:
        """The command was carried out at one of the ms between. Mostly there is only one; else whatever fits is right,
        and as an answer may say nothing of the time, what is held has to fit too. A script may see several: where
        nothing fits, the two begin anew."""
        times_us = sorted({before_us, *range((before_us // 1000 + 1) * 1000, after_us + 1, 1000)})
        at_first = self.simulated.checkpoint() if len(times_us) > 1 else None
        for now_us in times_us:
            self._now_us = now_us
            found = self._simulate(command)
            try:
                self._expect(command, answer, found)
                if at_first is not None:
                    self.compare()
                return
            except Differs:
                if at_first is None:
                    raise
                self._return_to(at_first)
        self.unsettled += 1
        for ask in (self._really, self._simulate):
            ask([b"FLUSHALL"])

    def _return_to(self, checkpoint: Any) -> None:
        self.simulated.fail_over(checkpoint)
        for command in self._loaded:
            self.simulated.execute(command)

    def _expect(self, command: list[bytes], real: Any, simulated: Any) -> None:
        if comparable(command, real) != comparable(command, simulated):
            raise Differs(f"{command}:\n  real      {real}\n  simulated {simulated}")

    def _simulate(self, command: list[bytes]) -> Any:
        answer = self.simulated.execute(command)
        self._reader.feed(encode(None if isinstance(answer, Blocked) else answer))
        return self._reader.gets()

    def _really(self, command: list[bytes]) -> Any:
        return self.real.ask(command)[0]


def _microseconds(time: list[bytes]) -> int:
    return int(time[0]) * 1_000_000 + int(time[1])
