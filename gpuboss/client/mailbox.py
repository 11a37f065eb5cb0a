"""The reader: what the scheduler answers, from the moment before the first question on, and again after a gap."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gpuboss.client.answers import settle, take
from gpuboss.client.desk import Desk
from gpuboss.client.link import READ_MAX, Link, LinkLost, Mail, Refused, StreamId, Trouble
from gpuboss.client.pace import Backoff
from gpuboss.client.replies import read_reply

BEGINNING: StreamId = (0, 0)
SUSPICIOUS = 100  # with so many entries at once, others before them may have been trimmed already


class Mailbox:
    """Reads the reply stream of a service, of which other processes of it read their answers too.

    `on_read` is called after each batch with the ids of leases to release, `on_gap` when answers may have been
    missed, `on_lost` whenever the connection was lost.
    """

    def __init__(
        self,
        link: Link,
        desk: Desk,
        *,
        on_read: Callable[[list[str]], None],
        on_gap: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._link = link
        self._desk = desk
        self._on_read = on_read
        self._on_gap = on_gap
        self._on_lost = on_lost
        self._read_to = BEGINNING

    async def open(self) -> None:
        """Note where the stream ends now: all that is asked from here on is answered behind it."""
        _, self._read_to = await self._link.ends()

    async def run(self) -> None:
        """Read, for ever."""
        backoff = Backoff()
        connected = True
        while True:
            try:
                if not connected:
                    await self._link.ends()  # is it back?
                    connected = True
                    self._start_over()
                await self._link.open_reading()
                before = await self._read_on(backoff)
                await self._look_for_gap(before)
            except (LinkLost, Refused):  # the scheduler repairs a key of the wrong type
                connected = False
                self._on_lost()
                await backoff.sleep()

    async def _read_on(self, backoff: Backoff) -> StreamId:
        """Read on and on, without a turn of this task, until a read brings nothing, or so much that there may be a
        gap; returns where that read began. Raises `LinkLost` or `Refused`."""
        loop = asyncio.get_running_loop()
        doubt: asyncio.Future[StreamId] = loop.create_future()

        def told(mails: list[Mail] | Trouble) -> None:
            if doubt.done():
                return
            try:
                if isinstance(mails, LinkLost | Refused):
                    raise mails
                backoff.reset()
                before, waiting = self._read_to, len(self._desk.waiting)
                self._take_all(mails)
                if not mails or len(mails) >= SUSPICIOUS:
                    doubt.set_result(before)
                elif len(self._desk.waiting) < waiting:
                    loop.call_soon(ask)  # whoever waited for what came goes first
                else:
                    ask()
            except Exception as error:
                doubt.set_exception(error)

        def ask() -> None:
            if not self._link.read(self._read_to, told):
                told(LinkLost("the connection was lost"))

        ask()
        return await doubt

    def _take_all(self, mails: list[Mail]) -> None:
        now_s = time.monotonic()
        for mail in mails:
            self._take(mail, now_s)
        if len(mails) < READ_MAX:
            # A grant may be followed by its end in the next batch; only now all that there is has been read.
            self._on_read(settle(self._desk))

    def _take(self, mail: Mail, now_s: float) -> None:
        self._read_to = mail.id
        reply = read_reply(mail.fields)
        if reply is not None:
            take(self._desk, *reply, now_s)

    async def _look_for_gap(self, before: StreamId) -> None:
        """Whether the stream was replaced, or trimmed beyond where we were `before` the last read."""
        first, last = await self._link.ends()
        if last < self._read_to:
            self._start_over()
        elif first > before > BEGINNING:
            self._on_gap()

    def _start_over(self) -> None:
        self._read_to = BEGINNING
        self._on_gap()
