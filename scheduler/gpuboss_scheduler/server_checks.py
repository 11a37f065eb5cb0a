"""What the Redis server must be like before anything is promised on it, and how durable that promise is."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gpuboss.errors import ConfigError

if TYPE_CHECKING:
    import redis

OLDEST = (7, 0)


def durability_of(client: redis.Redis) -> str:
    """`strict` (every write is synced before it is answered), `standard` (synced each second), or `none`.

    Raises `ConfigError` for a server that is too old, or that may evict the log.
    """
    info: Any = client.info()
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise ConfigError(f"the server is Redis {version}; at least {OLDEST[0]}.{OLDEST[1]} is needed (Valkey is fine)")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise ConfigError(
            f"the server's maxmemory-policy is {policy}: it could evict the whole log; set it to noeviction "
            "(redis-cli config set maxmemory-policy noeviction)"
        )
    if not info.get("aof_enabled"):
        return "none"
    return "strict" if _fsync(client) == "always" else "standard"


def run_id_of(client: redis.Redis) -> str:
    """What names this run of the server: after a restart it is another."""
    info: Any = client.info("server")
    return str(info.get("run_id", ""))


def renew_aof(client: redis.Redis) -> None:
    """Have the server write its AOF anew, in the background.

    Redis, and Valkey before the end of 2026, load an AOF that ends amid a transaction without it, but leave its
    beginning in the file: with the next restart it comes back, and swallows what was written behind it.
    """
    from redis.exceptions import ResponseError

    with suppress(ResponseError):  # it is being written already, or hosted servers forbid it
        client.bgrewriteaof()


def _fsync(client: redis.Redis) -> str:
    from redis.exceptions import ResponseError

    try:
        config: Any = client.config_get("appendfsync")
    except ResponseError:  # hosted servers forbid CONFIG: promise the weaker level
        return "everysec"
    return str(config.get("appendfsync", "everysec"))
