"""The Lua scripts by which the scheduler writes: each one checks that the writer still leads, and is atomic."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import redis


class Deposed(Exception):
    """Another scheduler leads: this one may write nothing more, and stands by."""


class ClockAhead(Exception):
    """The server's clock shows `server_ms`, later than what was to be written may stand in the log: it was not."""

    def __init__(self, server_ms: int) -> None:
        super().__init__(f"the server's clock shows {server_ms}")
        self.server_ms = server_ms


class Script:
    """One script, called by its SHA and loaded again where the server does not know it (it forgets at restart)."""

    def __init__(self, name: str) -> None:
        from hashlib import sha1

        self.text = files("gpuboss_scheduler").joinpath("lua", f"{name}.lua").read_text()
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: redis.Redis, keys: list[str], arguments: list[Any]) -> list[Any]:
        """Run it. Raises `Deposed` where it finds another epoch than the caller's, and `ClockAhead`."""
        from redis.exceptions import NoScriptError

        try:
            answer: Any = client.evalsha(self.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            answer = client.eval(self.text, len(keys), *keys, *arguments)
        return check(answer)


def check(answer: list[Any]) -> list[Any]:
    """The answer of a script without its status. Raises `Deposed` and `ClockAhead`."""
    if answer[0] in (b"FENCED", b"STALE", b"LOST"):
        raise Deposed(b" ".join(answer).decode())
    if answer[0] == b"AHEAD":
        raise ClockAhead(int(answer[1]))
    return answer[1:]
