"""What an answer of the scheduler does to the desk: one function a type, no I/O."""

from __future__ import annotations

from collections.abc import Callable

from gpuboss.client.desk import Answer, Desk, Held, give_up
from gpuboss.client.lease import granted
from gpuboss.client.replies import Reply, log_id
from gpuboss.errors import LeaseDenied, LeaseImpossible, LeaseLost, LeaseTimeout

ENDED_MAX = 1_000  # of which a new log is told at once; sessions and TTLs end what is older

_DENIALS: dict[str, type[LeaseDenied]] = {"timeout": LeaseTimeout, "impossible": LeaseImpossible}

# The log does not hold what we hold, or holds it for somebody else: its VRAM may be granted to others any time.
_DISOWNED = frozenset({"unknown_lease", "not_owner"})
# It did not understand what it was told. If that was a reassertion, it cannot know of the lease otherwise.
_NOT_UNDERSTOOD = frozenset({"invalid", "malformed", "too_large", "unknown_type"})
_NOT_OF_REQUESTS = _DISOWNED | {"reserved", "yielding"}  # somebody's mistaken renewal of what still waits, say


def take(desk: Desk, kind: str, reply: Reply, now_s: float) -> None:
    """Act on one entry of the reply stream. `now_s`: our monotonic clock, when it was received.

    The same entry may come again, and an old one after a newer: the desk is the same afterwards. What is meant
    for another session of the service, or is of no known type, does nothing.
    """
    act = _ACTS.get(kind)
    if act is not None and _is_ours(desk, kind, reply):
        act(desk, reply, now_s)


def settle(desk: Desk) -> list[str]:
    """The ids of grants that nobody waits for: they are to be released, now that all that came has been read."""
    unwanted = list(desk.unwanted)
    desk.unwanted.clear()
    for lease_id in unwanted:
        desk.leave(lease_id)
    return unwanted


def _is_ours(desk: Desk, kind: str, reply: Reply) -> bool:
    if reply.session is not None:
        return reply.session in desk.sessions
    # A refusal names no session where the log knows no lease to take it from; then the lease_id has to do.
    return kind == "EventRejected" and (reply.lease_id in desk.held or reply.lease_id in desk.leaving)


def _granted(desk: Desk, reply: Reply, now_s: float) -> None:
    lease_id = reply.lease_id
    if lease_id in desk.leaving or not (reply.device or reply.devices):
        return
    held = desk.held.get(lease_id)
    if held is not None and held.lease.fence == reply.fence:
        _note_end(desk, held, reply, now_s)
    elif lease_id in desk.waiting:
        if desk.trust.is_over(now_s):
            return  # it may be lost again by now; it is asked for once more when a beat was taken
        waiting = desk.waiting.pop(lease_id)
        held = Held(waiting.request, granted(reply), reply.granted_at_ms, reply.now_ms)
        desk.hold(held)
        if waiting.is_reasserted:
            desk.late_grants[lease_id] = None
        _note_end(desk, held, reply, now_s)
        waiting.tell(held.lease)
    elif held is not None:  # granted anew by a log that forgot the first grant: what we use is not what it lends
        give_up(desk, lease_id, "revoked")
    else:
        desk.unwanted[lease_id] = None


def _denied(desk: Desk, reply: Reply, now_s: float) -> None:
    waiting = desk.waiting.pop(reply.lease_id, None)
    if waiting is not None:
        kind = _DENIALS.get(reply.reason, LeaseDenied)
        waiting.tell(kind(reply.lease_id, reply.reason, reply.detail))
    _over(desk, reply)


def _ended(desk: Desk, reply: Reply, now_s: float) -> None:
    waiting = desk.waiting.pop(reply.lease_id, None)
    if waiting is not None:
        waiting.tell(LeaseLost(reply.lease_id, reply.reason))
    if reply.lease_id in desk.held:
        _note_ended(desk, reply.lease_id, is_done=False)
        desk.lose(reply.lease_id, reply.reason)
    elif reply.lease_id in desk.leaving:
        _note_ended(desk, reply.lease_id, is_done=reply.lease_id not in desk.given_up)
    _over(desk, reply)


def _note_ended(desk: Desk, lease_id: str, *, is_done: bool) -> None:
    desk.ended[lease_id] = is_done
    if len(desk.ended) > ENDED_MAX:
        del desk.ended[next(iter(desk.ended))]


def _over(desk: Desk, reply: Reply) -> None:
    desk.leaving.pop(reply.lease_id, None)
    desk.given_up.pop(reply.lease_id, None)
    desk.unwanted.pop(reply.lease_id, None)
    if reply.reason == "session_lost" and reply.session is not None:
        _lose_session(desk, reply.session)


def _lose_session(desk: Desk, session: str) -> None:
    """What was lost stays lost: the old name would be denied for ever, and no beat keeps what was held under it."""
    desk.lost_sessions.add(session)
    if session == desk.session:
        desk.renew_session()
    for lease_id in [lease_id for lease_id, held in desk.held.items() if held.request.session == session]:
        desk.lose(lease_id, "session_lost")


def _extended(desk: Desk, reply: Reply, now_s: float) -> None:
    held = desk.held.get(reply.lease_id)
    if held is not None:
        _note_end(desk, held, reply, now_s)
        _answer(held, reply, "extended", None)


def _state_changed(desk: Desk, reply: Reply, now_s: float) -> None:
    held = desk.held.get(reply.lease_id)
    if held is not None and reply.state in ("held", "idle") and _is_news(held, reply):
        held.lease.is_idle = reply.state == "idle"
        _answer(held, reply, "idle" if held.lease.is_idle else "held", None)


def _note_end(desk: Desk, held: Held, reply: Reply, now_s: float) -> None:
    lease = held.lease
    if reply.now_ms < held.as_of_ms or reply.expires_at_ms is None:
        return
    ends_at_s = now_s + (reply.expires_at_ms - reply.now_ms) / 1000
    if held.ends_at_s is not None and lease.expires_at_ms == reply.expires_at_ms:
        ends_at_s = min(ends_at_s, held.ends_at_s)  # the same word again, maybe late: it never prolongs
    held.as_of_ms = reply.now_ms
    lease.expires_at_ms = reply.expires_at_ms
    desk.set_end(held, ends_at_s)


def _asked_back(desk: Desk, reply: Reply, now_s: float) -> None:
    held = desk.held.get(reply.lease_id)
    if held is not None and held.lease.deadline is None:
        held.lease.ask_back(now_s + (reply.deadline_ms - reply.now_ms) / 1000)


def _rejected(desk: Desk, reply: Reply, now_s: float) -> None:
    lease_id = reply.lease_id
    refused = LeaseDenied(lease_id, reply.reason, reply.detail)
    held = desk.held.get(lease_id)
    if held is not None and (reply.reason in _DISOWNED or (held.is_reasserted and reply.reason in _NOT_UNDERSTOOD)):
        desk.lose(lease_id, "revoked")
    elif held is not None and reply.reason != "duplicate":
        _answer(held, reply, None, refused)
    elif lease_id in desk.waiting and reply.reason not in _NOT_OF_REQUESTS:
        desk.waiting.pop(lease_id).tell(refused)
    elif reply.reason in _DISOWNED:
        desk.leaving.pop(lease_id, None)  # a release of what a new log does not know: no other end will be told


def _answer(held: Held, reply: Reply, answer: Answer | None, refused: LeaseDenied | None) -> None:
    """Tell whoever asked first for what is answered, or, of a refusal, whoever asked first. What was asked before that
    is forgotten: its answer was missed."""
    if not _is_news(held, reply):
        return
    held.answered_to = log_id(reply.cause)
    for number, ask in enumerate(held.asked):
        if answer is None or answer == ask.answer:
            del held.asked[: number + 1]
            ask.tell(refused)
            return


def _is_news(held: Held, reply: Reply) -> bool:
    """Whether it is no answer to something earlier, read again."""
    return log_id(reply.cause) > held.answered_to


_ACTS: dict[str, Callable[[Desk, Reply, float], None]] = {
    "LeaseGranted": _granted,
    "LeaseDenied": _denied,
    "LeaseEnded": _ended,
    "LeaseExtended": _extended,
    "LeaseStateChanged": _state_changed,
    "YieldRequested": _asked_back,
    "EventRejected": _rejected,
}
