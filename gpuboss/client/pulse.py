"""The second heart: keeps a session alive while its event loop is busy computing.

A model that loads or generates in the loop's own thread stops everything in it, the heartbeat too, maybe for longer
than a session TTL. The process is alive then, and its memory on the card: its lease must not go to somebody else.
So a thread watches whether the heartbeat is late, and beats in its place, over a connection of its own, which it
opens when it is first needed. Where such a beat finds a log that was begun anew, it reasserts what is held, too: by the
time that the loop goes on, that memory could be granted to others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Set
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from redis.exceptions import RedisError

from gpuboss.client.desk import Desk, reassertion
from gpuboss.client.leadership import BEATS_PER_TTL, TRUSTED
from gpuboss.client.link import BEAT, DEFAULT_SESSION_TTL_MS, Look, encoded, look_of
from gpuboss.connection import connect
from gpuboss.core.addresses import session_member
from gpuboss.full import APPEND
from gpuboss.keys import Keys

if TYPE_CHECKING:
    import redis

LATE = 0.4  # of a session TTL, since the last beat that counts
AGAIN = 0.2  # of a session TTL, until the next try
PATIENCE_S = 2.0
assert 1 / BEATS_PER_TTL < LATE, "it leaves the beating to a heartbeat that is in time"
assert LATE + AGAIN < TRUSTED, "it has two tries before the leases are given up"


class Pulse:
    """Beats for the sessions that the heartbeat beats for, `sessions()`, and the desk's, whenever that is late.

    `told()` is the incarnation of the log that the loop has told of what is held. The thread only reads the desk.
    """

    def __init__(
        self, url: str, keys: Keys, desk: Desk, *, sessions: Callable[[], Set[str]], told: Callable[[], str]
    ) -> None:
        self._url = url
        self._keys = keys
        self._desk = desk
        self._sessions = sessions
        self._told = told
        self._told_here: dict[str, set[str]] = {}  # the lease_ids that this thread reasserted, by incarnation
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
        look = look_of(at_s, cast("list[object]", answers[0]))
        self._reassert(client, look.incarnation)
        self._desk.trust.prolong(look, time.monotonic())

    def _reassert(self, client: redis.Redis, incarnation: str) -> None:
        """Tell the log what is held, unless the loop did; it says so once more when it can, which changes nothing.

        Raises `RedisError` or `OSError` where that fails: a beat must not prolong the trust in what is not reasserted.
        """
        if incarnation in ("", self._told()) or self._desk.trust.is_over(time.monotonic()):
            return
        told = self._told_here.get(incarnation, set())
        reasserted = [reassertion(self._desk.service, held) for held in list(self._desk.held.values())]
        untold = [event for event in reasserted if event.lease_id not in told]
        if untold:
            pipeline = client.pipeline(transaction=False)
            for event in untold:
                pipeline.eval(APPEND, 1, self._keys.events, "LeaseReasserted", encoded(event))
            pipeline.execute()
        self._told_here = {incarnation: told.union(event.lease_id for event in untold)}

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
