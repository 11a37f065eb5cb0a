"""What a client has open: the requests that wait and the leases that are held. Data and rules, no I/O, no clock.

A lease_id is in one place at a time:

    waiting --granted--> held --released--> leaving --its end was told--> gone
       |                  |                    ^
       +--withdrawn-------|--------------------+
       +--denied--> gone  +--ended by others--> gone, and the lease is lost

`given_up` are leases that we stopped relying on by ourselves: they are released once their user says that it is done.
`ended` are leases that the log ended, and whether their users are done: a log that goes back may hold them again.
`unwanted` are grants to ids that nobody here waits for any more: they are given back. What answers do to the desk
is written in `answers.py`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from gpuboss.client.leadership import Trust
from gpuboss.client.lease import Lease
from gpuboss.errors import GPUBossError, LeaseLost
from gpuboss.events import LeaseIdled, LeaseReasserted, LeaseReleased, LeaseRequested, LeaseResumed

LEAVING_MAX = 10_000  # as many as a reply stream holds entries: an older one's end cannot come any more

Tell = Callable[[Lease | GPUBossError], None]
TellAnswer = Callable[[GPUBossError | None], None]
Answer = Literal["extended", "held", "idle"]


class Waiting(msgspec.Struct):
    """A request that waits, and whom its answer is told.

    `is_reasserted`: a new log was told of it, and a grant may still be one of the log that was lost.
    """

    request: LeaseRequested
    tell: Tell
    is_reasserted: bool = False


class Ask(msgspec.Struct, frozen=True):
    """Something that was asked about a held lease: the answer that does it, and whom a refusal, or None, is told."""

    answer: Answer
    tell: TellAnswer


class Held(msgspec.Struct):
    """A lease that is held, what is known of its end, and what was asked about it, in order.

    `as_of_ms`: the log's time of the last word about it; an older word, read again, must not prolong it.
    `answered_to`: the entry of the log that the last answer was about.
    `is_reasserted`: a new log was told of it, and may refuse to hear it.
    `reload_ms`: what loading its model again takes, as was said last.
    """

    request: LeaseRequested
    lease: Lease
    granted_at_ms: int
    as_of_ms: int
    ends_at_s: float | None = None  # on our own monotonic clock
    asked: list[Ask] = []
    answered_to: tuple[int, int] = (0, 0)
    is_reasserted: bool = False
    reload_ms: int = 0


class Desk:
    """Everything that is open in one client."""

    def __init__(self, service: str, mint: Callable[[], str]) -> None:
        self.service = service
        self.session = mint()
        self.sessions = {self.session}  # all that were ours: an answer to an older one still is
        self.lost_sessions: set[str] = set()  # of these, those of which we were told so
        self.trust = Trust()  # in what is held
        self.waiting: dict[str, Waiting] = {}
        self.held: dict[str, Held] = {}
        self.leaving: dict[str, None] = {}
        self.unwanted: dict[str, None] = {}
        self.late_grants: dict[str, None] = {}  # of those held: the log that granted them may be lost since
        self.given_up: dict[str, None] = {}  # of those leaving: their memory may still be in use, so nobody was told
        self.ended: dict[str, bool] = {}
        self._mint = mint
        self._expiries: list[tuple[float, str]] = []

    @property
    def is_empty(self) -> bool:
        """Whether nothing hangs on the session."""
        return not (self.waiting or self.held or self.leaving)

    def renew_session(self) -> str:
        """Go on under a new session, because the old one was lost; returns the old one."""
        lost, self.session = self.session, self._mint()
        self.sessions.add(self.session)
        return lost

    def hold(self, held: Held) -> None:
        """A request of ours was granted."""
        self.held[held.lease.lease_id] = held

    def leave(self, lease_id: str) -> None:
        """Forget a lease or a request that is given back now: what is still told about it is of no interest."""
        self.waiting.pop(lease_id, None)
        held = self.held.pop(lease_id, None)
        if held is not None:
            held.lease.is_released = True
        self.leaving[lease_id] = None
        if len(self.leaving) > LEAVING_MAX:
            del self.leaving[next(iter(self.leaving))]

    def lose(self, lease_id: str, reason: str) -> None:
        """A lease is over that nobody here released; whoever uses it is told."""
        held = self.held.pop(lease_id)
        for ask in held.asked:
            ask.tell(LeaseLost(lease_id, reason))
        held.lease.lose(reason)

    def lose_all(self, reason: str) -> list[str]:
        """All leases are over, whatever others think of them; returns the ids, which are to be taken back."""
        lease_ids = list(self.held)
        for lease_id in lease_ids:
            self.lose(lease_id, reason)
        return lease_ids

    def set_end(self, held: Held, ends_at_s: float | None) -> None:
        """Note when, on our own clock, a lease ends by itself."""
        held.ends_at_s = ends_at_s
        if ends_at_s is not None:
            heapq.heappush(self._expiries, (ends_at_s, held.lease.lease_id))

    def next_expiry_s(self) -> float | None:
        """When the next lease ends by itself."""
        while self._expiries:
            ends_at_s, lease_id = self._expiries[0]
            held = self.held.get(lease_id)
            if held is not None and held.ends_at_s == ends_at_s:
                return ends_at_s
            heapq.heappop(self._expiries)
        return None

    def expire(self, now_s: float) -> None:
        """Give up what has ended by itself."""
        while (ends_at_s := self.next_expiry_s()) is not None and ends_at_s <= now_s:
            give_up(self, heapq.heappop(self._expiries)[1], "expired")

    def fail_waiting(self, reason: GPUBossError) -> list[str]:
        """Tell all who wait that they wait in vain; returns the ids, which are to be taken back."""
        failed = list(self.waiting.items())
        for lease_id, waiting in failed:
            self.leave(lease_id)
            waiting.tell(reason)
        return [lease_id for lease_id, _ in failed]


def give_up(desk: Desk, lease_id: str, reason: str) -> None:
    """We stop relying on a lease by ourselves. It is not released yet: that would hand its memory on before whoever
    uses it has unloaded."""
    desk.lose(lease_id, reason)
    desk.leave(lease_id)
    desk.given_up[lease_id] = None


def sessions_in_use(desk: Desk) -> list[str]:
    """The session under which requests are made now, first, and older ones of which something is still open."""
    in_use = dict.fromkeys([desk.session])
    for request in [*(each.request for each in desk.waiting.values()), *(each.request for each in desk.held.values())]:
        if request.session is not None and request.session not in desk.lost_sessions:
            in_use[request.session] = None
    return list(in_use)


def repetitions(desk: Desk) -> Iterator[LeaseReleased | LeaseRequested]:
    """Releases whose end was not told yet, for Redis may have lost them, and all open requests once more, the answered
    ones too: whatever was decided meanwhile is told again."""
    for lease_id in _released(desk):
        yield LeaseReleased(lease_id, desk.service)
    for waiting in desk.waiting.values():
        yield waiting.request
    for held in desk.held.values():
        yield held.request


def reassertions(
    desk: Desk,
) -> Iterator[LeaseReleased | LeaseRequested | LeaseReasserted | LeaseIdled | LeaseResumed]:
    """What is open, told to a log that knows nothing of it: requests once more, leases as they were granted.

    A held lease is not requested again: that could grant it a second time, on another device. Releases come first: the
    log may have lost them and kept the leases, whose room is then taken. So may it have lost that it ended some itself:
    these are released too, by now or once their users are done. A log that kept a lease takes no state from its
    reassertion, and may have lost that it was idled or resumed: that is said behind it.
    """
    ended, desk.ended = desk.ended, {}
    for lease_id, is_done in ended.items():
        desk.leave(lease_id)
        if not is_done:
            desk.given_up[lease_id] = None
    for lease_id in _released(desk):
        yield LeaseReleased(lease_id, desk.service)
    for waiting in desk.waiting.values():
        waiting.is_reasserted = True
        yield waiting.request
    for held in desk.held.values():
        held.is_reasserted = True
        yield reassertion(desk.service, held)
        state = _state(desk.service, held)
        if state is not None:
            yield state


def late_reassertions(desk: Desk) -> Iterator[LeaseReasserted]:
    """Leases whose grant was read after a new log was told that they wait. If the log that was lost granted them, the
    new one does not know that they are held."""
    late, desk.late_grants = desk.late_grants, {}
    for lease_id in late:
        held = desk.held.get(lease_id)
        if held is not None:
            held.is_reasserted = True
            yield reassertion(desk.service, held)


def reassertion(service: str, held: Held) -> LeaseReasserted:
    """A lease that is held, told to a log that does not know of it. Changes nothing: any thread may ask."""
    lease, request = held.lease, held.request
    return LeaseReasserted(
        lease_id=lease.lease_id,
        service=service,
        node=lease.node,
        device=lease.device,
        devices=list(lease.devices),
        vram_mib=lease.vram_mib,
        priority=request.priority,
        state="yielding" if lease.deadline is not None else "idle" if lease.is_idle else "held",
        granted_at_ms=held.granted_at_ms,
        expires_at_ms=lease.expires_at_ms,
        fence=lease.fence,
        session=request.session,
        exclusive=request.exclusive,
        reclaimable=request.reclaimable,
        preemptible=request.preemptible,
        instance=request.instance,
    )


def _state(service: str, held: Held) -> LeaseIdled | LeaseResumed | None:
    """Whether a lease is idle or in use; None where it can only be in use, was asked back, or that is being asked."""
    lease = held.lease
    is_asked = any(ask.answer in ("idle", "held") for ask in held.asked)
    if not held.request.reclaimable or lease.deadline is not None or is_asked:
        return None
    return (LeaseIdled if lease.is_idle else LeaseResumed)(lease.lease_id, service, held.reload_ms)


def _released(desk: Desk) -> list[str]:
    """What was given back, and may not have been heard. What was given up was not: its memory may still be in use."""
    return [lease_id for lease_id in desk.leaving if lease_id not in desk.given_up]
