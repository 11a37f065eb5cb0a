"""The Lua scripts by which the scheduler writes: each one checks that the writer still leads, and is atomic."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import redis


class Deposed(Exception):
    """Another scheduler leads: this one may write nothing more, and stands by."""


class Script:
    """One script, called by its SHA and loaded again where the server does not know it (it forgets at restart)."""

    def __init__(self, name: str) -> None:
        from hashlib import sha1

        self.text = files("gpuboss_scheduler").joinpath("lua", f"{name}.lua").read_text()
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: redis.Redis, keys: list[str], arguments: list[Any]) -> list[Any]:
        """Run it. Raises `Deposed` where it finds another epoch than the caller's."""
        from redis.exceptions import NoScriptError

        try:
            answer: Any = client.evalsha(self.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            answer = client.eval(self.text, len(keys), *keys, *arguments)
        return check(answer)


def check(answer: list[Any]) -> list[Any]:
    """The answer of a script without its status. Raises `Deposed`."""
    if answer[0] in (b"FENCED", b"STALE", b"LOST"):
        raise Deposed(b" ".join(answer).decode())
    return answer[1:]
