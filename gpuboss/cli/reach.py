"""Which Redis and which namespace a verb works on, and the way there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    import redis

    from gpuboss.keys import Keys
    from gpuboss.log import LogReader

SILENCE_MS = 5_000  # this long after its alive_until_ms nobody leads


class Place(NamedTuple):
    """One namespace in one Redis."""

    client: redis.Redis
    keys: Keys
    url: str

    @property
    def log(self) -> LogReader:
        """The log that is there."""
        from gpuboss.log import LogReader

        return LogReader(self.client, self.keys)

    def now_ms(self) -> int:
        """The server's clock."""
        seconds, microseconds = self.client.time()
        return seconds * 1000 + microseconds // 1000

    def scheduler(self) -> dict[str, Any]:
        """What the scheduler's hash says, numbers as numbers; empty if none ever led."""
        return scheduler_fields(cast(dict[bytes, bytes], self.client.hgetall(self.keys.scheduler)))

    def require_leader(self) -> None:
        """Raises `SchedulerUnavailable` if nobody leads."""
        from gpuboss.errors import SchedulerUnavailable

        if not leads(self.scheduler(), self.now_ms()):
            raise SchedulerUnavailable("no scheduler leads, so nobody would answer; nothing was appended to the log")


@contextmanager
def reach(redis_url: str | None, namespace: str | None, config_file: str | None) -> Iterator[Place]:
    """The place that options, environment and config name; a failure to reach it becomes one clear error.

    Raises `ConfigError`, and `SchedulerUnavailable` also for what happens while the place is used.
    """
    import redis

    from gpuboss.config import load_config, redact_url
    from gpuboss.connection import connect, explained
    from gpuboss.errors import SchedulerUnavailable
    from gpuboss.keys import Keys

    arguments = {"gpu.redis_url": redis_url, "gpu.namespace": namespace}
    gpu = load_config(config_file, arguments=arguments).gpu
    with connect(gpu.redis_url) as client, explained(gpu.redis_url):
        try:
            yield Place(client, Keys(gpu.namespace), gpu.redis_url)
        except redis.ResponseError as error:  # no right to a command, a key of another type, out of memory
            raise SchedulerUnavailable(f"Redis at {redact_url(gpu.redis_url)} refuses: {error}") from error


def scheduler_fields(stored: dict[bytes, bytes]) -> dict[str, Any]:
    """The scheduler's hash as an object."""
    fields: dict[str, Any] = {}
    for name, value in sorted(stored.items()):
        key, text = name.decode("utf-8", "backslashreplace"), value.decode("utf-8", "backslashreplace")
        is_number = key in ("epoch", "seq", "core") or key.endswith("_ms")
        fields[key] = int(text) if is_number and text.isascii() and text.isdigit() and len(text) < 20 else text
    return fields


def leads(scheduler: dict[str, Any], now_ms: int) -> bool:
    """Whether somebody leads, by the server's clock."""
    alive_until_ms = scheduler.get("alive_until_ms")
    return isinstance(alive_until_ms, int) and alive_until_ms > 0 and now_ms <= alive_until_ms + SILENCE_MS
