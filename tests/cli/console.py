"""Running `gpuboss` as a person does, and logs in Redis to run it on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from unittest import mock

import msgspec
import redis

from gpuboss.cli import main
from gpuboss.core import projections, snapshot
from gpuboss.core.machine import CORE_VERSION
from gpuboss.core.state import State
from tests.core.scenario import Log, fold
from tests.rules.sources import ROOT

DEADLINE_S = 30.0
SCRIPT = Path(sys.executable).with_name("gpuboss")
# The installed command where there is one; in a bare checkout the module, which does the same.
GPUBOSS: Sequence[str] = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-m", "gpuboss"]


class Ended(NamedTuple):
    """How a run ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)


def environment(**variables: str) -> dict[str, str]:
    """This process's, without settings of GPUBoss but for those given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GPUBOSS_")}
    return {**kept, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "scheduler"))), **variables}


class Console:
    """A shell in front of one Redis."""

    def __init__(self, url: str, **variables: str) -> None:
        self.environ = environment(GPUBOSS_REDIS_URL=url, **variables)

    def call(self, *arguments: str, stdin: bytes = b"", environ: Mapping[str, str] | None = None) -> Ended:
        """Run one command inside of this process: the same code without the cost of a start."""
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin))),
            mock.patch.dict(os.environ, {**self.environ, **(environ or {})}, clear=True),
        ):
            code = main(arguments)
        for stream in (out, err):
            stream.flush()
        return Ended(code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode())

    def run(self, *arguments: str, stdin: bytes = b"", environ: Mapping[str, str] | None = None) -> Ended:
        """Run one command to its end, as a process of its own."""
        done = subprocess.run(
            [*GPUBOSS, *arguments],
            input=stdin,
            capture_output=True,
            timeout=DEADLINE_S,
            env={**self.environ, **(environ or {})},
            check=False,
        )
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *arguments: str) -> Running:
        """Start one that goes on."""
        return Running([*GPUBOSS, *arguments], self.environ)


class Running:
    """A command that goes on until it is interrupted; killed at the latest when its `with` ends."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environ),
            bufsize=0,
        )
        self._watchdog = threading.Timer(DEADLINE_S, self.process.kill)

    def line(self) -> str:
        """The next line of its output; an empty text once it has ended, also by the deadline."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def end(self, signal_number: int) -> Ended:
        """Send a signal, and wait for the end."""
        self.process.send_signal(signal_number)
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return Ended(self.process.returncode, out.decode(), err.decode())

    def __enter__(self) -> Running:
        self._watchdog.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watchdog.cancel()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def now_ms(client: redis.Redis) -> int:
    """The server's clock."""
    seconds, microseconds = client.time()
    return int(seconds * 1000 + microseconds // 1000)


def store(client: redis.Redis, log: Log, *, namespace: str = "gpuboss") -> None:
    """Write a log to Redis, with the projections and the hash of a scheduler that leads."""
    append(client, log, namespace=namespace)
    state = fold(log.entries)
    for name, rows in (
        ("leases", projections.lease_rows(state)),
        ("queue", projections.queue_rows(state)),
        ("devices", projections.device_rows(state)),
    ):
        for key, row in rows.items():
            client.hset(f"{namespace}:{name}", key, msgspec.json.encode(row))
    scheduler: dict[Any, Any] = {
        "leader": "gpu-box:1",
        "epoch": state.epoch,
        "seq": state.seq,
        "cursor": state.last_id,
        "version": "0.1.0",
        "durability": "standard",
        "session_ttl_ms": 15_000,
        "incarnation": state.incarnation,
        "alive_until_ms": now_ms(client) + 60_000,
    }
    client.hset(f"{namespace}:scheduler", mapping=scheduler)


def append(client: redis.Redis, log: Log, *, namespace: str = "gpuboss") -> None:
    """Write the entries of a log to Redis, under their own ids, and nothing else."""
    pipeline = client.pipeline(transaction=False)
    for entry in log.entries:
        pipeline.execute_command("XADD", f"{namespace}:events", entry.id, *entry.fields)
    pipeline.execute()


def keep_snapshot(client: redis.Redis, state: State, *, namespace: str = "gpuboss") -> None:
    """Write a snapshot to Redis as a scheduler does."""
    dumped = snapshot.dump(state)
    fields: dict[Any, Any] = {
        "id": state.last_id,
        "core": CORE_VERSION,
        "digest": snapshot.digest(dumped),
        "state": dumped,
    }
    client.hset(f"{namespace}:snapshot", mapping=fields)
