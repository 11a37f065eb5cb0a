"""The machine that the simulated server runs on: its connections, its wall clock, its crashes and its stalls."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.sim.network import Connection
from tests.sim.resp import Blocked, Requests, encode
from tests.sim.server import SimulatedServer
from tests.sim.settings import DELETION
from tests.sim.streams import FIRST, Id, parse_id
from tests.sim.timeline import Due, call_off

if TYPE_CHECKING:
    from tests.sim.world import World

EPOCH_US = 1_700_000_000 * 1_000_000  # what the server's wall clock shows when a world begins


class _Client:
    """The server's end of one connection."""

    def __init__(self) -> None:
        self.requests = Requests()
        self.waiting: deque[tuple[list[bytes], bool]] = deque()  # behind one that blocks, and whether to answer
        self.blocked: Blocked | None = None
        self.until_wall_us: int | None = None
        self.due: Due | None = None


class ServerHost:
    """Takes requests from connections to the server, and its answers back."""

    def __init__(self, world: World) -> None:
        self.is_up = True
        self.jumped_us = 0
        self.server = SimulatedServer(self.wall_us, random.Random(world.seed), lambda: world.timeline.now_us)
        self.told_through = FIRST  # the last entry of the log that a scheduler was told of, where that is asked for
        self._world = world
        self._clients: dict[Connection, _Client] = {}
        self._stalled: list[tuple[Connection, bytes, bool]] | None = None

    @property
    def is_stalled(self) -> bool:
        """Whether it stands still."""
        return self._stalled is not None

    def wall_us(self) -> int:
        """What the server's own clock shows."""
        return EPOCH_US + self._world.timeline.now_us + self.jumped_us

    def take(self, connection: Connection, data: bytes, *, answers: bool = True) -> None:
        """Some bytes arrived. `answers`: whether the connection lives to hear the answer."""
        if not self.is_up:
            return
        if self._stalled is not None:
            self._stalled.append((connection, data, answers))
            return
        client = self._clients.get(connection)
        if client is None:
            client = self._clients[connection] = _Client()
        for words in client.requests.feed(data):
            if client.blocked is None:
                self._run(connection, client, words, answers)
            else:
                client.waiting.append((words, answers))

    def ask(self, *words: bytes) -> object:
        """What somebody at the server's console, or another client that is not simulated, says to it."""
        assert self.is_up
        answer = self.server.execute(list(words))
        self._look_around()
        return answer

    def forget(self, connection: Connection) -> None:
        """The connection is gone; what it waits for is not answered."""
        client = self._clients.pop(connection, None)
        if client is not None:
            call_off(client.due)

    def stall(self) -> None:
        """SIGSTOP of the server."""
        if self._stalled is None:
            self._stalled = []

    def go_on(self) -> None:
        """SIGCONT of the server."""
        stalled, self._stalled = self._stalled or [], None
        for connection, data, answers in stalled:
            self.take(connection, data, answers=answers)
        self._look_at_blocked(None)

    def go_down(self) -> None:
        """The server's process is gone: every connection breaks."""
        self.is_up = False
        self._stalled = None
        self._world.network.break_all()
        self._clients.clear()

    def come_up(self) -> None:
        """It is there again, with the data that it has."""
        self.is_up = True

    def jump(self, by_us: int) -> None:
        """The wall clock is set."""
        self.jumped_us += by_us
        for connection, client in self._clients.items():
            if client.blocked is not None:
                self._set_timer(connection, client)

    def _run(self, connection: Connection, client: _Client, words: list[bytes], answers: bool = True) -> None:
        world = self._world
        world.note(connection, words)
        answer = self.server.execute(words)
        self._note_told(connection, answer)
        if isinstance(answer, Blocked):
            client.blocked = answer
            client.until_wall_us = None if not answer.block_ms else self.wall_us() + answer.block_ms * 1000
            self._set_timer(connection, client)
        elif answers:
            connection.answer(encode(answer))
        self._look_around()

    def _look_around(self) -> None:
        touched = self.server.touched
        if touched:
            keys = set(touched)
            touched.clear()
            self._world.judge.look(keys)
            self._look_at_blocked(keys)

    def _look_at_blocked(self, keys: set[bytes] | None) -> None:
        for connection, client in list(self._clients.items()):
            blocked = client.blocked
            if blocked is not None and (keys is None or not keys.isdisjoint(blocked.keys)):
                answer = self.server.execute(blocked.again)
                if not isinstance(answer, Blocked):
                    self._note_told(connection, answer)
                    self._unblock(connection, client, encode(answer))

    def _note_told(self, connection: Connection, answer: object) -> None:
        if DELETION in self._world.settings.faults_s and connection.process.name.startswith("scheduler"):
            self.told_through = max(self.told_through, *_entry_ids(answer), FIRST)

    def _set_timer(self, connection: Connection, client: _Client) -> None:
        call_off(client.due)
        if client.until_wall_us is not None:
            left_us = max(0, client.until_wall_us - self.wall_us())
            client.due = self._world.timeline.after(left_us, lambda: self._time_out(connection, client))

    def _time_out(self, connection: Connection, client: _Client) -> None:
        if client.blocked is not None and self._stalled is None:
            self._unblock(connection, client, encode(None))

    def _unblock(self, connection: Connection, client: _Client, answer: bytes) -> None:
        client.blocked = None
        call_off(client.due)
        connection.answer(answer)
        while client.waiting and client.blocked is None:
            self._run(connection, client, *client.waiting.popleft())


def _entry_ids(answer: object) -> Iterator[Id]:
    """Of the entries in an answer, however deep: an id, and a list behind it."""
    if isinstance(answer, list):
        match answer:
            case [bytes(entry_id), list(_)] if entry_id[:1].isdigit():
                yield parse_id(entry_id)
            case _:
                for each in answer:
                    yield from _entry_ids(each)
