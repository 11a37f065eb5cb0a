"""Starts, joins and stops the local Valkey or Redis server in which `--embedded` keeps the log."""

from __future__ import annotations

import contextlib
import enum
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from gpuboss.errors import ConfigError
from gpuboss_scheduler.data_folder import DataFolder, ServerRecord, try_lock
from gpuboss_scheduler.server_binary import (
    DataFolderIncompatible,
    EmbeddedServerError,
    Engine,
    ServerBinaryMissing,
    find_server_binary,
    usable_binary,
)

__all__ = [
    "DataFolderInUse",
    "DataFolderIncompatible",
    "EmbeddedServer",
    "EmbeddedServerError",
    "ServerBinaryMissing",
    "ServerDidNotStart",
    "default_data_dir",
    "find_server_binary",
    "start_embedded",
]

START_DEADLINE_S = 10.0
LOADING_DEADLINE_S = 600.0  # a million events load in two seconds, and a log may be much longer
STOP_DEADLINE_S = 10.0
KILL_DEADLINE_S = 5.0
PROBE_DEADLINE_S = 1.0
POLL_INTERVAL_S = 0.005
LOG_TAIL_LINES = 15
APPEND_FSYNC = {"standard": "everysec", "strict": "always"}

assert PROBE_DEADLINE_S < START_DEADLINE_S < LOADING_DEADLINE_S


class ServerDidNotStart(EmbeddedServerError):
    """The server ended or stayed silent before it was ready; the message ends with the tail of its log."""


class DataFolderInUse(EmbeddedServerError):
    """A server that cannot be joined has the data folder. Two servers on one folder would lose events."""


class _Answer(enum.Enum):
    SILENT = enum.auto()
    BUSY = enum.auto()  # loading its data, or in a long script
    READY = enum.auto()


class EmbeddedServer:
    """A local server that this process uses, and that it stops if it is the last to use it.

    `url` is what redis-py's `from_url` takes, `pid` the server's process, `joined` true if another
    `start_embedded` than ours had started it.
    """

    def __init__(
        self,
        folder: DataFolder,
        record: ServerRecord,
        users_lock: int,
        process: subprocess.Popen[bytes] | None,
    ) -> None:
        self.data_dir = folder.path
        self.url = f"unix://{quote(record.socket)}"
        self.pid = record.pid
        self.joined = process is None
        self._folder = folder
        self._record = record
        self._users_lock: int | None = users_lock
        self._process = process

    def stop(self) -> bool:
        """Leaves the server; stops it, without loss, if no other process uses it. True if it is stopped.

        While its starter lives and uses it, a joiner never stops it; the starter leaves it to those who
        joined. A second call does nothing. Raises `EmbeddedServerError` if even SIGKILL does not end it.
        """
        if self._users_lock is None:
            return False
        users_lock, self._users_lock = self._users_lock, None
        try:
            # To try is to give up the shared lock in any case: of two that leave at once, one is the last.
            last = try_lock(users_lock, exclusive=True)
            if last:
                _stop_server(self._folder, self._record)
            self._await_child(ended=last)
        finally:
            os.close(users_lock)
        return last

    def _await_child(self, *, ended: bool) -> None:
        if self._process is None:
            return
        if ended:
            self._process.wait(KILL_DEADLINE_S)
        else:
            # It lives on for others. When it ends, somebody has to collect it, or it stays a zombie of ours.
            threading.Thread(target=self._process.wait, name="embedded-server-exit", daemon=True).start()

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def default_data_dir() -> Path:
    """Where the embedded server keeps its data: `$XDG_STATE_HOME/gpuboss`, else `~/.local/state/gpuboss`."""
    state_home = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state_home.is_absolute():  # the XDG rules: a relative path there counts as unset
        state_home = Path.home() / ".local" / "state"
    return state_home / "gpuboss"


def start_embedded(data_dir: Path, *, durability: str = "standard", binary: Path | None = None) -> EmbeddedServer:
    """Starts the server of `data_dir`, or joins the one that runs there, and returns once it is ready.

    `durability` is `standard` (fsync each second) or `strict` (before each reply; a server that is joined is
    made strict, never less so). `binary` is used as given; without it, `find_server_binary` chooses. Raises
    `ConfigError` for an unknown durability, and otherwise a subclass of `EmbeddedServerError`.
    """
    if durability not in APPEND_FSYNC:
        expected = " or ".join(map(repr, APPEND_FSYNC))
        raise ConfigError(f"durability of the embedded server: expected {expected}, not {durability!r}")
    if sys.platform == "win32":
        raise EmbeddedServerError(
            "there is no embedded server on Windows: run Redis >= 7.0 in WSL or a container, and give its --redis-url"
        )
    folder = DataFolder(data_dir)
    users_lock = folder.open_users_lock()
    try:
        record, process = _join_or_start(folder, users_lock, APPEND_FSYNC[durability], binary)
    except BaseException:
        os.close(users_lock)
        raise
    return EmbeddedServer(folder, record, users_lock, process)


def _join_or_start(
    folder: DataFolder, users_lock: int, fsync: str, binary: Path | None
) -> tuple[ServerRecord, subprocess.Popen[bytes] | None]:
    """Whichever works first: a server that is there may be starting, loading, or on its way out."""
    began, patience_s = time.monotonic(), START_DEADLINE_S
    while True:
        if try_lock(users_lock, exclusive=False):  # refused while the last user stops the server
            with folder.server_lock() as lock:
                if lock is not None:
                    return _start(folder, lock, fsync, binary)
            answer, record = _look_for_server(folder)
            if record is not None and _join(folder, record, fsync):
                return record, None
            if answer is _Answer.BUSY:
                patience_s = LOADING_DEADLINE_S
        if time.monotonic() - began > patience_s:
            raise _unreachable(folder, patience_s)
        time.sleep(POLL_INTERVAL_S)


def _unreachable(folder: DataFolder, waited_s: float) -> DataFolderInUse:
    record = folder.record()
    suspect = "an unknown process" if record is None else f"process {record.pid}, if it runs on this machine,"
    return DataFolderInUse(
        f"{suspect} holds {folder.path / 'server.lock'}, but no server of this folder answered at "
        f"{' or '.join(map(str, folder.sockets()))} in {waited_s:g} s. End that process, or use another data folder"
    )


def _join(folder: DataFolder, record: ServerRecord, fsync: str) -> bool:
    if fsync == "always":
        with contextlib.closing(_connect(Path(record.socket))) as client:
            try:
                client.config_set("appendfsync", fsync)
            except redis.RedisError:
                return False  # gone again, or busy: the caller looks once more
    if record != folder.record():
        folder.write_record(record)  # its starter died before it could
    return True


def _start(
    folder: DataFolder, lock: int, fsync: str, binary: Path | None
) -> tuple[ServerRecord, subprocess.Popen[bytes]]:
    socket = folder.new_socket_path()
    if _probe(socket) is not _Answer.SILENT:
        # A second server would take the path away from the first, and new clients would find another log.
        raise DataFolderInUse(
            f"a server answers at {socket} without holding {folder.path / 'server.lock'} (was that file "
            f"deleted?). Stop it with `redis-cli -s {socket} shutdown`, and start again"
        )
    last = folder.record()
    writer = None if last is None else last.engine
    try:
        chosen = find_server_binary(writer) if binary is None else usable_binary(binary, writer)
    except DataFolderIncompatible as error:
        raise DataFolderIncompatible(f"cannot open {folder.path}: {error}") from None
    log_start = folder.log.stat().st_size if folder.log.exists() else 0
    process = _spawn(folder, chosen, socket, fsync, lock)
    try:
        _await_ready(process, socket, folder.log, log_start)
        with contextlib.closing(_connect(socket)) as client:
            record = _describe(client, socket)
        folder.write_record(record)
    except BaseException:
        if process.poll() is None:
            _signal_group(process.pid, signal.SIGKILL)
            process.wait(KILL_DEADLINE_S)
        socket.unlink(missing_ok=True)
        raise
    return record, process


def _spawn(folder: DataFolder, binary: Path, socket: Path, fsync: str, lock: int) -> subprocess.Popen[bytes]:
    settings = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder.path),
        "logfile": str(folder.log),
        "appendonly": "yes",
        "appendfsync": fsync,
        "save": "",
        "maxmemory-policy": "noeviction",
        "hz": "100",  # at the default of 10, a blocked read wakes up 100 ms late
        "daemonize": "no",
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
    with folder.log.open("ab") as output:
        return subprocess.Popen(
            [str(binary), *flags],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C in the scheduler's terminal is not meant for the server
            umask=0o077,
        )


def _await_ready(process: subprocess.Popen[bytes], socket: Path, log: Path, log_start: int) -> None:
    began, patience_s = time.monotonic(), START_DEADLINE_S
    while (answer := _probe(socket)) is not _Answer.READY:
        if answer is _Answer.BUSY:
            patience_s = LOADING_DEADLINE_S
        if (status := process.poll()) is not None:
            raise _did_not_start(f"ended with status {status} before it was ready", log, log_start)
        if time.monotonic() - began > patience_s:
            raise _did_not_start(f"was not ready after {patience_s:g} s", log, log_start)
        time.sleep(POLL_INTERVAL_S)


def _did_not_start(what: str, log: Path, log_start: int) -> ServerDidNotStart:
    with log.open("rb") as lines:
        lines.seek(log_start)
        tail = lines.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    shown = "\n".join(tail) or "(it logged nothing)"
    return ServerDidNotStart(f"the embedded server {what}. {_advice(shown)} The end of {log}:\n{shown}")


def _advice(log_tail: str) -> str:
    if re.search("RDB format version|Bad file format reading the append only file|Wrong signature", log_tail):
        return (
            "Its data has a format that it does not read: most likely another engine wrote it (what Valkey 9 "
            "wrote does not open in Redis, and what Redis 7.4 or later wrote does not open in Valkey). Name "
            "the server that wrote it in GPUBOSS_SERVER_BINARY, or use another data folder; do not let "
            "redis-check-aof repair it, which would cut it off."
        )
    if "No space left" in log_tail:
        return "Its disk is full: make room, nothing that was acknowledged is lost."
    return "What it logged says why; another server can be named in GPUBOSS_SERVER_BINARY."


def _stop_server(folder: DataFolder, known: ServerRecord) -> None:
    """SIGTERM, which syncs the data; then SIGKILL, which loses none either: the kernel has them already."""
    # It may have been started anew since we joined. Only itself is asked: a wrong record must not kill others.
    _, found = _look_for_server(folder)
    record = found or known
    for number, deadline_s in ((signal.SIGTERM, STOP_DEADLINE_S), (signal.SIGKILL, KILL_DEADLINE_S)):
        if folder.server_runs():
            _signal_group(record.pid, number)
        if _becomes_true(lambda: not folder.server_runs(), deadline_s):
            Path(record.socket).unlink(missing_ok=True)
            return
    raise EmbeddedServerError(
        f"the embedded server of {folder.path} (process {record.pid}) is still there {KILL_DEADLINE_S:g} s "
        "after SIGKILL: look at what it waits for (its disk?), and end it by hand"
    )


def _signal_group(leader_pid: int, number: signal.Signals) -> None:
    """To the server and to the child that rewrites its file; the server's session has nobody else in it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # whether it ended is seen by its lock
        os.killpg(leader_pid, number)


def _becomes_true(condition: Callable[[], bool], deadline_s: float) -> bool:
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(POLL_INTERVAL_S)
    return True


def _connect(socket: Path) -> redis.Redis:
    return redis.Redis(
        unix_socket_path=str(socket),
        protocol=2,
        driver_info=None,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=PROBE_DEADLINE_S,
        socket_connect_timeout=PROBE_DEADLINE_S,
    )


def _probe(socket: Path) -> _Answer:
    with contextlib.closing(_connect(socket)) as client:
        try:
            client.ping()
        except (redis.BusyLoadingError, redis.ResponseError):
            return _Answer.BUSY
        except (redis.ConnectionError, redis.TimeoutError):
            return _Answer.SILENT
    return _Answer.READY


def _look_for_server(folder: DataFolder) -> tuple[_Answer, ServerRecord | None]:
    """What answers, and, if it is ready and serves this very folder, what it says of itself."""
    heard = _Answer.SILENT
    for socket in folder.sockets():
        answer = _probe(socket)
        if answer is _Answer.READY:
            with contextlib.closing(_connect(socket)) as client, contextlib.suppress(redis.RedisError, OSError):
                if folder.path.samefile(_data_dir_of(client)):
                    return answer, _describe(client, socket)
        elif answer is _Answer.BUSY:
            heard = answer
    return heard, None


def _data_dir_of(client: redis.Redis) -> str:
    command: Any = client.execute_command  # not config_get, which decodes, and fails on a path that is not UTF-8
    reply = command("CONFIG", "GET", "dir")
    return os.fsdecode(reply[1])


def _describe(client: redis.Redis, socket: Path) -> ServerRecord:
    about: Any = client.info("server")
    name = "valkey" if "valkey_version" in about else "redis"
    major, minor, patch = map(int, str(about[f"{name}_version"]).split("."))
    return ServerRecord(int(about["process_id"]), str(socket), Engine(name, (major, minor, patch)))
