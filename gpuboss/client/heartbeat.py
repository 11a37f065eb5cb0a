"""The heartbeat: keeps the session alive, and sees whether Redis answers and a scheduler leads."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio

from gpuboss.client.desk import Desk, sessions_in_use
from gpuboss.client.leadership import HANDOVER_S, Leadership
from gpuboss.client.link import Link, LinkLost, Look, Refused
from gpuboss.client.pace import Alarm, Backoff
from gpuboss.core.addresses import session_member
from gpuboss.errors import SchedulerUnavailable
from gpuboss.full import takes_no_writes

OUTAGE_S = 10.0  # how long those who wait bear with a Redis that does not answer


class Heartbeat:
    """A sign of life for each session of which something is open.

    `on_outage` is called with the error for all who wait, `on_leader` after each beat that saw a leader. `on_taken` is
    called after each beat that was taken, and before that `on_silence`, if there was none for so long that nothing that
    was held may be relied on. Behind them `on_incarnation` is called with the name of the log, whether somebody leads
    or not: such a beat prolongs trust, so a log that is new must be told at once what is held.
    """

    def __init__(
        self,
        link: Link,
        desk: Desk,
        connect_timeout_s: float,
        *,
        on_outage: Callable[[SchedulerUnavailable], object],
        on_incarnation: Callable[[str], None],
        on_leader: Callable[[], None],
        on_silence: Callable[[], None],
        on_taken: Callable[[], None],
    ) -> None:
        self._link = link
        self._desk = desk
        self._connect_timeout_s = connect_timeout_s
        self._on_outage = on_outage
        self._on_incarnation = on_incarnation
        self._on_leader = on_leader
        self._on_silence = on_silence
        self._on_taken = on_taken
        self.sessions: frozenset[str] = frozenset()  # that Redis knows of
        self._alarm = Alarm()
        self._leadership = Leadership()
        self._failure: LinkLost | Refused | None = None
        self._failing_since_s = 0.0
        self._next_look = anyio.Event()
        self._is_over = False

    def ring(self) -> None:
        """Something may be different: look now."""
        self._alarm.ring()

    async def open(self) -> None:
        """The first beat. Raises `SchedulerUnavailable` if Redis does not answer in time."""
        backoff = Backoff()
        with anyio.move_on_after(self._connect_timeout_s):
            while not await self._beat() and not isinstance(self._failure, Refused):
                await backoff.sleep()
        if self._leadership.look is None:
            raise self._trouble()
        self._tell(time.monotonic())

    async def run(self) -> None:
        """Beat, for ever."""
        backoff = Backoff()
        while True:
            if self._failure is None:
                backoff.reset()
                await self._alarm.sleep(self._leadership.pause_s(time.monotonic()))
            else:
                await backoff.sleep()
            await self._beat()
            self._tell(time.monotonic())

    async def ready(self) -> None:
        """Return once it is known that somebody leads, or when the session is over.

        Raises `SchedulerUnavailable`, within the connect time-out.
        """
        if self._failure is None and self._leadership.is_known(time.monotonic()):
            return  # as nearly always, and then what follows costs more than the rest
        patience_s = self._connect_timeout_s
        if self._failure is None:
            patience_s = max(patience_s, HANDOVER_S + 0.5)
        self.ring()
        with anyio.move_on_after(patience_s):
            while not (self._is_over or (self._failure is None and self._leadership.is_known(time.monotonic()))):
                await self._next_look.wait()
                if self._failure is None and self._leadership.is_vacant(time.monotonic()):
                    raise self._trouble()
            return
        raise self._trouble()

    def end(self) -> None:
        """The session is over: nobody needs to wait for a leader any more."""
        self._is_over = True
        self._next_look.set()

    def follow(self) -> None:
        """Beat for the new session at once, if the old one was lost."""
        if self._desk.session not in self.sessions:
            self.ring()

    def _trouble(self) -> SchedulerUnavailable:
        look = self._leadership.look
        if self._failure is not None or look is None:
            return _unreachable(self._link.where, self._failure)
        return _leaderless(self._link.where, look)

    async def _beat(self) -> bool:
        desk, sessions = self._desk, sessions_in_use(self._desk)
        try:
            looks = [await self._link.beat(session_member(desk.service, session)) for session in sessions]
            look = looks[0]  # the first that was sent
            self._taken(look)
            if look.added and sessions[0] in self.sessions and desk.is_empty:
                # Silent for too long, it was dropped. While it has leases or requests, they will say if it is lost.
                desk.renew_session()
            if look.incarnation:
                self._on_incarnation(look.incarnation)
            known, in_use = self.sessions.union(sessions), sessions_in_use(desk)
            for session in sorted(known.difference(in_use)):
                await self._link.forget(session_member(desk.service, session))
            self.sessions = known.intersection(in_use)
            self.follow()
        except (LinkLost, Refused) as error:
            if self._failure is None:
                self._failing_since_s = time.monotonic()
            self._failure = error
            return False
        self._failure = None
        self._leadership.note(look)
        looked, self._next_look = self._next_look, anyio.Event()
        looked.set()
        return True

    def _taken(self, look: Look) -> None:
        if not self._desk.trust.prolong(look, time.monotonic()):
            self._on_silence()  # nobody has looked since; this beat must not hide that there was a gap
            self._desk.trust.begin(look)
        self._on_taken()

    def _tell(self, now_s: float) -> None:
        if self._failure is not None:
            if now_s - self._failing_since_s > OUTAGE_S:
                self._on_outage(self._trouble())
        elif self._leadership.is_vacant(now_s):
            self._on_outage(self._trouble())
        elif self._leadership.is_there(now_s):
            self._on_leader()


def _unreachable(where: str, failure: LinkLost | Refused | None) -> SchedulerUnavailable:
    if (full := takes_no_writes(str(failure))) is not None:
        return SchedulerUnavailable(f"Redis at {where} takes no writes: {full}")
    if isinstance(failure, Refused):
        return SchedulerUnavailable(
            f"Redis at {where} refuses this client ({failure}); check the user and password in redis_url, and what "
            "that user may do"
        )
    return SchedulerUnavailable(
        f"Redis at {where} does not answer ({failure or 'no answer in time'}); is it running, and is redis_url right?"
    )


def _leaderless(where: str, look: Look) -> SchedulerUnavailable:
    what = "no scheduler leads"
    if look.alive_until_ms:
        what = f"the last scheduler that led has been silent for {(look.server_ms - look.alive_until_ms) // 1000} s"
    return SchedulerUnavailable(f"{what} at {where}, so nothing is granted; start gpuboss-scheduler")
