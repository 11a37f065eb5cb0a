"""Everything that the log means at one point of it, and the turn in which one entry changes it."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from gpuboss.core import placement
from gpuboss.core.addresses import session_member
from gpuboss.core.fronts import Fronts
from gpuboss.core.history import Memory, Past
from gpuboss.core.inputs import NO_INPUTS, chained
from gpuboss.core.ledger import Device, Ledger
from gpuboss.core.outlook import Outlook
from gpuboss.core.policy import DEFAULT_POLICY, limits_of
from gpuboss.core.reservations import Reservations
from gpuboss.core.rooms import Rooms
from gpuboss.core.timers import Timer, TimerKind, Timers
from gpuboss.core.waitlist import Shape, Waiting, Waitlist
from gpuboss.events import Decision, LeaseRequested, PolicySet

SHAPES_REMEMBERED = 4096


class State:
    """The meaning of a prefix of the log. Changed by `machine.step` alone."""

    def __init__(self) -> None:
        self.last_id = "0-0"  # the last entry that was applied
        self.inputs = NO_INPUTS  # the running digest of those that were applied
        self.now_ms = 0  # the log's clock
        self.ticked_ms = 0  # at the last tick: what time alone gives a right to, it gives with a tick
        self.epoch = 0
        self.seq = 0  # of the last entry that the scheduler wrote
        self.core = 0  # the version of the rules by which the reign decides
        self.incarnation = ""
        self.policy: PolicySet = DEFAULT_POLICY
        self.limits: dict[str, int] = {}  # in MiB, of the services to which the policy gives one
        self.policy_recorded = False  # before the first PolicySet the defaults hold
        self.fence = 0
        self.recovering_since_ms: int | None = None  # when it was seen that entries of the log are gone
        self.recovering_for_ms = 0  # and for how long those who hold what was lost have the word
        self.recovering_elected_ms = 0  # when another began to lead meanwhile
        self.recovering_elected_for_ms = 0  # and for how long those who looked for a leader have it then
        self.arrivals = 0
        self.floor = 0  # what the idle lease that was asked back last was worth (eviction.py)
        self.ledger = Ledger()
        self.rooms = Rooms(self.ledger)
        self.outlook = Outlook(self.ledger)
        self.planned: dict[str, Waiting] = {}  # who waits for leases that were asked back: apart from the others
        self.fronts = Fronts()
        self.waitlist = Waitlist(self.fronts.follow)
        self.reservations = Reservations()  # as the last pass made them
        self.look_is_due = False  # whether the last entry left it to the next to look who may have a place
        self.timers = Timers()
        self.history: Memory[Past] = Memory()  # by lease_id
        self.sessions: dict[str, dict[str, None]] = {}  # member -> its lease_ids, in their order
        self.lost_sessions: Memory[None] = Memory()  # by member
        self._candidates: dict[Shape, list[Device]] = {}
        self._candidates_version = 0

    @property
    def recovering_until_ms(self) -> int | None:
        """When whoever held a lease in a log that was lost had the time to say so; until then nothing is granted."""
        if self.recovering_since_ms is None:
            return None
        lost_ms, elected_ms = self.recovering_since_ms, self.recovering_elected_ms
        return max(lost_ms + self.recovering_for_ms, elected_ms + self.recovering_elected_for_ms)

    def candidates(self, shape: Shape) -> list[Device]:
        """`placement.candidates`, remembered until the devices change: people ask for the same few shapes."""
        if self._candidates_version != self.ledger.version or len(self._candidates) > SHAPES_REMEMBERED:
            self._candidates_version = self.ledger.version
            self._candidates.clear()
        able = self._candidates.get(shape)
        if able is None:
            able = self._candidates[shape] = placement.candidates(self.ledger, shape)
        return able

    def set_policy(self, policy: PolicySet) -> None:
        """Other rules. What is kept for whom the next pass says; here who waits is sorted by who has a limit now."""
        before, self.limits = self.limits, limits_of(policy)
        self.policy = policy
        self.ledger.holdings.touch([*before, *self.limits])
        if before.keys() == self.limits.keys():
            return
        waiting_before, self.fronts = list(self.waitlist.by_id.values()), Fronts()
        self.waitlist = Waitlist(self.fronts.follow)
        for waiting in waiting_before:
            waiting.is_first = waiting.is_found = False
            service = waiting.request.service
            waiting.shape = waiting.shape._replace(service=service if service in self.limits else None)
            self.enqueue(waiting)
            if waiting.plan is not None:
                self.waitlist.leave(waiting)

    def enqueue(self, waiting: Waiting) -> bool:
        """Queue a request, and set its deadlines. True if a place for it must be looked for."""
        lease_id = waiting.request.lease_id
        if waiting.wait_until_ms is not None:
            self.timers.set(waiting.wait_until_ms, TimerKind.WAIT_TIMEOUT, lease_id)
        if waiting.preempts_at_ms is not None:
            self.timers.set(waiting.preempts_at_ms, TimerKind.PREEMPTION, lease_id)
        if waiting.shape.service is not None and not waiting.starves:
            self.timers.set(waiting.starves_at_ms, TimerKind.STARVATION, lease_id)
        return self.waitlist.add(waiting)

    def join_session(self, request: LeaseRequested) -> None:
        """Note that a session's life now decides over this lease_id."""
        if request.session is not None:
            member = session_member(request.service, request.session)
            self.sessions.setdefault(member, {})[request.lease_id] = None

    def leave_session(self, request: LeaseRequested) -> None:
        """The lease_id is over; its session no longer matters for it."""
        if request.session is not None:
            member = session_member(request.service, request.session)
            lease_ids = self.sessions[member]
            del lease_ids[request.lease_id]
            if not lease_ids:
                del self.sessions[member]

    def take_input(self, entry_id: str, fields: Sequence[bytes]) -> None:
        """Count an entry that is no decision of the scheduler's."""
        self.last_id = entry_id
        self.inputs = chained(self.inputs, entry_id, fields)

    def advance(self, now_ms: int) -> None:
        """Move the clock on; it never goes back. What is older than 24 h is forgotten."""
        if now_ms <= self.now_ms:
            return
        self.now_ms = now_ms
        self.history.forget_before(now_ms)
        self.lost_sessions.forget_before(now_ms)

    def next_timer(self) -> Timer | None:
        """The earliest deadline that still holds."""
        while (timer := self.timers.first()) is not None and not self._holds(timer):
            self.timers.drop_first()
        return timer

    def _holds(self, timer: Timer) -> bool:
        if timer.kind is TimerKind.RECOVERY_END:
            return self.recovering_until_ms == timer.deadline_ms
        if timer.kind is TimerKind.WAIT_TIMEOUT:
            waiting = self.waitlist.by_id.get(timer.lease_id)
            return waiting is not None and waiting.wait_until_ms == timer.deadline_ms
        if timer.kind is TimerKind.STARVATION:
            waiting = self.waitlist.by_id.get(timer.lease_id)
            if waiting is None or waiting.starves or waiting.starves_at_ms != timer.deadline_ms:
                return False
            return waiting is self.reservations.unpromised or waiting.shape.service is not None
        if timer.kind is TimerKind.PREEMPTION:
            waiting = self.waitlist.by_id.get(timer.lease_id)
            return waiting is not None and waiting.preempts_at_ms == timer.deadline_ms
        lease = self.ledger.leases.get(timer.lease_id)
        if lease is None or lease.state == "reclaiming":
            return False
        if timer.kind is TimerKind.YIELD_DEADLINE:
            return lease.state == "yielding" and lease.yield_by_ms == timer.deadline_ms
        return lease.expires_at_ms == timer.deadline_ms


class Told(Struct, frozen=True, gc=False):
    """One answer: the decision, the reply stream it goes to (None: nobody can be named), and whether it is new
    (then it is logged) or a repetition of what the log holds already."""

    decision: Decision
    address: str | None
    is_new: bool


class Turn(Struct, gc=False, eq=False):
    """What one entry of the log does: the decisions it leads to, and whose projections change."""

    state: State
    cause: str
    look: bool = False  # whether somebody who waits may have a place now
    looks_later: bool = False  # whether that is left to the next entry
    told: list[Told] = []
    lease_ids: list[str] = []  # of leases and requests that changed
    devices: list[Device] = []
    shown: list[str] = []  # of leases that have to be shown, also where nothing of them is shown now
    newcomer: Waiting | None = None  # who joined the queue, and was not looked at

    def tell(self, decision: Decision, address: str | None) -> None:
        """Decide something."""
        self.told.append(Told(decision, address, True))

    def repeat(self, decision: Decision, address: str | None) -> None:
        """Say again what was decided before."""
        self.told.append(Told(decision, address, False))
