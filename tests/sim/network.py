"""The network between the processes and the server: bytes that take time, get lost, or are held up.

A connection is a pair of ordered pipes. What can go wrong is drawn for each message: it is slow; the connection breaks
before the server has it, or after, so that the answer is lost; from now on nothing passes and nobody is told
(half open). A process that is cut off keeps its connections: what was said comes late, or breaks them in the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from tests.sim.processes import Process

if TYPE_CHECKING:
    from tests.sim.server_host import ServerHost
    from tests.sim.world import World


class NetworkFaults(NamedTuple):
    """How likely each is, for one message."""

    slow: float = 0.0
    slow_us: int = 0  # at most
    cut_before: float = 0.0
    cut_after: float = 0.0
    half_open: float = 0.0

    @property
    def is_quick(self) -> bool:
        """Whether messages come through in no time."""
        return not (self.slow or self.cut_before or self.cut_after or self.half_open)


NO_FAULTS = NetworkFaults()
DELAY_US, SPREAD_US = 40, 400  # of a message, one way, and how much longer it may take


class Network:
    """All connections. `faults` may be changed while the world goes on."""

    def __init__(self, world: World) -> None:
        self.faults = NO_FAULTS
        self.world = world
        self.server: ServerHost  # set by the world, which makes both
        self.connections: dict[Connection, None] = {}
        self._opened = 0
        self._draw = world.random.random

    def open(self, process: Process, changed: Callable[[], None]) -> Connection:
        """Begin to connect; `changed` is called in the process whenever something came of it, or came in."""
        self._opened += 1
        connection = Connection(self, process, self._opened, changed)
        self.connections[connection] = None
        process.connections[connection] = None
        self.world.timeline.after(self.delay_us(), connection.arrive_open)
        return connection

    def delay_us(self) -> int:
        """How long the next message takes."""
        draw, slow = self._draw, self.faults.slow
        delay_us = DELAY_US + int(draw() * SPREAD_US)
        if slow and draw() < slow:
            self.world.count("slow message")
            delay_us += int(draw() * self.faults.slow_us)
        return delay_us

    def draw(self, kind: str, probability: float) -> bool:
        """Whether a fault happens now."""
        if probability and self._draw() < probability:
            self.world.count(kind)
            return True
        return False

    def heal(self, process: Process) -> None:
        """End a partition: what was held up comes through, or finds its connection broken."""
        process.partitioned = False
        for connection in list(process.connections):
            connection.resume(survives=self.world.random.random() < 0.5)

    def break_all(self) -> None:
        """The server's end of every connection is gone, and says so."""
        for connection in list(self.connections):
            connection.reset()

    def break_half_open(self) -> None:
        """Whoever still waits on a dead connection is told."""
        for connection in list(self.connections):
            if connection.is_mute:
                connection.is_mute = False
                connection.reset()


class Connection:
    """One connection, as both ends see it. `state`: opening, open, broken (by the other side) or closed (by ours)."""

    def __init__(self, network: Network, process: Process, number: int, changed: Callable[[], None]) -> None:
        self.number = number
        self.process = process
        self.state = "opening"
        self.received = b""
        self.is_mute = False  # half open: nothing passes
        self.changed = changed
        self._network = network
        self._timeline = network.world.timeline
        self._there_us = 0  # when the last message to the server arrives
        self._here_us = 0
        self._held_up: list[Callable[[], None]] = []

    # ------------------------------------------------------------ our end

    def send(self, data: bytes) -> None:
        """Say something to the server; an error is only noticed when reading."""
        if self.state == "open":
            arrives_us = self._timeline.now_us + self._network.delay_us()
            if arrives_us > self._there_us:
                self._there_us = arrives_us
            self._timeline.at(self._there_us, lambda: self._arrive(data))

    def take(self) -> bytes:
        """What has come."""
        data, self.received = self.received, b""
        return data

    def close(self) -> None:
        """Our side is done; the server hears of it a little later."""
        if self.state != "closed":
            self.state = "closed"
            self.process.connections.pop(self, None)
            self._timeline.at(max(self._there_us, self._timeline.now_us + DELAY_US), self._arrive_close)

    # ------------------------------------------------------------ what arrives at the server

    def arrive_open(self) -> None:
        """The server is asked to connect."""
        if self._is_held_up(self.arrive_open):
            return
        if not self._network.server.is_up:
            self._tell(self._refused)
        else:
            self._tell(self._opened)

    def _arrive(self, data: bytes) -> None:
        if (self.is_mute or self.process.partitioned) and self._is_held_up(lambda: self._arrive(data)):
            return
        network, faults = self._network, self._network.faults
        if faults.half_open and network.draw("half-open connection", faults.half_open):
            self.is_mute = True
        elif faults.cut_before and network.draw("request lost", faults.cut_before):
            self.reset()
        elif self in network.connections:
            if faults.cut_after and network.draw("answer lost", faults.cut_after):
                network.server.take(self, data, answers=False)
                self.reset()
            else:
                network.server.take(self, data)

    def _arrive_close(self) -> None:
        if not self._is_held_up(self._arrive_close):
            self._network.server.forget(self)
            self._network.connections.pop(self, None)

    # ------------------------------------------------------------ what the server does

    def answer(self, data: bytes) -> None:
        """The server says something."""
        self._tell(lambda: self._receive(data))

    def reset(self) -> None:
        """The server's end is gone."""
        self._network.server.forget(self)
        self._network.connections.pop(self, None)
        self._tell(self._break)

    def resume(self, survives: bool) -> None:
        """The way is free again."""
        held_up, self._held_up = self._held_up, []
        if not survives and self.state == "open":
            self.reset()
            return
        for arrive in held_up:
            arrive()

    # ------------------------------------------------------------ what arrives here

    def _tell(self, arrive: Callable[[], None]) -> None:
        arrives_us = self._timeline.now_us + self._network.delay_us()
        if arrives_us > self._here_us:
            self._here_us = arrives_us
        self._timeline.at(self._here_us, lambda: self._arrive_here(arrive))

    def _arrive_here(self, arrive: Callable[[], None]) -> None:
        if (self.is_mute or self.process.partitioned) and self._is_held_up(lambda: self._arrive_here(arrive)):
            return
        if self.state != "closed":
            self.process.do(arrive)

    def _is_held_up(self, arrive: Callable[[], None]) -> bool:
        if self.is_mute:
            return True
        if self.process.partitioned:
            self._held_up.append(arrive)
            return True
        return False

    def _opened(self) -> None:
        if self.state == "opening":
            self.state = "open"
            self.changed()

    def _refused(self) -> None:
        if self.state == "opening":
            self.state = "broken"
            self.changed()

    def _receive(self, data: bytes) -> None:
        if self.state == "open":
            self.received = self.received + data if self.received else data
            self.changed()

    def _break(self) -> None:
        if self.state != "closed":
            self.state = "broken"
            self.changed()
