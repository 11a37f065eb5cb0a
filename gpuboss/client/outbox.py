"""The flusher: whatever has gathered goes to the log in one pipeline, again and again until it is there."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

from gpuboss.client.link import Link, LinkLost, Refused, encoded
from gpuboss.client.pace import Backoff
from gpuboss.events import Event

BATCH_MAX = 500

_log = logging.getLogger("gpuboss.client")


class Letter:
    """One event on its way. `delivered` is done once Redis has it (None), or will never take it (`Refused`)."""

    __slots__ = ("data", "delivered", "event", "kind")

    def __init__(self, event: Event) -> None:
        self.event = event
        self.kind = type(event).__name__
        self.data = encoded(event)
        self.delivered: asyncio.Future[Refused | None] = asyncio.get_running_loop().create_future()


class Outbox:
    """Events on their way to the log, in their order. `on_lost` is called whenever the connection was lost."""

    def __init__(self, link: Link, on_lost: Callable[[], None]) -> None:
        self._link = link
        self._on_lost = on_lost
        self._letters: deque[Letter] = deque()
        self._posted = asyncio.Event()

    def post(self, event: Event) -> Letter:
        """Send an event, soon. It is never lost on the way as long as the client is open."""
        letter = Letter(event)
        self._letters.append(letter)
        self._posted.set()
        return letter

    def pending(self) -> list[Event]:
        """What is not known to have arrived."""
        return [letter.event for letter in list(self._letters)]

    async def drained(self) -> None:
        """Wait until everything that was posted before is delivered."""
        if self._letters:
            await asyncio.wait([letter.delivered for letter in self._letters])

    async def run(self) -> None:
        """Send what is posted, for ever."""
        backoff = Backoff()
        while True:
            await self._posted.wait()
            self._posted.clear()
            while self._letters:
                try:
                    await self._flush()
                    backoff.reset()
                except (LinkLost, Refused):
                    # The same entries once more: the scheduler knows a lease_id that it has seen.
                    self._on_lost()
                    await backoff.sleep()

    async def _flush(self) -> None:
        batch = list(islice(self._letters, BATCH_MAX))
        results = await self._link.append([(letter.kind, letter.data) for letter in batch])
        for letter, result in zip(batch, results, strict=True):
            if not isinstance(result, LinkLost):
                _deliver(letter, result)
        if undelivered := [letter for letter in batch if not letter.delivered.done()]:
            self._keep(undelivered, len(batch))
            raise next(result for result in results if isinstance(result, LinkLost))
        self._keep([], len(batch))

    def _keep(self, letters: Iterable[Letter], of: int) -> None:
        """Of the first letters, `of` in number, keep only these."""
        for _ in range(of):
            self._letters.popleft()
        self._letters.extendleft(reversed(list(letters)))


def _deliver(letter: Letter, result: Refused | None) -> None:
    if result is not None:
        _log.error("Redis refuses %s: %s", letter.kind, result)
    if not letter.delivered.done():
        letter.delivered.set_result(result)
