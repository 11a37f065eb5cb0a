"""Who leads: a standby watches the leader's heartbeat with its own monotonic clock, and claims the next epoch.

Never a key with a TTL: that would follow the server's wall clock. And never without the fence that is in every
script: a leader that was paused does not know that it was replaced.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from gpuboss.core.machine import CORE_VERSION
from gpuboss.events import SchedulerElected
from gpuboss.keys import Keys
from gpuboss_scheduler.reign import LEADERSHIP_MS, Reign, stamped
from gpuboss_scheduler.scripts import Deposed, Script

if TYPE_CHECKING:
    import redis

LOOK_S = 0.1

_claim = Script("claim")


class Seen(NamedTuple):
    """The hash `gpuboss:scheduler` as far as an election goes; empty strings where there was none yet."""

    epoch: str
    alive_until_ms: str
    seq: str
    cursor: str
    leader: str
    incarnation: str
    version: str


def look(client: redis.Redis, keys: Keys) -> Seen:
    """Who leads now, as the leader says itself."""
    values = cast(list[bytes | None], client.hmget(keys.scheduler, list(Seen._fields)))
    return Seen(*[(value or b"").decode() for value in values])


class Watch:
    """A standby's view of the leader: how long it has been silent."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._last: Seen | None = None
        self._since_s = 0.0

    def vacant(self, seen: Seen) -> bool:
        """Whether nobody leads: nobody ever did, the last one resigned, or it has not beaten for too long."""
        if not seen.epoch or not seen.leader:
            return True
        now_s = self._monotonic()
        if self._last is None or (seen.epoch, seen.alive_until_ms) != (self._last.epoch, self._last.alive_until_ms):
            self._last, self._since_s = seen, now_s
        return now_s - self._since_s > LEADERSHIP_MS / 1000


class Claim(NamedTuple):
    """A reign that was won: the id of its first entry, and the server's time then."""

    reign: Reign
    elected_id: str
    server_ms: int


def claim(
    client: redis.Redis,
    keys: Keys,
    seen: Seen,
    *,
    epoch: int,
    seq: int,
    cursor: str,
    incarnation: str,
    about: dict[str, Any],
) -> Claim | None:
    """Begin the next reign; None if somebody else was faster, or the leader beat after all.

    `epoch` and `seq` are the highest in the log, `cursor` the last entry decided, `incarnation` the log's own name,
    empty if it has none yet; `about` is what the hash shows.
    """
    new_epoch = max(epoch, int(seen.epoch or 0)) + 1
    incarnation = seen.incarnation or incarnation or secrets.token_hex(8)
    elected = SchedulerElected(
        scheduler=about["leader"], version=about["version"], core=CORE_VERSION, incarnation=incarnation
    )
    shown = about | {"incarnation": incarnation, "core": CORE_VERSION}
    arguments: list[Any] = [seen.epoch, seen.alive_until_ms, seen.seq, new_epoch, seq + 1]
    arguments += [stamped(elected, new_epoch, seq + 1), LEADERSHIP_MS, cursor]
    for field, value in shown.items():
        arguments += [field, value]
    try:
        elected_id, server_ms = _claim(client, [keys.scheduler, keys.events], arguments)
    except Deposed:
        return None
    return Claim(Reign(client, keys, new_epoch, seq + 1), elected_id.decode(), int(server_ms))
