"""The second heart: keeps a session alive while its event loop is busy computing.

A model that loads or generates in the loop's own thread stops everything in it, the heartbeat too, maybe for longer
than a session TTL. The process is alive then, and its memory on the card: its lease must not go to somebody else.
So a thread looks now and then whether the heartbeat is late, and beats in its place, over a connection of its own,
which it opens when it is first needed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from gpuboss.client.desk import Desk
from gpuboss.client.link import BEAT, DEFAULT_SESSION_TTL_MS, Look
from gpuboss.connection import connect
from gpuboss.core.addresses import session_member
from gpuboss.keys import Keys

if TYPE_CHECKING:
    import redis

LATE = 0.5  # of a session TTL; the heartbeat beats at a third of it
LOOKS_PER_TTL = 4
PATIENCE_S = 2.0


class Pulse:
    """Beats for the desk's session whenever the last beat of the loop, seen in `last_look()`, is late."""

    def __init__(self, url: str, keys: Keys, desk: Desk, last_look: Callable[[], Look | None]) -> None:
        self._url = url
        self._keys = keys
        self._desk = desk
        self._last_look = last_look
        self._stopped = threading.Event()

    def start(self) -> None:
        """Look after the heartbeat, in a thread that ends with the process at the latest."""
        threading.Thread(target=self._run, name="gpuboss pulse", daemon=True).start()

    def stop(self) -> None:
        """Not any more, from now on; the thread itself ends a little later."""
        self._stopped.set()

    def _run(self) -> None:
        client: redis.Redis | None = None
        while not self._stopped.wait(self._ttl_s() / LOOKS_PER_TTL):
            look = self._last_look()
            if look is not None and time.monotonic() - look.at_s > self._ttl_s() * LATE:
                client = client or connect(self._url, timeout_s=PATIENCE_S)
                with suppress(RedisError, OSError):  # the next round tries again; the heartbeat tells who must know
                    self._beat(client)
        if client is not None:
            client.close()

    def _beat(self, client: redis.Redis) -> None:
        member = session_member(self._desk.service, self._desk.session)
        client.eval(BEAT, 2, self._keys.sessions, self._keys.scheduler, member, DEFAULT_SESSION_TTL_MS)

    def _ttl_s(self) -> float:
        look = self._last_look()
        return (DEFAULT_SESSION_TTL_MS if look is None else look.session_ttl_ms) / 1000
