"""Who leads: a standby watches the leader's heartbeat with its own monotonic clock, and claims the next epoch.

Never a key with a TTL: that would follow the server's wall clock. And never without the fence that is in every
script: a leader that was paused does not know that it was replaced.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from gpuboss.core.machine import CORE_VERSION
from gpuboss.core.stream_ids import parse_id
from gpuboss.events import Event, LogLost, SchedulerElected
from gpuboss.keys import Keys
from gpuboss_scheduler.known_log import FENCE_GAP, Known
from gpuboss_scheduler.recovery import FIELDS_MOVED, Recovered
from gpuboss_scheduler.reign import LEADERSHIP_MS, Reign, stamped
from gpuboss_scheduler.scripts import Deposed, Script

if TYPE_CHECKING:
    import redis

LOOK_S = 0.1
RETURN_MS = 2_000  # how long whoever lives may take to be back at a server that is another one than before

assert RETURN_MS > LEADERSHIP_MS

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
    fence: str
    run_id: str
    core: str
    read_through: str = ""
    last_id: str = ""


def look(client: redis.Redis, keys: Keys) -> tuple[Seen, int]:
    """Who leads now, as the leader says itself, and the server's time in ms."""
    with client.pipeline(transaction=False) as both:
        both.hmget(keys.scheduler, list(Seen._fields))
        both.time()
        values, (seconds, microseconds) = cast(tuple[list[bytes | None], tuple[int, int]], both.execute())
    return Seen(*[(value or b"").decode() for value in values]), seconds * 1000 + microseconds // 1000


class Watch:
    """A standby's view of the leader: how long it has been silent."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._last: Seen | None = None
        self._since_s = 0.0

    def vacant(self, seen: Seen, run_id: Callable[[], str]) -> bool:
        """Whether nobody leads: nobody ever did, the last one resigned, or it has not beaten for too long.

        `run_id`: asks for the server's. On another server than the last leader's the log may have gone back to before
        somebody else led: who knows that is given the time to return, and claims at once.
        """
        if not seen.epoch or not seen.leader:
            return True
        now_s = self._monotonic()
        if self._last is None or (seen.epoch, seen.alive_until_ms) != (self._last.epoch, self._last.alive_until_ms):
            self._last, self._since_s = seen, now_s
        silent_ms = (now_s - self._since_s) * 1000
        return silent_ms > RETURN_MS or (silent_ms > LEADERSHIP_MS and seen.run_id in ("", run_id()))


class Claim(NamedTuple):
    """A reign that was won: the ids of its first entry and of the last fact that it found."""

    reign: Reign
    elected_id: str
    last_id: str


def claim(
    client: redis.Redis,
    keys: Keys,
    seen: Seen,
    recovered: Recovered,
    missed: Known | None,
    facts: Sequence[Event],
    about: dict[str, Any],
) -> Claim | None:
    """Begin the next reign; None if somebody else was faster, the leader beat after all, or what was read is gone.

    `recovered` is what the log says, `missed` what was known of it and is gone: a new incarnation begins then. `facts`
    are what the claimant finds beside that; `about` is what the hash shows.
    """
    epoch = max(recovered.epoch, int(seen.epoch or 0), 0 if missed is None else missed.epoch) + 1
    incarnation = "" if missed is not None else seen.incarnation or recovered.state.incarnation
    elected = SchedulerElected(
        scheduler=about["leader"],
        version=about["version"],
        core=CORE_VERSION,
        incarnation=incarnation or secrets.token_hex(8),
        lost=None if missed is None else LogLost(missed.last_id, max(missed.fence, recovered.fence) + FENCE_GAP),
        cursor=recovered.cursor if recovered.is_of_other_rules else None,
    )
    shown = about | {"incarnation": elected.incarnation, "core": CORE_VERSION}
    what_is_lost = "" if missed is None else "snapshot" if recovered.snapshot_is_ahead else "log"
    seq = recovered.seq + 1 + len(facts)
    arguments: list[Any] = [seen.epoch, seen.alive_until_ms, seen.seq, epoch, seq, LEADERSHIP_MS]
    # What stands undecided behind that, or comes in, may be deleted before whoever leads then has read it.
    no_loss_id = max(recovered.state.last_id, recovered.deleted_through, key=parse_id)
    arguments += [recovered.cursor, what_is_lost, recovered.read_through, no_loss_id, FIELDS_MOVED, 1 + len(facts)]
    for number, fact in enumerate([elected, *facts], start=recovered.seq + 1):
        arguments += [type(fact).__name__, stamped(fact, epoch, number)]
    arguments += [len(shown), *chain.from_iterable(shown.items())]
    if missed is not None:
        for entry in recovered.undecided:
            arguments += [entry.id, len(entry.fields), *entry.fields]
    try:
        elected_id, last_id = _claim(client, [keys.scheduler, keys.events, keys.snapshot], arguments)
    except Deposed:
        return None
    reign = Reign(client, keys, epoch, seq, last_id.decode(), about["leader"])
    if missed is None:
        reign.read_through = no_loss_id
    return Claim(reign, elected_id.decode(), last_id.decode())
