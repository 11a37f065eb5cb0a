"""What GPUBoss costs, each figure beside its floor: an echo process that only copies entries between two streams.

The floor has raw sockets and hiredis on both sides, no log, no ledger and no promise: nothing that answers through
Redis Streams can be faster. Both sides run in one go, on the same server (AOF, synced each second, unix socket).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import hiredis
import msgspec

from gpuboss import GPUBoss
from gpuboss.connection import connect
from gpuboss.core.state import State
from gpuboss.core.verification import Verifier
from gpuboss.keys import Keys
from gpuboss.log import LogReader
from gpuboss_scheduler.embedded import start_embedded

KEYS = Keys()
IN, OUT = b"bench:in", b"bench:out"
SERVICE = "bench"
OUTSTANDING = 512
DEVICE = "cuda:0=16777216"  # so large that nothing has to be given back while grants are counted
TARGETS = {"p50": 2.0, "grants": 0.35, "acquire": 5.0, "replay": 0.25}


class Raw:
    """A bare connection: what a round trip costs at least."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._reader = hiredis.Reader()

    def send(self, *commands: tuple[bytes | int, ...]) -> None:
        """Several commands in one write."""
        self._socket.sendall(b"".join(hiredis.pack_command(cast(Any, command)) for command in commands))

    def read(self) -> Any:
        """The next answer."""
        while (answer := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(262_144))
        return answer


def echo(path: str) -> None:
    """The floor's other side: copies what comes in to what goes out, for ever."""
    raw, last = Raw(path), b"0-0"
    print("ready", file=sys.stderr, flush=True)
    while True:
        raw.send((b"XREAD", b"BLOCK", 1000, b"COUNT", 1000, b"STREAMS", IN, last))
        answer = raw.read()
        if answer:
            entries = answer[0][1]
            raw.send(*[(b"XADD", OUT, b"*", *fields) for _, fields in entries])
            for _ in entries:
                raw.read()
            last = entries[-1][0]


def request(number: int) -> bytes:
    """The data of a request."""
    return b'{"lease_id":"bench%08d","service":"%s","vram_mib":1}' % (number, SERVICE.encode())


def one_outstanding(path: str, stream: bytes, answers: bytes, rounds: int) -> list[float]:
    """The round trips of `rounds` requests, one after the other (us)."""
    raw, last, took = Raw(path), b"0-0", []
    for number in range(rounds):
        started = time.perf_counter()
        raw.send((b"XADD", stream, b"*", b"type", b"LeaseRequested", b"data", request(number)))
        raw.read()
        raw.send((b"XREAD", b"BLOCK", 5000, b"STREAMS", answers, last))
        last = raw.read()[0][1][-1][0]
        took.append((time.perf_counter() - started) * 1e6)
    return took[rounds // 10 :]


def many_outstanding(path: str, stream: bytes, answers: bytes, rounds: int) -> float:
    """Answers per second with `OUTSTANDING` requests under way."""
    raw, last, sent, answered = Raw(path), b"0-0", 0, 0
    started = time.perf_counter()
    while answered < rounds:
        # A quarter of the window at a time: a driver that refilled after each answer would measure itself.
        due = min(OUTSTANDING - (sent - answered), rounds - sent)
        due = 0 if due < OUTSTANDING // 4 and sent < rounds - due else due
        adds = [
            (b"XADD", stream, b"*", b"type", b"LeaseRequested", b"data", request(1_000_000 + sent + more))
            for more in range(due)
        ]
        raw.send(*adds, (b"XREAD", b"BLOCK", 5000, b"COUNT", 1000, b"STREAMS", answers, last))
        for _ in range(due):
            raw.read()
        sent += due
        entries = raw.read()[0][1]
        answered += len(entries)
        last = entries[-1][0]
    return rounds / (time.perf_counter() - started)


async def acquire_and_release(url: str, rounds: int) -> list[float]:
    """The async client, one lease after the other (us)."""
    took = []
    async with GPUBoss(redis_url=url, service=SERVICE) as gpu_boss:
        for _ in range(rounds):
            started = time.perf_counter()
            lease = await gpu_boss.acquire(vram_mib=1)
            await gpu_boss.release(lease)
            took.append((time.perf_counter() - started) * 1e6)
    return took[rounds // 10 :]


def read_and_decode(url: str) -> float:
    """The floor of a replay: entries per second, read in pages and decoded, nothing else."""
    decoder = msgspec.json.Decoder(dict[str, Any])
    client = connect(url)
    started = time.perf_counter()
    count = 0
    for entry in LogReader(client, KEYS).entries():
        decoder.decode(entry.fields[3])
        count += 1
    return count / (time.perf_counter() - started)


def replay(url: str) -> float:
    """Entries per second of a verified replay. Raises if it does not verify."""
    client = connect(url)
    gc.collect()
    gc.disable()
    started = time.perf_counter()
    verifier = Verifier(State(), frozenset)
    count = 0
    for entry in LogReader(client, KEYS).entries():
        verifier.feed(entry.id, entry.fields)
        count += 1
    verifier.finish()
    took = time.perf_counter() - started
    gc.enable()
    assert not verifier.divergences, verifier.divergences[0]
    return count / took


@contextmanager
def child(*command: str, until: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process beside this one, ready once it says `until`."""
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        while until is not None and until not in (said := process.stderr.readline()):
            if not said:
                raise SystemExit(f"bench: {' '.join(command)} ended early")
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def percentile(values: list[float], percent: float) -> float:
    """The value below which `percent` of them are."""
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


def progress(what: str) -> None:
    """Where a person watches: what is under way, on one line."""
    if sys.stderr.isatty():
        print(f"\r{what:30}\r", end="", file=sys.stderr, flush=True)


class Pairs:
    """One figure beside its floor, measured several times, each pair side by side."""

    def __init__(self) -> None:
        self._ours: list[float] = []
        self._floor: list[float] = []

    def add(self, ours: float, floor: float) -> None:
        """One more pair."""
        self._ours.append(ours)
        self._floor.append(floor)

    @property
    def medians(self) -> tuple[float, float, list[float]]:
        """The median of ours, of the floor, and the ratios of the pairs from the least to the largest."""
        ratios = sorted(ours / floor for ours, floor in zip(self._ours, self._floor, strict=True))
        return statistics.median(self._ours), statistics.median(self._floor), ratios


class Sheet:
    """The figures, and whether they reach what is asked of them."""

    def __init__(self) -> None:
        self.missed: list[str] = []
        print(f"{'':40}{'GPUBoss':>12}{'floor':>12}{'ratio':>7}   {'of the pairs':14}to reach")

    def line(self, what: str, pairs: Pairs, target: str | None = None, unit: str = "us") -> None:
        """One figure beside its floor: the median, and the least and the largest ratio of a pair."""
        ours, floor, ratios = pairs.medians
        ratio = statistics.median(ratios)
        asked = ""
        if target is not None:
            bound = TARGETS[target]
            at_most = target in ("p50", "acquire")
            asked = f"{'<=' if at_most else '>='} {bound:g}"
            if ratio > bound if at_most else ratio < bound:
                self.missed.append(f"{what}: {ratio:.2f}, asked {asked}")
        spread = f"{ratios[0]:.2f} ... {ratios[-1]:.2f}"
        print(f"{what:40}{ours:>9,.0f} {unit:2}{floor:>9,.0f} {unit:2}{ratio:>7.2f}   {spread:14}{asked}", flush=True)


def measure(url: str, path: str, pairs: int, rounds: int, cycles: int) -> Sheet:
    """All figures, floor and ours in turn, `pairs` times: shared machines change their pace within a minute, and only
    what ran side by side can be compared."""
    scheduler = ["-m", "gpuboss_scheduler", "--redis-url", url, "--devices", DEVICE, "--http", "off"]
    client = connect(url)
    answers = KEYS.replies(SERVICE).encode()
    p50, p99, many, acquire, replayed = Pairs(), Pairs(), Pairs(), Pairs(), Pairs()
    for number in range(pairs):
        progress(f"pair {number + 1} of {pairs}")
        client.flushall()
        with child(__file__, "--echo", path, until="ready"):
            floor_one = one_outstanding(path, IN, OUT, rounds)
            client.flushall()
        with child(__file__, "--echo", path, until="ready"):
            floor_many = many_outstanding(path, IN, OUT, rounds * 5)
        client.flushall()
        with child(*scheduler, until="leading"):
            ours_many = many_outstanding(path, KEYS.events.encode(), answers, rounds * 5)
        client.flushall()
        with child(*scheduler, until="leading"):
            ours_one = one_outstanding(path, KEYS.events.encode(), answers, rounds)
            ours_acquire = asyncio.run(acquire_and_release(url, rounds))
        p50.add(percentile(ours_one, 50), percentile(floor_one, 50))
        p99.add(percentile(ours_one, 99), percentile(floor_one, 99))
        many.add(ours_many, floor_many)
        acquire.add(percentile(ours_acquire, 50), percentile(floor_one, 50))
    client.flushall()
    progress("a log to replay")
    fill(url, scheduler, cycles)
    for _ in range(3):
        replayed.add(replay(url), read_and_decode(url))
    progress("")
    sheet = Sheet()
    sheet.line("request -> grant, one outstanding, p50", p50, "p50")
    sheet.line("request -> grant, one outstanding, p99", p99)
    sheet.line(f"grants, {OUTSTANDING} outstanding", many, "grants", "/s")
    sheet.line("acquire + release, async client, p50", acquire, "acquire")
    sheet.line(f"verified replay of {client.xlen(KEYS.events):,} entries", replayed, "replay", "/s")
    return sheet


def fill(url: str, scheduler: list[str], cycles: int) -> None:
    """A log of whole lives: asked, granted, released, ended."""
    client = connect(url)
    with child(*scheduler, until="leading"):
        for first in range(0, cycles, 1000):
            pipeline = client.pipeline(transaction=False)
            for number in range(first, min(first + 1000, cycles)):
                lease_id = f"fill{number:08d}"
                asked = {"lease_id": lease_id, "service": SERVICE, "vram_mib": 8192, "session": f"session{number % 7}"}
                pipeline.xadd(KEYS.events, {"type": "LeaseRequested", "data": msgspec.json.encode(asked)})
                given = {"lease_id": lease_id, "service": SERVICE}
                pipeline.xadd(KEYS.events, {"type": "LeaseReleased", "data": msgspec.json.encode(given)})
            pipeline.execute()
        until_s = time.monotonic() + 60
        while client.hlen(KEYS.leases) or client.xlen(KEYS.events) < 4 * cycles:
            if time.monotonic() > until_s:
                raise SystemExit("bench: the scheduler did not keep up with the log")
            time.sleep(0.05)


def main() -> int:
    """Exit code 1 if `--check` is given and a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: seconds, and less to be trusted")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target is missed")
    parser.add_argument("--start", type=int, metavar="EVENTS", help="instead: a start behind so long a log (10000000)")
    parser.add_argument("--size", action="store_true", help="instead: the core with 1,000,000 waiting, 1,000 devices")
    parser.add_argument("--echo", metavar="SOCKET", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.echo:
        echo(options.echo)
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, load {load:.1f}")
    if options.start:
        from scripts.bench_start import measure_start

        measure_start(options.start)
        return 0
    if options.size:
        from scripts.bench_size import measure_size

        missed = measure_size(10_000, 100, 1_000) if options.quick else measure_size(1_000_000, 1_000, 10_000)
        return tell_missed(missed, options.check)
    with tempfile.TemporaryDirectory(prefix="gpuboss-bench-") as folder, start_embedded(Path(folder)) as server:
        pairs, rounds, cycles = (3, 500, 2_500) if options.quick else (15, 1_000, 25_000)
        sheet = measure(server.url, server.url.removeprefix("unix://"), pairs, rounds, cycles)
    return tell_missed(sheet.missed, options.check)


def tell_missed(missed: list[str], is_check: bool) -> int:
    """Say which targets are missed. Returns the exit code."""
    for each in missed:
        print(f"missed: {each}", file=sys.stderr)
    return 1 if is_check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
