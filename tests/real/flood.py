"""What a service that floods costs the others: `scripts/flood`, and short in `tests/real/test_flood.py`.

Another service asks, is granted and gives back, one lease after the other, and each round trip is timed: before the
flood; while 100,000 requests arrive as fast as one connection carries them; and while those of them that may wait
stand in the queue. All in one run, for only the ratios mean anything on a machine that others use too.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import hiredis

from tests.real.redis_view import RedisView, Service, read
from tests.real.schedulers import SchedulerProcess
from tests.real.servers import RealServer, available_servers

EVENTS, REPLIES = b"gpuboss:events", b"gpuboss:replies:quiet"
CARD_MIB = 24_576
CARDS = f"cuda:0={CARD_MIB},cuda:1={CARD_MIB}"
AT_ONCE = 1_000  # requests that the flooder has under way
FLOOD = 100_000
ROUNDS = 2_000
BOUND = 2.0  # how much slower the others may become
ANSWER_WITHIN_S = 120.0


class Raw:
    """A bare connection, so that the round trip is timed and not the library."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_WITHIN_S)
        self._socket.connect(path)
        self._reader = hiredis.Reader()

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def send(self, *commands: tuple[bytes | int, ...]) -> None:
        """Several commands in one write."""
        self._socket.sendall(b"".join(hiredis.pack_command(cast(Any, command)) for command in commands))

    def read(self) -> Any:
        """The next answer."""
        while (answer := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(262_144))
        return answer


class Quiet:
    """A service that asks for one lease at a time, on a card that the flood is not about."""

    def __init__(self, path: str) -> None:
        self._raw = Raw(path)
        self.close = self._raw.close
        self._last = b"0-0"
        self._number = 0

    def round_trip_us(self) -> float:
        """Ask, be granted, give back, be told so (us)."""
        self._number += 1
        name = b'{"lease_id":"quiet%07d","service":"quiet"' % self._number
        started = time.perf_counter()
        self._say(b"LeaseRequested", name + b',"vram_mib":8192,"device":"cuda:1"}', b"LeaseGranted")
        self._say(b"LeaseReleased", name + b"}", b"LeaseEnded")
        return (time.perf_counter() - started) * 1e6

    def round_trips_us(self, rounds: int) -> list[float]:
        """So many, one after the other."""
        return [self.round_trip_us() for _ in range(rounds)]

    def _say(self, kind: bytes, data: bytes, expected: bytes) -> None:
        self._raw.send((b"XADD", EVENTS, b"*", b"type", kind, b"data", data))
        self._raw.read()
        self._raw.send((b"XREAD", b"BLOCK", 100_000, b"STREAMS", REPLIES, self._last))
        [[_, [[self._last, fields]]]] = self._raw.read()
        assert fields[1] == expected, fields


class Timed(NamedTuple):
    """Round trips of one part of the run (us)."""

    p50: float
    p99: float
    most: float
    rounds: int


class Outcome(NamedTuple):
    """A whole run. `decided_ms`: how long 1,000 entries of the flood took, from the first to the last answer."""

    before: Timed
    during: Timed
    behind: Timed
    flood: int
    decided_ms: float
    waiting: int
    denied: int


def timed(round_trips_us: list[float]) -> Timed:
    """Their percentiles."""
    ordered = sorted(round_trips_us)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return Timed(statistics.median(ordered), p99, ordered[-1], len(ordered))


def request_of(number: int, *, many_sizes: bool) -> bytes:
    """What the flooder asks for: room on a card that is taken, always as much, or each time another amount."""
    vram_mib = number % CARD_MIB + 1 if many_sizes else 1_024
    exclusive = b"true" if many_sizes and number // CARD_MIB % 2 else b"false"
    data = b'{"lease_id":"flood%08d","service":"flooder","vram_mib":%d,"device":"cuda:0","exclusive":%b}'
    return data % (number, vram_mib, exclusive)


def pour(path: str, requests: int, many_sizes: bool) -> None:
    """The flooder: as fast as one connection can, without a look at any answer of the scheduler."""
    raw = Raw(path)
    for first in range(0, requests, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, requests))
        datas = [request_of(number, many_sizes=many_sizes) for number in numbers]
        raw.send(*[(b"XADD", EVENTS, b"*", b"type", b"LeaseRequested", b"data", data) for data in datas])
        for _ in numbers:
            raw.read()


@contextlib.contextmanager
def flooding(path: str, requests: int, many_sizes: bool) -> Iterator[Callable[[], bool]]:
    """A flooder in a process of its own; yields whether it still pours."""
    command = [sys.executable, "-m", "tests.real.flood", "--pour", path, "--requests", str(requests)]
    flooder = subprocess.Popen([*command, *(["--many-sizes"] if many_sizes else [])])
    try:
        yield lambda: flooder.poll() is None
        assert flooder.wait(ANSWER_WITHIN_S) == 0
    finally:
        flooder.kill()
        flooder.wait()


def measure(server: RealServer, *, requests: int, rounds: int, many_sizes: bool) -> Outcome:
    """One run on an empty server, on which nobody leads yet."""
    path = str(server.socket_path)
    with (
        server.client() as client,
        SchedulerProcess(server.url, devices=CARDS) as scheduler,
        contextlib.closing(Quiet(path)) as quiet,
    ):
        scheduler.wait_leading()
        view = RedisView(client)
        Service(view, "holder").lease(CARD_MIB, device="cuda:0")
        quiet.round_trips_us(rounds // 10)
        before = timed(quiet.round_trips_us(rounds))
        during: list[float] = []
        started = time.perf_counter()
        with flooding(path, requests, many_sizes) as pours:
            while pours() or not is_decided(view, requests):
                during.append(quiet.round_trip_us())
            took_ms = (time.perf_counter() - started) * 1e3
        behind = timed(quiet.round_trips_us(rounds))
        waiting = client.hlen(view.key("queue"))
        return Outcome(before, timed(during), behind, requests, took_ms * 1_000 / requests, waiting, requests - waiting)


def is_decided(view: RedisView, requests: int) -> bool:
    """Whether the last request of the flood waits, or was denied."""
    last = f"flood{requests - 1:08}"
    if view.client.hexists(view.key("queue"), last):
        return True
    answers: Any = view.client.xrevrange(view.key("replies:flooder"), count=1)
    return any(read(entry_id.decode(), fields).data.get("lease_id") == last for entry_id, fields in answers)


def main() -> int:
    """Run on each kind of server, once with requests that are all alike and once with none like another."""
    parser = argparse.ArgumentParser(prog="scripts/flood", description=__doc__)
    parser.add_argument("--requests", type=int, default=FLOOD, help="of the flooder (%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the other service, before and behind")
    parser.add_argument("--pour", metavar="SOCKET", help=argparse.SUPPRESS)
    parser.add_argument("--many-sizes", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pour:
        pour(options.pour, options.requests, options.many_sizes)
        return 0
    missed = False
    for kind in available_servers():
        for many_sizes in (False, True):
            with tempfile.TemporaryDirectory() as folder, RealServer(Path(folder), kind) as server:
                outcome = measure(server, requests=options.requests, rounds=options.rounds, many_sizes=many_sizes)
            missed |= not _report(f"{kind}, {'no size twice' if many_sizes else 'one size'}", outcome)
    return 1 if missed else 0


def _report(what: str, outcome: Outcome) -> bool:
    """Print it; whether the others were slowed down by no more than the bound."""
    print(f"{what}: {outcome.waiting} of {outcome.flood} wait, {outcome.denied} were denied", flush=True)
    for name, part in (("before", outcome.before), ("during", outcome.during), ("behind", outcome.behind)):
        print(
            f"  {name}  p50 {part.p50:9,.0f} us ({part.p50 / outcome.before.p50:6.2f})  "
            f"p99 {part.p99:9,.0f} us ({part.p99 / outcome.before.p99:6.2f})  "
            f"max {part.most:9,.0f} us  {part.rounds} rounds",
            flush=True,
        )
    print(f"  the flood: {outcome.decided_ms:.0f} ms for 1,000 entries, those of the others among them", flush=True)
    behind, before = outcome.behind, outcome.before
    return behind.p50 <= BOUND * before.p50 and behind.p99 <= BOUND * before.p99


if __name__ == "__main__":
    sys.exit(main())
