"""Services as processes of their own, so that they can be given signals."""

from __future__ import annotations

import select
import subprocess
import sys
import textwrap
from types import TracebackType

DEADLINE_S = 15.0


class Service:
    """A Python program that talks through its standard output, line by line. It ends with the test."""

    def __init__(self, program: str, *arguments: str) -> None:
        command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
        self._said = b""

    def line(self) -> str:
        """The next line that it prints; fails, with what it said on stderr, if it ends instead."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        while b"\n" not in self._said:
            readable, _, _ = select.select([self.process.stdout], [], [], DEADLINE_S)
            assert readable, f"waited {DEADLINE_S:g} s for a line behind {self._said!r}"
            said = self.process.stdout.read(4096)
            if not said:
                raise AssertionError(f"ended with {self.wait()}: {self.process.stderr.read().decode()}")
            self._said += said
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def has_ended(self) -> bool:
        """Whether it runs no more; `line` then says why."""
        return self.process.poll() is not None

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit status, negative if a signal ended it."""
        return self.process.wait(DEADLINE_S)

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE_S)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
