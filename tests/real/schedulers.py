"""Real schedulers for tests: the process as a person starts it, killed as the kernel kills it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import IO

TWO_CARDS = "cuda:0=24576,cuda:1=24576"
DEADLINE_S = 20.0


class SchedulerProcess:
    """`gpuboss-scheduler` as a child. Options are its long options, `session_ttl="2s"` being `--session-ttl 2s`.

    `module` is what is run. True stands for an option without a value; None leaves one out. What it says on stderr is
    in `lines`, what it prints on stdout in `printed`.
    """

    def __init__(
        self,
        url: str | None,
        *,
        devices: str | None = TWO_CARDS,
        node: str | None = "node-a",
        http: str | None = "off",
        environ: Mapping[str, str] | None = None,
        module: str = "gpuboss_scheduler",
        **options: str | bool | None,
    ) -> None:
        chosen = {"redis_url": url, "devices": devices, "node": node, "http": http, **options}
        self.command = [sys.executable, "-m", module]
        for name, value in chosen.items():
            if value is not None:
                self.command += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        self.environ = {**os.environ, **(environ or {})}
        self.process: subprocess.Popen[str] | None = None
        self.lines: list[str] = []
        self.printed: list[str] = []
        self._heard = threading.Condition()
        self._listeners: list[threading.Thread] = []

    def start(self) -> SchedulerProcess:
        """Start it; `wait_for` tells when it says something."""
        self.lines, self.printed = [], []
        self.process = process = subprocess.Popen(
            self.command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environ
        )
        self._listeners = [
            threading.Thread(target=self._listen, args=(stream, lines), daemon=True)
            for stream, lines in ((process.stderr, self.lines), (process.stdout, self.printed))
        ]
        for listener in self._listeners:
            listener.start()
        return self

    def wait_leading(self) -> int:
        """Wait until it leads; returns its epoch."""
        found = re.search(r"epoch=(\d+)", self.wait_for("leading epoch="))
        assert found is not None
        return int(found[1])

    def wait_for(self, text: str, deadline_s: float = DEADLINE_S) -> str:
        """Wait for a line on stderr or stdout that holds `text`, and return it."""
        process = self._running()
        until_s = time.monotonic() + deadline_s
        with self._heard:
            while True:
                ended = process.poll() is not None and not any(each.is_alive() for each in self._listeners)
                for line in [*self.lines, *self.printed]:
                    if text in line:
                        return line
                if ended or time.monotonic() > until_s:
                    raise AssertionError(f"no {text!r} (exit code {process.poll()}) in:\n{self.stderr}")
                self._heard.wait(0.05)

    @property
    def pid(self) -> int | None:
        """Its process; None if it does not run."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return "\n".join(self.lines)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send any signal, if it still runs."""
        process = self._running()
        if process.poll() is None:
            process.send_signal(number)

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        """Wait for its end, and for all that it said; returns the exit code."""
        code = self._running().wait(deadline_s)
        for listener in self._listeners:
            listener.join(deadline_s)
        return code

    def __enter__(self) -> SchedulerProcess:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.kill()

    def _running(self) -> subprocess.Popen[str]:
        assert self.process is not None, "not started"
        return self.process

    def _listen(self, stream: IO[str] | None, lines: list[str]) -> None:
        assert stream is not None
        with stream:
            for line in stream:
                with self._heard:
                    lines.append(line.rstrip("\n"))
                    self._heard.notify_all()


def eventually(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait until `condition()` is true; fails with `what` was waited for."""
    until_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < until_s, f"waited {deadline_s} s for {what}"
        time.sleep(0.005)
