"""The one door to Redis for code that blocks: every option that matters is set here, on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gpuboss.config import redact_url
from gpuboss.errors import ConfigError, SchedulerUnavailable

if TYPE_CHECKING:
    import redis

COMMAND_TIMEOUT_S = 5.0


def connect(url: str, timeout_s: float = COMMAND_TIMEOUT_S) -> redis.Redis:
    """A client for `url`; nothing is sent yet. Raises `ConfigError` for a URL that is none.

    Retries are off: a write whose answer was lost would be written twice. RESP2, because Valkey and Redis answer
    it in the same shapes; no driver info, because it costs a round trip for each connection.
    """
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options: dict[str, Any] = {
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "driver_info": None,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "client_name": "gpuboss",
    }
    try:
        client = redis.Redis.from_url(url, **options)
    except ValueError as error:
        raise ConfigError(
            f"{redact_url(url)} is no Redis URL: {error}; expected redis://, rediss:// or unix://"
        ) from None
    # The log is read as the flat field lists that Redis holds: a dict would hide a field that is there twice.
    for command in ("XRANGE", "XREVRANGE", "XREAD"):
        client.response_callbacks.pop(command, None)
    return client


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn a failure to reach Redis into `SchedulerUnavailable`, with the address that was tried."""
    import redis

    try:
        yield
    except redis.AuthenticationError as error:
        raise SchedulerUnavailable(
            f"Redis at {redact_url(url)} refuses the login ({error}); are user and password right?"
        ) from error
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise SchedulerUnavailable(
            f"Redis at {redact_url(url)} does not answer ({error}); is it running, and is the URL right?"
        ) from error
