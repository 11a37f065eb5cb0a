"""The embedded server's data folder: who may run a server on it, who uses that server, where it listens.

Three files carry what several processes must agree on. The kernel drops a lock with the last process that
holds it, so neither a kill -9 nor a pid that is used again leaves a lie behind:

- `server.lock` is locked by the server, which inherits the descriptor: locked means that a server runs.
- `users.lock` is shared by all processes that use the server; the last of them to leave stops it.
- `server.json` says where the server listens, its pid, and which engine wrote the data.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from gpuboss_scheduler.server_binary import EmbeddedServerError, Engine

if sys.platform != "win32":
    import fcntl

SOCKET_PATH_LIMIT_BYTES = 104  # of macOS; Linux takes 108


class ServerRecord(msgspec.Struct, frozen=True):
    """`server.json`: the server that runs on the folder, or the last one that did."""

    pid: int
    socket: str
    engine: Engine


class DataFolder:
    """A folder with the data of one server. `path` is its real path, `log` the server's log in it."""

    def __init__(self, path: Path) -> None:
        """Creates the folder, for this user alone, if need be. Raises `EmbeddedServerError` if it cannot."""
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path = path.resolve(strict=True)
        except OSError as error:
            raise EmbeddedServerError(f"cannot use {path} as the data folder of a server: {error}") from error
        self.log = self.path / "server.log"

    @contextlib.contextmanager
    def server_lock(self) -> Iterator[int | None]:
        """The lock's descriptor, for a server to inherit; None while a server has it."""
        descriptor = self._open("server.lock")
        try:
            yield descriptor if try_lock(descriptor, exclusive=True) else None
        finally:
            os.close(descriptor)

    def server_runs(self) -> bool:
        """Whether a server, or a child of one, has the lock."""
        with self.server_lock() as descriptor:
            return descriptor is None

    def open_users_lock(self) -> int:
        """A descriptor for `try_lock`; the lock ends when it is closed."""
        return self._open("users.lock")

    def record(self) -> ServerRecord | None:
        """What is known of the last server; None if no server was ever ready here, or the file is damaged."""
        try:
            return msgspec.json.decode((self.path / "server.json").read_bytes(), type=ServerRecord)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def write_record(self, record: ServerRecord) -> None:
        """Replaces the record as a whole: a reader finds the old or the new one."""
        with tempfile.NamedTemporaryFile(dir=self.path, prefix="server.json.", delete=False) as draft:
            draft.write(msgspec.json.encode(record) + b"\n")
        os.replace(draft.name, self.path / "server.json")

    def sockets(self) -> Iterator[Path]:
        """Where the server may listen: as recorded, since its starter's XDG_RUNTIME_DIR may not be ours, or here.

        What listens there may also have another folder: a copied folder brings its original's record along.
        """
        record = self.record()
        if record is not None:
            yield Path(record.socket)
        usual = self.new_socket_path()
        if record is None or str(usual) != record.socket:
            yield usual

    def new_socket_path(self) -> Path:
        """Where a new server listens: in a private folder, under a name that belongs to this data folder.

        Not in the data folder itself, whose path may be longer than a socket's can be. Raises
        `EmbeddedServerError` if no place is both private and short enough.
        """
        name = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16] + ".sock"
        refused: list[str] = []
        for folder in _socket_folders():
            if len(os.fsencode(folder / name)) >= SOCKET_PATH_LIMIT_BYTES:
                refused.append(f"{folder} makes too long a path")
            elif not _is_private_folder(folder):
                refused.append(f"{folder} is not a folder of this user alone")
            else:
                return folder / name
        raise EmbeddedServerError(
            f"no place for the socket of the embedded server: {'; '.join(refused)}. "
            "Set XDG_RUNTIME_DIR to a short path that only this user can enter"
        )

    def _open(self, name: str) -> int:
        try:
            return os.open(self.path / name, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise EmbeddedServerError(f"cannot write in the data folder {self.path}: {error}") from error


def try_lock(descriptor: int, *, exclusive: bool) -> bool:
    """Locks the file if that needs no waiting. A shared lock that was held is given up in the attempt."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise EmbeddedServerError(f"the data folder's file system has no locks: {error}") from error
    return True


def _socket_folders() -> Iterator[Path]:
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    if runtime.is_absolute() and runtime.is_dir():
        yield runtime / "gpuboss"
    for shared in (tempfile.gettempdir(), "/tmp"):
        yield Path(shared) / f"gpuboss-{os.getuid()}"


def _is_private_folder(folder: Path) -> bool:
    """Creates it if need be. Whoever could write in it could put a server of their own in place of ours."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
