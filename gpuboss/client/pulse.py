"""The second heart: keeps a session alive while its event loop is busy computing.

A model that loads or generates in the loop's own thread stops everything in it, the heartbeat too, maybe for longer
than a session TTL. The process is alive then, and its memory on the card: its lease must not go to somebody else.
So a thread watches whether the heartbeat is late, and beats in its place, over a connection of its own, which it
opens when it is first needed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Set
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from redis.exceptions import RedisError

from gpuboss.client.desk import Desk
from gpuboss.client.leadership import BEATS_PER_TTL, TRUSTED
from gpuboss.client.link import BEAT, DEFAULT_SESSION_TTL_MS, Look, look_of
from gpuboss.connection import connect
from gpuboss.core.addresses import session_member
from gpuboss.keys import Keys

if TYPE_CHECKING:
    import redis

LATE = 0.4  # of a session TTL, since the last beat that counts
AGAIN = 0.2  # of a session TTL, until the next try
PATIENCE_S = 2.0
assert 1 / BEATS_PER_TTL < LATE, "it leaves the beating to a heartbeat that is in time"
assert LATE + AGAIN < TRUSTED, "it has two tries before the leases are given up"


class Pulse:
    """Beats for the sessions that the heartbeat beats for, `sessions()`, and the desk's, whenever that is late."""

    def __init__(self, url: str, keys: Keys, desk: Desk, sessions: Callable[[], Set[str]]) -> None:
        self._url = url
        self._keys = keys
        self._desk = desk
        self._sessions = sessions
        self._stopped = threading.Event()

    def start(self) -> None:
        """Look after the heartbeat, which has beaten once, in a thread that ends with the process at the latest."""
        threading.Thread(target=self._run, name="gpuboss pulse", daemon=True).start()

    def stop(self) -> None:
        """Not any more, from now on; the thread itself ends a little later."""
        self._stopped.set()

    def _run(self) -> None:
        client: redis.Redis | None = None
        while not self._stopped.wait(self._pause_s()):
            if self._due_in_s() <= 0:
                client = client or connect(self._url, timeout_s=PATIENCE_S)
                with suppress(RedisError, OSError):  # the next round tries again; the heartbeat tells who must know
                    self._beat(client)
        if client is not None:
            client.close()

    def _beat(self, client: redis.Redis) -> None:
        at_s = time.monotonic()
        answers = []
        for session in sorted({self._desk.session, *self._sessions()}):
            member = session_member(self._desk.service, session)
            answers.append(
                client.eval(BEAT, 2, self._keys.sessions, self._keys.scheduler, member, DEFAULT_SESSION_TTL_MS)
            )
        self._desk.trust.prolong(look_of(at_s, cast("list[object]", answers[0])), time.monotonic())

    def _due_in_s(self) -> float:
        look = self._last()
        return look.at_s + LATE * look.session_ttl_ms / 1000 - time.monotonic()

    def _pause_s(self) -> float:
        due_in_s = self._due_in_s()
        return due_in_s if due_in_s > 0 else AGAIN * self._last().session_ttl_ms / 1000

    def _last(self) -> Look:
        look = self._desk.trust.look
        assert look is not None, "the heartbeat was opened before this started"
        return look
