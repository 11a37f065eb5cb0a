"""What a long log costs a scheduler that starts behind a snapshot, and what its trimming costs whoever asks meanwhile.

The log is real at its end: a scheduler decided it, and kept the snapshot. All before that is filled with copies of
those entries, which nobody reads at a start: that is what is to be seen. Then it is trimmed and archived under load.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from gpuboss.archive import segments_in
from gpuboss.connection import connect
from gpuboss.log import LogReader
from gpuboss_scheduler.embedded import start_embedded
from scripts.bench import DEVICE, KEYS, SERVICE, child, fill, one_outstanding, percentile, progress

CYCLES = 5_000  # four entries each, the real end of the log
FILLED_AT_ONCE = 20_000
A_MS = 100  # entries in one ms of the log's clock
ROUNDS = 5_000
YOUNG = 30_000  # entries that are asked for and decided meanwhile, and too young to go
TRIMMED = 1_000_000  # entries, while the round trips are measured; what is more takes longer, and shows no more
FILL = """
local kinds, ms, number = (#ARGV - 3) / 2, tonumber(ARGV[1]), tonumber(ARGV[2])
for entry = number, number + tonumber(ARGV[3]) - 1 do
  local id = string.format('%d-%d', ms + math.floor(entry / 100), entry % 100)
  local kind = 4 + 2 * (entry % kinds)
  redis.call('XADD', KEYS[1], id, 'type', ARGV[kind], 'data', ARGV[kind + 1])
end
"""


def measure_start(events: int) -> None:
    """Make a log of so many events, load it, start on it, trim it; print what each took."""
    with tempfile.TemporaryDirectory(prefix="gpuboss-bench-") as name:
        folder = Path(name)
        with start_embedded(folder / "data") as server:
            _make_log(server.url, events)
        began = time.perf_counter()
        with start_embedded(folder / "data") as server:
            client = connect(server.url, timeout_s=60.0)
            memory: Any = client.info("memory")
            used_mib = memory["used_memory"] / 2**20
            print(f"the server alone: {time.perf_counter() - began:.2f} s to load its AOF, {used_mib:,.0f} MiB")
            print(
                f"log: {LogReader(client, KEYS).length():,} events, a snapshot, and {_tail(client):,} events behind it"
            )
            _start(server.url)
            _trim(server.url, client, folder / "archive")


def _make_log(url: str, events: int) -> None:
    client = connect(url, timeout_s=60.0)
    progress("the end of the log")
    fill(url, _scheduler(url), CYCLES)
    end = list(LogReader(client, KEYS).entries())
    client.delete(KEYS.events)
    client.hset(KEYS.scheduler, "leader", "")  # as if it had resigned: waiting for it to be silent is another figure
    sample = [field for entry in end[-1000:] for field in entry.fields[1::2]]
    first_ms = int(end[0].id.partition("-")[0]) - events // A_MS - 1
    for number in range(0, events - len(end), FILLED_AT_ONCE):
        progress(f"{number:,} entries")
        count = min(FILLED_AT_ONCE, events - len(end) - number)
        client.eval(FILL, 1, KEYS.events, first_ms, number, count, *sample)
    pipeline: Any = client.pipeline(transaction=False)
    for entry in end:
        pipeline.execute_command("XADD", KEYS.events, entry.id, *entry.fields)
    pipeline.execute()
    progress("")


def _start(url: str) -> None:
    began = time.perf_counter()
    with child(*_scheduler(url), until="leading") as process:
        took_s = time.perf_counter() - began
        told = subprocess.run(["ps", "-o", "rss=", "-p", str(process.pid)], capture_output=True, text=True, check=True)
        print(f"the scheduler: {took_s:.2f} s from its start until it leads, {int(told.stdout) / 1024:,.0f} MiB")


def _trim(url: str, client: Any, archive: Path) -> None:
    """Round trips without trimming, then the same while the log is trimmed and archived."""
    path, answers = url.removeprefix("unix://"), KEYS.replies(SERVICE).encode()
    stream = KEYS.events.encode()
    with child(*_scheduler(url), until="leading"):
        calm = one_outstanding(path, stream, answers, ROUNDS)
    _forget_answers(client)
    before = client.xlen(KEYS.events)
    wanted = before - min(TRIMMED, before // 2)
    options = ["--retention-count", str(wanted), "--archive", str(archive)]
    busy: list[float] = []
    with child(*_scheduler(url), *options, until="leading"):
        began = time.perf_counter()
        until_s = time.monotonic() + 600
        while client.xlen(KEYS.events) > wanted + wanted // 50 + YOUNG and time.monotonic() < until_s:
            busy += one_outstanding(path, stream, answers, ROUNDS // 10)
            _forget_answers(client)
        took_s = time.perf_counter() - began
    gone = before - client.xlen(KEYS.events)
    segments = segments_in(archive)
    size = sum(segment.path.stat().st_size for segment in segments)
    print(f"trimmed and archived {gone:,} events in {took_s:.1f} s ({gone / took_s:,.0f} /s) under load: ", end="")
    print(f"{len(segments)} segments, {size / max(gone, 1):.0f} bytes an event")
    for what, took in (("without", calm), ("meanwhile", busy)):
        figures = ", ".join(f"{name} {value / 1000:.2f} ms" for name, value in _figures(took))
        print(f"request -> grant {what:10} {figures}")


def _figures(took: list[float]) -> list[tuple[str, float]]:
    return [("p50", percentile(took, 50)), ("p99", percentile(took, 99)), ("max", max(took))]


def _forget_answers(client: Any) -> None:
    """The round trips read the answers from the first on."""
    client.delete(KEYS.replies(SERVICE))


def _tail(client: Any) -> int:
    """How many entries a start reads."""
    stored = client.hget(KEYS.snapshot, "id").decode()
    return sum(1 for _ in LogReader(client, KEYS).entries(after=stored))


def _scheduler(url: str) -> list[str]:
    return ["-m", "gpuboss_scheduler", "--redis-url", url, "--devices", DEVICE, "--http", "off"]
