"""One session of a service: the tasks that carry its requests out and its answers in, from open to close."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

import anyio

from gpuboss.client.desk import Desk, give_up
from gpuboss.client.goodbye import say_goodbye
from gpuboss.client.heartbeat import Heartbeat
from gpuboss.client.link import Link, LinkLost, Refused
from gpuboss.client.mailbox import Mailbox
from gpuboss.client.outbox import Letter, Outbox
from gpuboss.client.pace import Alarm
from gpuboss.client.pulse import Pulse
from gpuboss.client.retelling import Retelling
from gpuboss.client.termination import add_goodbye, drop_goodbye
from gpuboss.core.addresses import reply_address, session_member
from gpuboss.errors import GPUBossError, SchedulerUnavailable
from gpuboss.events import LeaseReleased
from gpuboss.keys import Keys

CLOSE_S = 3.0  # how long closing may take to deliver what is still to be said

_log = logging.getLogger("gpuboss.client")


def mint() -> str:
    """A new id of a lease or a session."""
    return secrets.token_hex(8)


class Session:
    """Open from `open` to `close`; its tasks live in a group of their own, whatever task opens or closes it."""

    def __init__(self, url: str, keys: Keys, service: str, instance: str | None, connect_timeout_s: float) -> None:
        self.desk = Desk(service, mint)
        self.over: GPUBossError | None = None  # why nothing can be asked here any more
        self._link = Link(url, keys, reply_address(service, instance), connect_timeout_s)
        self._clock = Alarm()
        self.heartbeat = Heartbeat(
            self._link,
            self.desk,
            connect_timeout_s,
            on_outage=lambda error: self.take_back(self.desk.fail_waiting(error)),
            on_incarnation=lambda incarnation: self._retelling.to(incarnation),
            on_leader=lambda: self._retelling.to_leader(),
            on_silence=self._stop_trusting,
            on_taken=self._clock.ring,
        )
        self.outbox = Outbox(self._link, on_lost=self.heartbeat.ring)
        self._retelling = Retelling(self.desk, self.outbox)
        self._mailbox = Mailbox(
            self._link, self.desk, on_read=self._on_read, on_gap=self._on_gap, on_lost=self.heartbeat.ring
        )
        self._goodbye = partial(say_goodbye, url, keys, self.desk, self.outbox)
        self._pulse = Pulse(
            url, keys, self.desk, sessions=lambda: self.heartbeat.sessions, told=lambda: self._retelling.told
        )
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, and start. Raises `SchedulerUnavailable` if Redis does not answer in time."""
        try:
            await self.heartbeat.open()
            await self._mailbox.open()
        except (LinkLost, Refused) as error:
            await self._link.close()
            raise SchedulerUnavailable(f"Redis at {self._link.where} does not serve this client: {error}") from error
        except BaseException:
            await self._link.close()
            raise
        self._task = asyncio.create_task(self._run(), name=f"gpuboss {self.desk.service}")
        self._pulse.start()
        add_goodbye(self._goodbye)

    async def close(self) -> None:
        """Give everything back and end the session; takes `CLOSE_S` at most, also where Redis does not answer."""
        drop_goodbye(self._goodbye)
        self._pulse.stop()
        if self.over is None:
            self._end(GPUBossError("this client is closed; open another with `async with GPUBoss(...)`"))
        self._closing.set()
        if self._task is not None:
            # The session's own task does the rest, so that no cancellation of the caller's can cut it short.
            with anyio.CancelScope(shield=True):
                await asyncio.wait([self._task])

    def take_back(self, lease_ids: Iterable[str]) -> list[Letter]:
        """Release leases and requests: they are off the desk at once, and on their way to the log."""
        letters = []
        for lease_id in lease_ids:
            self.desk.leave(lease_id)
            self.desk.given_up.pop(lease_id, None)
            letters.append(self.outbox.post(LeaseReleased(lease_id, self.desk.service)))
        return letters

    async def _run(self) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                for work in (self.outbox.run, self._mailbox.run, self.heartbeat.run, self._keep_time):
                    tasks.start_soon(work)
                await self._closing.wait()
                with anyio.move_on_after(CLOSE_S), suppress(LinkLost, Refused):
                    await self.outbox.drained()
                    for session in sorted(self.heartbeat.sessions | {self.desk.session}):
                        await self._link.forget(session_member(self.desk.service, session))
                tasks.cancel_scope.cancel()
            if unsaid := self.outbox.pending():
                _log.warning("closed with %d events undelivered: the session TTL frees what is left", len(unsaid))
        except Exception as error:
            _log.exception("the client stopped")
            self._end(GPUBossError(f"the client stopped, because of a bug in it: {error!r}"))
        finally:
            with anyio.move_on_after(1.0, shield=True):
                await self._link.close()

    def _end(self, why: GPUBossError) -> None:
        self.over = why
        self.heartbeat.end()
        self.take_back(self.desk.fail_waiting(why) + self.desk.lose_all("closed") + list(self.desk.given_up))

    async def _keep_time(self) -> None:
        """End leases by our own clock: the scheduler's word may not reach us."""
        trust = self.desk.trust
        while True:
            now_s = time.monotonic()
            if trust.is_over(now_s):
                self._stop_trusting()
            self.desk.expire(now_s)
            due_s = [at_s for at_s in (trust.until_s(), self.desk.next_expiry_s()) if at_s is not None]
            pause_s = min((at_s - now_s for at_s in due_s if at_s > now_s), default=None)
            await self._clock.sleep(pause_s)

    def _stop_trusting(self) -> None:
        """The session may be dead before we hear of it: give up what it holds, before it can be granted to others.

        Who waits goes on waiting under it. New requests go under a new one, which nobody can have lost.
        """
        if self.desk.session in self.heartbeat.sessions:
            self.desk.renew_session()
        self._retelling.answers_missed = True  # grants are passed over until a beat is taken
        for lease_id in list(self.desk.held):
            give_up(self.desk, lease_id, "session_lost")
        self.heartbeat.follow()

    def _on_read(self, unwanted: list[str]) -> None:
        self.take_back(unwanted)
        self._retelling.of_late_grants()
        self.heartbeat.follow()
        if self.desk.next_expiry_s() is not None:
            self._clock.ring()

    def _on_gap(self) -> None:
        self._retelling.answers_missed = True
        self.heartbeat.ring()
