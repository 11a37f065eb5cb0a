"""Watching the processes that hold leases or wait: who stopped its heartbeat is declared lost, in the log."""

from __future__ import annotations

from collections.abc import Iterable

from gpuboss.events import SessionLost
from gpuboss_scheduler.reign import Reign, stamped
from gpuboss_scheduler.scripts import Script

_sessions = Script("sessions")
_lose_sessions = Script("lose_sessions")


def lose_silent_sessions(reign: Reign, members: Iterable[str], session_ttl_ms: int) -> int:
    """Append `SessionLost` for each of `members` (`<service>/<session>`) that is past its time; returns how many.

    A member that Redis does not know of gets one TTL from now. Others that are past their time own nothing, and
    are forgotten without a word.
    """
    keys, ours = reign.keys, dict.fromkeys(members)
    past = _sessions(reign.client, [keys.scheduler, keys.sessions], [reign.epoch, session_ttl_ms, *ours])
    if not past:
        return 0
    arguments: list[str | bytes | int] = [reign.epoch, reign.seq]
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
