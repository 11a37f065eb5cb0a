"""What the Redis server must be like before anything is promised on it, and how durable that promise is."""

from __future__ import annotations

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


def _fsync(client: redis.Redis) -> str:
    from redis.exceptions import ResponseError

    try:
        config: Any = client.config_get("appendfsync")
    except ResponseError:  # hosted servers forbid CONFIG: promise the weaker level
        return "everysec"
    return str(config.get("appendfsync", "everysec"))
