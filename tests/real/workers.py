"""Services at work in processes of their own: started, paused and killed by tests, and asked what they saw."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.real.worker import PATIENCE_S
from tests.verdict.history import Note

END_S = PATIENCE_S + 15.0


class Worker:
    """One process of `tests.real.worker`, whose notes go to a file in `folder`."""

    def __init__(self, url: str, name: str, folder: Path, *, namespace: str, seed: int, clients: int = 3) -> None:
        self.name = name
        self._file = folder / f"{name}.history"
        self._file.touch()
        self._said = folder / f"{name}.stderr"
        command = [sys.executable, "-m", "tests.real.worker", url, name, str(self._file), "--namespace", namespace]
        command += ["--seed", str(seed), "--clients", str(clients)]
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said)
        self._notes: list[Note] = []
        self._read_bytes = 0
        self._clients = clients
        self._deaths: list[Note] = []

    def notes(self) -> list[Note]:
        """What it has noted so far."""
        with self._file.open("rb") as file:
            file.seek(self._read_bytes)
            whole = file.read().rpartition(b"\n")[0]
        if whole:
            self._read_bytes += len(whole) + 1
            self._notes += [_note(line) for line in whole.split(b"\n")]
        return self._notes + self._deaths

    def is_at_work(self) -> bool:
        """Whether all its clients are connected, and asked for something."""
        return len({note.request.partition("/")[0] for note in self.notes()}) == self._clients

    def pause(self) -> None:
        """SIGSTOP."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: what it relied on it relies on no more."""
        self.process.kill()
        self.process.wait(END_S)
        died_s = time.monotonic()
        self._deaths = [Note(died_s, "died", f"{self.name}.{number}") for number in range(self._clients)]

    def stop(self) -> None:
        """Have it ask nothing more. `wait` waits until all that it asked is over."""
        assert self.process.stdin is not None
        if not self.process.stdin.closed:
            self.process.stdin.close()

    def wait(self) -> list[str]:
        """Wait for its end; returns what it has to complain about."""
        if self._deaths:
            return []
        code = self.process.wait(END_S)
        said = self._said.read_text()
        return [] if code == 0 else [f"the worker {self.name} ended with {code}: {said[-1500:]}"]

    def end(self) -> None:
        """Whatever it does, it is over."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(END_S)
        self.stop()


def _note(line: bytes) -> Note:
    at_s, what, request, devices, vram_mib = json.loads(line)
    return Note(at_s, what, request, tuple(devices), vram_mib)
