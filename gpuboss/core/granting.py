"""The grant pass: who of those who wait gets a place now, in the order of the queue (policy, rule 4).

Whoever has no place is passed by those who come later, as long as that does not delay the start that was reserved
for it: EASY backfilling on named devices. Where leases may be asked back that make room for it, they are, and the room
is held. Where nothing that is held ends by itself no start can be reserved; the first who waits so long that this would
starve it has its devices drained.
"""

from __future__ import annotations

from gpuboss.core import eviction, plans
from gpuboss.core.addresses import reply_address
from gpuboss.core.ledger import Device, Lease
from gpuboss.core.openings import Openings
from gpuboss.core.placement import has_room, place
from gpuboss.core.quotas import left_mib, may_begin, park
from gpuboss.core.reservations import ClosedTo, Reservation, Reservations, drain, reserve
from gpuboss.core.rooms import NONE_CLOSED
from gpuboss.core.state import State, Turn
from gpuboss.core.timers import TimerKind
from gpuboss.core.tournament import Search
from gpuboss.core.waitlist import Shape, Waiting
from gpuboss.events import LeaseGranted, LeaseRequested, PromiseMoved
from gpuboss.fields import Priority

Passing = tuple[int, Waiting, list[Device]]  # how long it will live; who it is, and where it would go


def grant_pass(turn: Turn) -> None:
    """Grant everything that has an admitted place; afterwards nobody who waits has one."""
    state = turn.state
    before = state.reservations
    if not state.waitlist.by_id and not before.first:
        return  # as after most releases: nobody waits, and nothing was kept for anybody
    park(state)
    if state.recovering_since_ms is not None:
        state.reservations = Reservations()
        state.ledger.changes.forget_freed()
    else:
        known = _known(state, before)
        while _Walk(turn, before).must_be_repeated(known):
            known = []
            park(state)
        state.ledger.changes.forget_freed()
    _keep_promises(turn, before)


def grant_at_once(turn: Turn, request: LeaseRequested, shape: Shape) -> bool:
    """Grant a new request that finds nobody waiting, if it has a place and is within its service's limit: what the
    pass would do, without the queue."""
    state = turn.state
    if state.waitlist.by_id or state.recovering_since_ms is not None:
        return False
    if shape.service is not None and shape.size_mib > left_mib(state, shape.service):
        return False
    devices = place(shape, state.rooms.best(shape, NONE_CLOSED))
    if devices is None:
        return False
    state.arrivals += 1
    state.join_session(request)
    _open_lease(turn, request, shape.priority, state.arrivals, state.now_ms, devices)
    return True


def look_at(turn: Turn, waiting: Waiting) -> None:
    """A request joined the queue. If all for whom something may be kept come before it nobody else can gain, and it
    alone is looked at: since the last pass only time has passed, which makes it harder for the others, and another
    pass would keep the same again."""
    state = turn.state
    first = state.reservations.first
    if turn.look or not first or first[-1] > waiting:
        turn.look = True
        turn.newcomer = waiting
        return
    devices = _place_of(state, waiting)
    if devices is not None:
        _grant(turn, waiting, devices)
        turn.look = _concerns_others(state, waiting)
    elif _ask_back_for(turn, waiting):
        turn.look = True  # when others can start may be another time now
    else:
        _keep_for(state, waiting, state.reservations)
        _promise_to_first(state.reservations)


def place_now(state: State, shape: Shape) -> list[Device] | None:
    """Where a request of a shape would go now."""
    closed = ClosedTo(state.reservations, shape, state.now_ms, state.policy)
    return place(shape, state.rooms.best(shape, closed))


def _known(state: State, before: Reservations) -> list[Waiting]:
    """For whom something is kept, if they are all still there and nobody was granted anything since: then nobody else
    comes before the last of them. Not where services have limits, within which others may be now, nor where there may
    be a place for anybody, as by other rules, which had limits."""
    if state.ledger.changes.freed_all or state.planned or state.limits or not before.is_whole:
        return []
    return before.first


class _Walk:
    """One walk through those who wait, in order: who has a place is granted it, else leases are asked back for it if
    they may be, and for the first who go on waiting a place is reserved. If those who pass others are to be served
    shortest first, of them only the shortest is granted, and it is to be walked again. Who had a reservation passes
    nobody: it takes what was kept for it."""

    def __init__(self, turn: Turn, before: Reservations) -> None:
        self._turn = turn
        state = self._state = turn.state
        self._state.reservations = Reservations()
        self._before = before
        self._openings = Openings(state)  # anew in each walk: a plan that was used or dissolved frees what it held
        self._failed: dict[Shape, None] = {}  # and others that are not to be looked at again in this walk
        self._shortest: Passing | None = None
        self._is_stale = False  # what was found and kept may be another now
        self._planned = sorted(state.planned.values(), reverse=True)

    def must_be_repeated(self, known: list[Waiting]) -> bool:
        """Walk. True if somebody else may have a place now. `known`: those before the last of whom nobody else is."""
        state = self._state
        self._until_all_is_reserved(known)
        if len(state.reservations.first) >= state.policy.reservations and not self._is_stale:
            self._openings.reserved_anew(self._before)
            self._who_fits()
        while self._serve_planned():
            pass
        if self._shortest is None or self._is_stale:
            return self._is_stale
        _grant(self._turn, *self._shortest[1:])
        return True

    def _until_all_is_reserved(self, known: list[Waiting]) -> None:
        """The first of the shapes one after the other, until as many have no place as may have one reserved."""
        state, newcomer = self._state, self._turn.newcomer
        if newcomer is not None and known and newcomer < known[-1]:
            known = sorted([newcomer, *known])
        following, search = iter(known), Search(state.fronts.tree.root)
        waiting = next(following, None) or search.next()
        while waiting is not None and not self._is_stale:
            if len(state.reservations.first) >= state.policy.reservations:
                break
            if self._serve_planned(waiting):
                continue
            if waiting.shape not in self._failed:
                devices = _place_of(state, waiting)
                if self._serve(waiting, devices):
                    following, search = iter(()), Search(state.fronts.tree.root)  # another of its shape may be the next
                else:
                    self._failed[waiting.shape] = None
                    if devices is None:
                        _keep_for(state, waiting, self._before)
            waiting = next(following, None) or search.next()

    def _who_fits(self) -> None:
        """Once nothing more is reserved, those of whom there may be room for one since the last pass: who does not fit
        is not looked at."""
        state = self._state
        self._openings.search(self._turn.newcomer)
        waiting = self._openings.next()
        while waiting is not None and not self._is_stale:
            if self._serve_planned(waiting):
                continue
            if not waiting.gone and waiting.shape not in self._failed:
                if self._serve(waiting, _place_of(state, waiting)):
                    self._openings.granted()
                else:
                    self._failed[waiting.shape] = None
            waiting = self._openings.next()

    def _serve_planned(self, before: Waiting | None = None) -> bool:
        """The next of those for whom room is held, if it comes before this one: it may have a place with that. False if
        there is none."""
        if not self._planned or self._is_stale:
            return False
        waiting, state = self._planned[-1], self._state
        if before is not None and waiting > before:
            return False
        self._planned.pop()
        if not may_begin(state, waiting):  # its service holds more than when leases were asked back for it
            plans.dissolve(self._turn, waiting)
            self._is_stale = True
            return True
        lifted, able = plans.Lifted(state, waiting), state.candidates(waiting.shape)
        roomy = [device for device in able if has_room(waiting.shape, device)]
        own = [device for device in roomy if lifted.is_own(device)]
        closed = ClosedTo(state.reservations, waiting.shape, state.now_ms, state.policy)
        devices = place(waiting.shape, [device for device in roomy if device in own or device not in closed])
        if devices is not None:
            _grant(self._turn, waiting, devices)
            self._is_stale = True
        else:
            _keep_for(state, waiting, self._before)
            lifted.put_down()
        return True

    def _serve(self, waiting: Waiting, devices: list[Device] | None) -> bool:
        """Grant a place, unless whoever has it passes others and it is not its turn to do that. Where there is none,
        have leases asked back. False if it waits on like that."""
        state = self._state
        if devices is None:
            self._is_stale = self._shortest is None and _ask_back_for(self._turn, waiting)
            return self._is_stale
        shortest_first = state.policy.backfill_order == "short"
        if not (shortest_first and state.reservations.in_order and self._before.of(waiting) is None):
            _grant(self._turn, waiting, devices)
            self._is_stale = self._shortest is not None or _concerns_others(state, waiting)
            return True
        passing = (waiting.life_ms, waiting, devices)
        # Who is looked at twice keeps the place that was found first: what was reserved since is for those behind it.
        if self._shortest is None or passing[:2] < self._shortest[:2]:
            self._shortest = passing
        return False


def _concerns_others(state: State, granted: Waiting) -> bool:
    """Whether a grant may be more to those before it than less room: a lease that they may have asked back, or room
    that they counted on beside what was asked back already; or it parks them."""
    return granted.shape.service is not None or eviction.may_find(state)


def _place_of(state: State, waiting: Waiting) -> list[Device] | None:
    """The place of one who waits, if it may begin."""
    return place_now(state, waiting.shape) if may_begin(state, waiting) else None


def _ask_back_for(turn: Turn, waiting: Waiting) -> bool:
    """Have leases asked back that make room for who has no place. False where that is not possible, or not yet, or
    where it could not begin with that room either."""
    state = turn.state
    if not may_begin(state, waiting):
        return False
    prey = eviction.find(state, waiting)
    if prey is not None:
        for lease in prey.leases:
            if lease.state == "idle":
                state.floor = eviction.worth(lease)
        plans.begin(turn, waiting, *prey)
        return True
    at_ms = eviction.next_chance_ms(state, waiting)
    if at_ms is not None and at_ms != waiting.preempts_at_ms:
        state.timers.set(at_ms, TimerKind.PREEMPTION, waiting.request.lease_id)
    waiting.preempts_at_ms = at_ms
    return False


def _keep_for(state: State, waiting: Waiting, before: Reservations) -> None:
    """Somebody has no place: reserve one for it, or, where no time for that is known, see to it that it comes up."""
    policy, kept = state.policy, state.reservations
    if len(kept.first) >= policy.reservations or not may_begin(state, waiting):
        return
    kept.first.append(waiting)
    mine = before.of(waiting)
    reservation = reserve(waiting, state.rooms, state.outlook.under(policy), kept, mine)
    if waiting.plan is not None:
        ends_ms = waiting.plan.ends_ms(policy)
        if reservation is None or reservation.start_ms is None or reservation.start_ms >= ends_ms:
            reservation = Reservation(waiting, [], ends_ms, [])  # the room is held for it; nothing has to be kept free
    if reservation is None:
        if kept.unpromised is None:
            if before.unpromised is not waiting and not waiting.starves:
                state.timers.set(waiting.starves_at_ms, TimerKind.STARVATION, waiting.request.lease_id)
            kept.unpromised = waiting
        if waiting.starves and not kept.drains:
            unreserved = [device for device in state.candidates(waiting.shape) if device not in kept.by_device]
            reservation = drain(waiting, unreserved, len(state.ledger.devices), mine)
    if reservation is not None:
        kept.add(reservation)


def _keep_promises(turn: Turn, before: Reservations) -> None:
    """The first reservation is a promise, for as long as its request waits. It moves later only for what is outside
    the rules, or for a request that comes before it; then that is said."""
    kept = turn.state.reservations
    _promise_to_first(kept)
    for each in before.in_order:
        if each.promised_ms is None or each.waiting.gone:
            continue
        after = kept.of(each.waiting)
        starts_by_ms = None if after is None else after.promised_ms
        holds = after is not None and after.start_ms is not None and after.start_ms <= each.promised_ms
        if not holds:
            _tell_moved(turn, each.waiting, each.promised_ms, starts_by_ms)
        elif after is not None and starts_by_ms is None:
            after.promised_ms = each.promised_ms


def _promise_to_first(kept: Reservations) -> None:
    if kept.in_order:
        kept.in_order[0].promised_ms = kept.in_order[0].start_ms


def _tell_moved(turn: Turn, waiting: Waiting, was_ms: int, starts_by_ms: int | None) -> None:
    request = waiting.request
    moved = PromiseMoved(
        cause=turn.cause,
        session=request.session,
        lease_id=request.lease_id,
        service=request.service,
        starts_by_ms=starts_by_ms,
        was_ms=was_ms,
    )
    turn.tell(moved, reply_address(request.service, request.instance))


def _grant(turn: Turn, waiting: Waiting, devices: list[Device]) -> None:
    state = turn.state
    state.reservations.use(waiting.shape, devices, state.now_ms, state.policy)
    plans.dissolve(turn, waiting)
    state.waitlist.remove(waiting)
    _open_lease(turn, waiting.request, waiting.shape.priority, waiting.arrival, waiting.requested_at_ms, devices)


def _open_lease(
    turn: Turn, request: LeaseRequested, priority: Priority, arrival: int, requested_at_ms: int, devices: list[Device]
) -> None:
    state = turn.state
    now_ms = state.now_ms
    expires_at_ms = None if request.ttl_ms is None else now_ms + request.ttl_ms
    state.fence += 1
    first = devices[0].observed
    names: tuple[str, ...] = (first.device,)
    uuids: tuple[str, ...] = (first.uuid,)
    if len(devices) > 1:
        names = tuple([device.observed.device for device in devices])
        uuids = tuple([device.observed.uuid for device in devices])
    granted = LeaseGranted(
        cause=turn.cause,
        session=request.session,
        lease_id=request.lease_id,
        service=request.service,
        node=first.node,
        device=first.device,
        devices=names,
        uuids=uuids,
        vram_mib=request.vram_mib,
        granted_at_ms=now_ms,
        expires_at_ms=expires_at_ms,
        waited_ms=now_ms - requested_at_ms,
        fence=state.fence,
        priority=None if priority == request.priority else priority,
    )
    state.ledger.open(Lease(request, arrival, granted, devices, "held", expires_at_ms, now_ms, since_ms=now_ms))
    assert request.service not in state.limits or left_mib(state, request.service) >= 0, request
    if expires_at_ms is not None:
        state.timers.set(expires_at_ms, TimerKind.LEASE_EXPIRY, request.lease_id)
    turn.lease_ids.append(request.lease_id)
    turn.shown.append(request.lease_id)
    turn.devices += devices
    turn.tell(granted, reply_address(request.service, request.instance))
