"""The play that `scripts/demo` shows: real processes, a real server, and a log that is verified at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from gpuboss.connection import connect
from gpuboss.keys import Keys

HERE = Path(__file__).parent
KEYS = Keys()
DEADLINE_S = 20.0
LOUD, QUIET, PLAIN = ("\x1b[1m", "\x1b[2m", "\x1b[0m") if sys.stdout.isatty() else ("", "", "")
STARTED_S = time.monotonic()


class Stage:
    """The scheduler's URL, the log, and the services that run."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self.environ = {**os.environ, "GPUBOSS_REDIS_URL": url}
        self.client = connect(url)
        self._stack = stack

    def service(self, name: str, vram: int, *options: str) -> subprocess.Popen[str]:
        """Start a service; what it says is shown."""
        command = [sys.executable, str(HERE / "demo_service.py"), "--service", name, "--vram", str(vram), *options]
        return self._stack.enter_context(process(command, self.environ))

    def entries(self) -> list[tuple[str, str, dict[str, Any]]]:
        """The log: id, type and data of each entry."""
        page: Any = self.client.xrange(KEYS.events)
        return [(entry_id.decode(), fields[1].decode(), json.loads(fields[3])) for entry_id, fields in page]

    def wait(self, what: str, condition: Callable[[list[tuple[str, str, dict[str, Any]]]], bool]) -> None:
        """Wait until the log holds something."""
        until_s = time.monotonic() + DEADLINE_S
        while not condition(self.entries()):
            if time.monotonic() > until_s:
                raise SystemExit(f"demo: waited {DEADLINE_S:g} s for {what}")
            time.sleep(0.05)

    def run(self, *command: str) -> int:
        """Run a verb of the command line as a person would."""
        line(f"{LOUD}$ gpuboss {' '.join(command)}{PLAIN}")
        return subprocess.run([sys.executable, "-m", "gpuboss", *command], env=self.environ, check=False).returncode


@contextmanager
def process(command: list[str], environ: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A child whose lines are shown as they come; it is stopped in the end."""
    child = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert child.stdout is not None
    reader = threading.Thread(target=show, args=(child.stdout,), daemon=True)
    reader.start()
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
        child.wait(DEADLINE_S)
        reader.join(DEADLINE_S)


def show(lines: IO[str]) -> None:
    """Pass lines on, with the time."""
    for text in lines:
        line(f"  {text.rstrip()}")


def line(text: str) -> None:
    """One line of the play."""
    print(f"{QUIET}{time.monotonic() - STARTED_S:5.1f} s{PLAIN}  {text}", flush=True)


def scene(title: str) -> None:
    """What comes next."""
    print(flush=True)
    line(f"{LOUD}{title}{PLAIN}")


def ended(entries: list[tuple[str, str, dict[str, Any]]], service: str) -> bool:
    """Whether a lease of this service is over."""
    return any(kind == "LeaseEnded" and data["service"] == service for _, kind, data in entries)


def number_of(entries: list[tuple[str, str, dict[str, Any]]], kind: str, service: str) -> int:
    """How many events of a type the log holds about one service."""
    return sum(each == kind and data.get("service") == service for _, each, data in entries)


def granted(entries: list[tuple[str, str, dict[str, Any]]], *services: str) -> bool:
    """Whether each of these services was granted something."""
    return set(services) <= {data["service"] for _, kind, data in entries if kind == "LeaseGranted"}


def compete(stage: Stage) -> None:
    """Three services, three priorities, two cards."""
    scene("Three services share two cards: an LLM over both, two diffusion models pinned, a classifier")
    stage.service(
        "imajin-diffusion", 8, "--model", "photorealistic", "--device", "cuda:0", "--hold", "2s", "--times", "2"
    )
    stage.service("imajin-diffusion", 8, "--model", "anime", "--device", "cuda:1", "--hold", "2s", "--times", "2")
    stage.service("classifier", 4, "--priority", "low", "--hold", "1500ms", "--times", "2")
    stage.wait("the small ones", lambda entries: granted(entries, "imajin-diffusion", "classifier"))
    stage.service(
        "imajin-prompt",
        20,
        "--gpus",
        "2",
        "--priority",
        "high",
        "--model",
        "DeepSeek R1 70B",
        "--hold",
        "2s",
        "--times",
        "1",
    )
    stage.wait("the LLM", lambda entries: ended(entries, "imajin-prompt"))
    line("  both cards in one grant, or none: the LLM never held one card while it waited for the other")


def overtake(stage: Stage) -> None:
    """A high request that came last is served first."""
    scene("The cards are full; a batch job waits, then somebody's request comes with priority high")
    for card in ("cuda:0", "cuda:1"):
        stage.service("trainer", 22, "--device", card, "--hold", "4s", "--times", "1")
    stage.wait("the trainers", lambda entries: sum(kind == "LeaseGranted" for _, kind, _ in entries) >= 9)
    stage.service("batch", 20, "--priority", "low", "--hold", "1s", "--times", "1", "--device", "cuda:0")
    stage.wait("the batch job's request", lambda entries: any(data.get("service") == "batch" for _, _, data in entries))
    stage.service("imajin-urgent", 20, "--priority", "high", "--hold", "1s", "--times", "1", "--device", "cuda:0")
    waiting = "imajin-urgent"
    stage.wait("its request", lambda entries: any(data.get("service") == waiting for _, _, data in entries))
    batch_id = next(data["lease_id"] for _, kind, data in stage.entries() if data.get("service") == "batch")
    stage.run("why", batch_id)
    stage.wait("both", lambda entries: granted(entries, "batch", "imajin-urgent"))
    order = [data["service"] for _, kind, data in stage.entries() if kind == "LeaseGranted"]
    if order.index("imajin-urgent") > order.index("batch"):
        raise SystemExit("demo: the high request was not served first")
    line("  asked last, served first")


def keep_warm(stage: Stage) -> None:
    """A model stays on its card until somebody needs the room, and comes back for its next use."""
    scene("A resident model: loaded by its first use, warm in between; then somebody else needs its room")
    use = ("--device", "cuda:0", "--load", "700ms", "--hold", "300ms", "--every", "1500ms")
    illustrator = stage.service("illustrator", 20, "--resident", "--model", "its model", *use)
    stage.wait("a second use", lambda entries: number_of(entries, "LeaseResumed", "illustrator") > 0)
    stage.service("visitor", 20, "--device", "cuda:0", "--hold", "500ms", "--times", "1")
    stage.wait("it to be asked back", lambda entries: number_of(entries, "YieldRequested", "illustrator") > 0)
    line("  the log says: YieldRequested, for the visitor")
    stage.wait("it to come back", lambda entries: number_of(entries, "LeaseGranted", "illustrator") > 1)
    idled = number_of(stage.entries(), "LeaseIdled", "illustrator")
    stage.wait("another use", lambda entries: number_of(entries, "LeaseIdled", "illustrator") > idled)
    illustrator.terminate()
    stage.wait("its end", lambda entries: number_of(entries, "LeaseEnded", "illustrator") > 1)


def crash(stage: Stage) -> None:
    """A process dies with its lease; its VRAM comes back."""
    scene("A service is killed while it holds 20 GB; another waits for the room")
    victim = stage.service("crasher", 20, "--device", "cuda:1", "--hold", "60s", "--times", "1")
    stage.wait("the victim", lambda entries: granted(entries, "crasher"))
    stage.service("patient", 20, "--device", "cuda:1", "--hold", "500ms", "--times", "1")
    stage.wait("the patient's request", lambda entries: any(data.get("service") == "patient" for _, _, data in entries))
    victim.send_signal(signal.SIGKILL)
    line("  kill -9 crasher")
    stage.wait("the clean-up", lambda entries: ended(entries, "crasher"))
    reason = next(d["reason"] for _, kind, d in stage.entries() if kind == "LeaseEnded" and d["service"] == "crasher")
    line(f"  its heartbeat stopped, the log says: LeaseEnded {reason}")
    stage.wait("the patient", lambda entries: granted(entries, "patient"))


def epilogue(stage: Stage) -> int:
    """The state, the log, and the proof."""
    scene("What Redis shows")
    stage.run("status")
    scene(f"The log is the whole story: XRANGE {KEYS.events} - + (its last entries)")
    for entry_id, kind, data in stage.entries()[-5:]:
        line(f"  {entry_id}  {kind:14}  {json.dumps(data)[:100]}")
    scene("Every decision is derived again from the log alone, and compared")
    return stage.run("replay")


def main() -> int:
    """The whole play; the exit code is the replay's."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gpuboss-demo-"))
        command = [sys.executable, "-m", "gpuboss_scheduler", "--embedded", "--data-dir", folder, "--http", "off"]
        command += ["--devices", "cuda:0=24GB,cuda:1=24GB", "--node", "demo", "--session-ttl", "2s"]
        line(f"{LOUD}$ gpuboss-scheduler {' '.join(command[3:])}{PLAIN}")
        scheduler = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        stack.callback(scheduler.wait, DEADLINE_S)
        stack.callback(scheduler.terminate)
        assert scheduler.stdout is not None
        url = scheduler.stdout.readline().strip()
        if not url:
            raise SystemExit("demo: the scheduler did not start; it says why above")
        line(f"  an embedded server listens at {url}")
        stage = Stage(url, stack)
        stage.wait("the scheduler", lambda entries: any(kind == "DeviceObserved" for _, kind, _ in entries))
        compete(stage)
        overtake(stage)
        keep_warm(stage)
        crash(stage)
        return epilogue(stage)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
