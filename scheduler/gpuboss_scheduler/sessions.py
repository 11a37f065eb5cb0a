"""Watching the processes that hold leases or wait: who stopped its heartbeat is declared lost, in the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import pairwise

from gpuboss.events import SessionLost
from gpuboss_scheduler.reign import Reign, stamped
from gpuboss_scheduler.scripts import Script

JUMPS_MAX = 100  # of the server's clock that are remembered
STALL_S = 1.0  # a server that answers nothing for longer stood still, or was gone, and nobody could beat either

_sessions = Script("sessions")
_lose_sessions = Script("lose_sessions")


class Trust:
    """Whether a session's silence says that its process is dead. It does not while the server stood still, nor for
    one session TTL after: whoever lives needs that time to be heard again. The same holds when the server's clock
    jumps, by which sessions are timed, as it does when a machine wakes up, and when what was lost took the last signs
    of life along. One for the whole life of a scheduler, because a server that is away for long ends its reign."""

    def __init__(self, session_ttl_ms: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._session_ttl_s = session_ttl_ms / 1000
        self._monotonic = monotonic
        self._answered_s: float | None = None
        self._ahead_s: float | None = None  # the server's clock, as far as it is ahead of ours
        self._from_s = 0.0
        self._runs: list[tuple[float, float]] = []  # since when that clock runs on steadily, and how far ahead it is

    def answered(self, server_ms: int) -> None:
        """The server answered, and told its time. To be said several times a second."""
        now_s = self._monotonic()
        late = self._answered_s is not None and now_s - self._answered_s > STALL_S
        self._answered_s = now_s
        before_s, self._ahead_s = self._ahead_s, server_ms / 1000 - now_s
        jumped = before_s is not None and abs(self._ahead_s - before_s) > STALL_S
        if late or jumped:
            self._from_s = now_s + self._session_ttl_s
        if before_s is None or jumped:
            self._runs = [*self._runs[1 - JUMPS_MAX :], (now_s, self._ahead_s)]

    def lost(self) -> None:
        """The server shows an earlier state, of which nobody can tell who lives."""
        self._from_s = self._monotonic() + self._session_ttl_s

    def jumped_since_ms(self, log_ms: int) -> int:
        """By how much the server's clock is ahead of where it would be had it run on steadily since it showed this
        (ms). Until we looked for the first time it did."""
        for (_, ahead_s), (until_s, _) in pairwise(self._runs):
            if log_ms < (until_s + ahead_s) * 1000:
                return max(0, round((self._runs[-1][1] - ahead_s) * 1000))
        return 0

    def silent_s(self) -> float:
        """For how long the server has not answered; 0 if it never did."""
        return 0.0 if self._answered_s is None else self._monotonic() - self._answered_s

    def holds(self) -> bool:
        """Whether who is past its time is dead."""
        return self._monotonic() >= self._from_s

    def latest_ms(self) -> int:
        """What the server's clock shows at most, unless it jumped since it answered."""
        assert self._ahead_s is not None, "the server has not answered yet"
        return round((self._monotonic() + self._ahead_s + STALL_S) * 1000)


def lose_silent_sessions(reign: Reign, members: Iterable[str], session_ttl_ms: int, trust: Trust) -> int:
    """Append `SessionLost` for each of `members` (`<service>/<session>`) that is past its time; returns how many.

    A member that Redis does not know of gets one TTL from now, and one that has longer than that, because the
    server's clock was put back, does too. Others that are past their time own nothing, and are forgotten without a
    word.
    """
    keys, ours = reign.keys, dict.fromkeys(members)
    asked_s = time.monotonic()
    known = [reign.token, session_ttl_ms, trust.latest_ms()]
    past = _sessions(reign.client, [keys.scheduler, keys.sessions], [*known, *ours])
    if not past or time.monotonic() - asked_s > STALL_S:
        return 0
    arguments: list[str | bytes | int] = [reign.token, reign.seq]
    for member in past:
        arguments += [member, *_fact(reign, member.decode("utf-8", "replace"), ours)]
    seq, _ = _lose_sessions(reign.client, [keys.scheduler, keys.events, keys.sessions], arguments)
    lost = int(seq) - reign.seq
    reign.seq = int(seq)
    return lost


def _fact(reign: Reign, member: str, ours: dict[str, None]) -> tuple[str, bytes]:
    if member not in ours:
        return "", b""
    service, _, session = member.partition("/")
    data = stamped(SessionLost(service=service, session=session), reign.epoch, 0)
    # The script numbers those that it finds to be dead indeed, and adds the closing brace.
    return SessionLost.__name__, data.removesuffix(b',"seq":0}')
