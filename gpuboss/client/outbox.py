"""The flusher: whatever has gathered goes to the log in one pipeline, again and again until it is there."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from itertools import islice

from gpuboss.client.link import Full, Link, LinkLost, Outcome, Refused, Trouble, encoded
from gpuboss.client.pace import Backoff
from gpuboss.events import Event, LeaseRequested

BATCH_MAX = 500

_log = logging.getLogger("gpuboss.client")

Tell = Callable[[Refused | None], object]


class Letter:
    """One event on its way."""

    __slots__ = ("_tell", "beyond", "data", "event", "is_delivered", "kind")

    def __init__(self, event: Event) -> None:
        self.event = event
        self.kind = type(event).__name__
        self.data = encoded(event)
        self.is_delivered = False
        self.beyond = False  # it is to be written although Redis is full
        self._tell: list[Tell] = []

    def when_delivered(self, tell: Tell) -> None:
        """Call `tell` once Redis has it (with None), or will never take it (with its reason). It must not have been
        delivered yet."""
        self._tell.append(tell)

    def deliver(self, refused: Refused | None) -> None:
        """For the outbox: it is there, or refused."""
        self.is_delivered = True
        for tell in self._tell:
            tell(refused)


class Outbox:
    """Events on their way to the log, in their order, one pipeline at a time. `on_lost` is called whenever the
    connection was lost.

    Sending is done where an event is posted and where an answer comes in; the task only steps in where that fails.
    """

    def __init__(self, link: Link, on_lost: Callable[[], None]) -> None:
        self._link = link
        self._on_lost = on_lost
        self._letters: deque[Letter] = deque()
        self._under_way: list[Letter] = []  # the first of the letters
        self._stuck = asyncio.Event()
        self._backoff = Backoff()

    def post(self, event: Event) -> Letter:
        """Send an event. It is never lost on the way as long as the client is open."""
        letter = Letter(event)
        self._letters.append(letter)
        self._flush()
        return letter

    def pending(self) -> list[Event]:
        """What is not known to have arrived."""
        return [letter.event for letter in list(self._letters)]

    async def drained(self) -> None:
        """Wait until everything that was posted before is delivered."""
        if self._letters:
            drained = asyncio.Event()
            self._letters[-1].when_delivered(lambda _: drained.set())
            await drained.wait()

    async def run(self) -> None:
        """Connect again where the connection was lost, for ever."""
        while True:
            await self._stuck.wait()
            await self._backoff.sleep()
            try:
                await self._link.open_commands()
            except (LinkLost, Refused):
                self._on_lost()
            else:
                self._stuck.clear()
                self._flush()

    def _flush(self) -> None:
        if self._under_way or not self._letters or self._stuck.is_set():
            return
        self._under_way = list(islice(self._letters, BATCH_MAX))
        entries = [(letter.kind, letter.data, letter.beyond) for letter in self._under_way]
        if not self._link.append(entries, self._answered):
            self._get_stuck()

    def _answered(self, results: list[Outcome] | Trouble) -> None:
        if isinstance(results, LinkLost | Refused):
            self._get_stuck()
            return
        batch, self._under_way = self._under_way, []
        kept = []
        is_lost = False
        for letter, result in zip(batch, results, strict=True):
            self._letters.popleft()
            # A request is better refused by a full server than kept waiting; nobody is served by a refused release.
            is_full = isinstance(result, Full) and not isinstance(letter.event, LeaseRequested)
            if is_full or isinstance(result, LinkLost):
                is_lost = is_lost or letter.beyond or not is_full
                letter.beyond = letter.beyond or is_full
                kept.append(letter)
                continue
            if result is not None:
                _log.error("Redis refuses %s: %s", letter.kind, result)
            letter.deliver(result)
        self._letters.extendleft(reversed(kept))
        if is_lost:
            self._get_stuck()
        else:
            self._backoff.reset()
            self._flush()

    def _get_stuck(self) -> None:
        """The same entries once more, after a while: the scheduler knows a lease_id that it has seen."""
        self._under_way = []
        self._stuck.set()
        self._on_lost()
