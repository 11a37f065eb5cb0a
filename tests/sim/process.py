"""What a server is beside its data, and loses when its process ends: the scripts that it knows, and its name."""

from __future__ import annotations

import fnmatch
import random
from collections.abc import Callable
from hashlib import sha1
from typing import Literal

from tests.sim.commands import command_of
from tests.sim.database import Database
from tests.sim.resp import Answer, Blocked, Refused, Status
from tests.sim.scripting import interpreter
from tests.sim.words import as_text, integer

Fsync = Literal["always", "everysec"]

_FINE = Status("OK")


class Process:
    """One life of a server."""

    def __init__(self, data: Database, random: random.Random, fsync: Callable[[], Fsync]) -> None:
        self._data = data
        self._fsync = fsync
        self._run_id = f"{random.getrandbits(160):040x}"
        self._scripts: set[str] = set()
        # Beside each: how many words it takes at least, its name among them.
        self._commands: dict[bytes, tuple[Callable[[list[bytes]], Answer], int]] = {
            b"CLIENT": (_client, 2),
            b"CONFIG": (self._config, 2),
            b"EVAL": (self._eval, 3),
            b"EVALSHA": (self._evalsha, 3),
            b"HELLO": (_hello, 1),
            b"INFO": (self._info, 1),
            b"PING": (lambda words: words[1] if len(words) > 1 else Status("PONG"), 1),
            b"SCRIPT": (self._script, 2),
            b"SELECT": (_select, 2),
        }

    def execute(self, words: list[bytes]) -> Answer:
        """Carry out a command that concerns the process and not its data. Raises `Refused`, also for one of a name
        that there is not."""
        name = as_text(words[0])
        command, least = self._commands.get(words[0].upper(), (None, 1))
        if command is None:
            arguments = "".join(f"'{as_text(word[:128])}' " for word in words[1:])
            raise Refused(f"unknown command '{name}', with args beginning with: {arguments}")
        if len(words) < least:
            raise Refused(f"wrong number of arguments for '{name.lower()}' command")
        return command(words)

    def _eval(self, words: list[bytes]) -> Answer:
        return self._run(self._load(words[1]), words)

    def _evalsha(self, words: list[bytes]) -> Answer:
        sha = as_text(words[1]).lower()
        if sha not in self._scripts:
            raise Refused("No matching script. Please use EVAL.", "NOSCRIPT")
        return self._run(sha, words)

    def _run(self, sha: str, words: list[bytes]) -> Answer:
        number = integer(words[2])
        if number > len(words) - 3:
            raise Refused("Number of keys can't be greater than number of args")
        if number < 0:
            raise Refused("Number of keys can't be negative")
        return interpreter().run(sha, words[3 : 3 + number], words[3 + number :], self._call)

    def _call(self, words: list[bytes]) -> Answer:
        """A command that a script calls."""
        command = command_of(words)
        if command is None:
            known = words[0].upper() in self._commands
            raise Refused(
                "This Redis command is not allowed from script" if known else "Unknown Redis command called from script"
            )
        if not command.takes(words):
            raise Refused("Wrong number of args calling Redis command from script")
        answer = command.run(self._data, words)
        if isinstance(answer, Blocked):
            raise Refused("XREAD command is not allowed with BLOCK option from scripts")
        return answer

    def _load(self, text: bytes) -> str:
        sha = sha1(text, usedforsecurity=False).hexdigest()
        if sha not in self._scripts:
            interpreter().load(sha, text)
            self._scripts.add(sha)
        return sha

    def _script(self, words: list[bytes]) -> Answer:
        what = words[1].upper()
        if what == b"LOAD" and len(words) == 3:
            return self._load(words[2]).encode()
        if what == b"EXISTS" and len(words) > 2:
            return [int(as_text(sha).lower() in self._scripts) for sha in words[2:]]
        if what == b"FLUSH":
            self._scripts.clear()
            return _FINE
        raise Refused(f"unknown subcommand '{as_text(words[1])}'. Try SCRIPT HELP.")

    def _config(self, words: list[bytes]) -> Answer:
        if words[1].upper() != b"GET" or len(words) < 3:
            raise Refused(f"unknown subcommand '{as_text(words[1])}'. Try CONFIG HELP.")
        settings = {"appendonly": "yes", "appendfsync": self._fsync(), "maxmemory": "0"}
        settings |= {"maxmemory-policy": "noeviction", "databases": "1", "dir": "/simulated"}
        return [
            each.encode()
            for name, value in settings.items()
            if any(fnmatch.fnmatchcase(name, as_text(pattern).lower()) for pattern in words[2:])
            for each in (name, value)
        ]

    def _info(self, words: list[bytes]) -> Answer:
        about = {"redis_version": "7.2.4", "redis_mode": "standalone", "run_id": self._run_id, "role": "master"}
        about |= {"loading": "0", "aof_enabled": "1", "maxmemory": "0", "maxmemory_policy": "noeviction"}
        return "".join(f"{name}:{value}\r\n" for name, value in about.items()).encode()


def _client(words: list[bytes]) -> Answer:
    if words[1].upper() in (b"SETNAME", b"SETINFO"):
        return _FINE
    raise Refused(f"unknown subcommand '{as_text(words[1])}'. Try CLIENT HELP.")


def _select(words: list[bytes]) -> Answer:
    if integer(words[1]) != 0:
        raise Refused("DB index is out of range")
    return _FINE


def _hello(words: list[bytes]) -> Answer:
    if words[1:] not in ([], [b"2"]):
        raise Refused("unsupported protocol version", "NOPROTO")
    return [b"server", b"redis", b"version", b"7.2.4", b"proto", 2, b"role", b"master"]
