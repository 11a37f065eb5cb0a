"""The grant pass: who of those who wait gets a place now, in the order of the queue (policy, rule 4).

Whoever has no place is passed by those who come later, as long as that does not delay the start that was reserved
for it: EASY backfilling on named devices. Where nothing that is held ends by itself no start can be reserved; the
first who waits so long that this would starve it has its devices drained.
"""

from __future__ import annotations

import heapq

from gpuboss.core.addresses import reply_address
from gpuboss.core.ledger import Device, Lease
from gpuboss.core.placement import place
from gpuboss.core.reservations import Drain, Promise, Reservation, Reservations, drain, drainable, reserve
from gpuboss.core.state import State, Turn
from gpuboss.core.timers import TimerKind
from gpuboss.core.waitlist import Shape, Waiting
from gpuboss.events import MS_MAX, LeaseGranted, LeaseRequested, PromiseMoved

Heads = list[tuple[int, int, int, Shape]]  # (0 or the life, key, arrival) of the first of each shape


def grant_pass(turn: Turn) -> None:
    """Grant everything that has an admitted place; afterwards nobody who waits has one."""
    state = turn.state
    state.reservations = Reservations()
    state.unpromised = None
    if not state.waitlist.by_id or state.recovering_since_ms is not None:
        state.drain = state.promise = None
        return
    if state.drain is not None and not _still_drains(state, state.drain):
        state.drain = None
    passed = _serve(turn, _heads(state))
    _serve(turn, passed, backfill=True)
    _keep_promise(turn)


def _serve(turn: Turn, queue: Heads, backfill: bool = False) -> Heads:
    """Walk the heads of the shapes in order: grant who has a place, reserve for who has none. If those who pass others
    are to be served shortest first, stop granting at the first reservation, and return who is left for that."""
    state = turn.state
    later: Heads = []
    while queue:
        *_, shape = queue[0]
        waiting = state.waitlist.first(shape)
        assert waiting is not None
        able = state.candidates(shape)
        devices = place(shape, _admitted(state, shape, able))
        if devices is None:
            heapq.heappop(queue)  # no other of this shape has a place either
            if not backfill:
                _keep_for(turn, waiting, able)
        elif state.policy.backfill_order == "short" and state.reservations.in_order and not backfill:
            life_ms = MS_MAX if shape.ttl_ms is None else shape.ttl_ms
            heapq.heappush(later, (life_ms, waiting.key, waiting.arrival, shape))
            heapq.heappop(queue)
        else:
            state.reservations.use(shape, devices, state.now_ms, state.policy)
            _grant(turn, waiting, devices)
            _advance(state, queue, shape)
    return later


def grant_at_once(turn: Turn, request: LeaseRequested, shape: Shape, able: list[Device]) -> bool:
    """Grant a new request that finds nobody waiting, if it has a place among the devices that could hold it: what the
    pass would do, without the queue."""
    state = turn.state
    if state.waitlist.by_id or state.recovering_since_ms is not None:
        return False
    devices = place(shape, able)
    if devices is None:
        return False
    _open_lease(turn, request, state.arrivals, state.now_ms, devices)
    return True


def look_at(turn: Turn, waiting: Waiting) -> None:
    """A request joined the queue. If everything that is kept comes before it nobody else can gain by that, and it
    alone is looked at; time has only made it harder for the others."""
    state = turn.state
    kept = [each.waiting for each in state.reservations.in_order]
    if state.unpromised is not None:
        kept.append(state.unpromised)
    mine = (waiting.key, waiting.arrival)
    if not kept or any((each.key, each.arrival) > mine for each in kept):
        turn.look = True
        return
    able = state.candidates(waiting.shape)
    devices = place(waiting.shape, _admitted(state, waiting.shape, able))
    if devices is None:
        _keep_for(turn, waiting, able)
        _keep_promise(turn)
    else:
        state.reservations.use(waiting.shape, devices, state.now_ms, state.policy)
        _grant(turn, waiting, devices)


def _heads(state: State) -> Heads:
    queue: Heads = []
    for shape in state.waitlist.shapes():
        first = state.waitlist.first(shape)
        assert first is not None
        queue.append((0, first.key, first.arrival, shape))
    heapq.heapify(queue)
    return queue


def _advance(state: State, queue: Heads, shape: Shape) -> None:
    """The head of a shape was served: the next of its shape takes its place in the queue."""
    following = state.waitlist.first(shape)
    if following is None:
        heapq.heappop(queue)
    else:
        heapq.heapreplace(queue, (queue[0][0], following.key, following.arrival, shape))


def _admitted(state: State, shape: Shape, able: list[Device]) -> list[Device]:
    reservations = state.reservations
    if not reservations.by_device:
        return able
    return [device for device in able if reservations.admit(shape, device, state.now_ms, state.policy)]


def _keep_for(turn: Turn, waiting: Waiting, able: list[Device]) -> None:
    """Somebody has no place: reserve one for it, or, where no time for that is known, see to it that it comes up."""
    state, policy = turn.state, turn.state.policy
    kept = state.reservations
    if len(kept.in_order) >= policy.reservations:
        return
    unreserved = [device for device in able if device not in kept.by_device] if kept.by_device else able
    reservation = reserve(waiting, unreserved, policy)
    if reservation is not None:
        if state.drain is not None and state.drain.waiting is waiting:
            state.drain = None
    elif state.unpromised is None:
        state.unpromised = waiting
        reservation = _drain(state, waiting, unreserved)
    if reservation is not None:
        kept.add(reservation)


def _drain(state: State, waiting: Waiting, unreserved: list[Device]) -> Reservation | None:
    if not waiting.starves:
        if not waiting.is_timed:
            waiting.is_timed = True
            state.timers.set(waiting.starves_at_ms, TimerKind.STARVATION, waiting.request.lease_id)
        return None
    if state.drain is None:
        target = drainable(waiting, unreserved)
        if target is None:
            return None
        state.drain = Drain(waiting, target)
    if state.drain.waiting is not waiting:
        return None
    return drain(waiting, state.drain.devices, len(state.ledger.devices))


def _still_drains(state: State, drained: Drain) -> bool:
    able = state.candidates(drained.waiting.shape)
    return not drained.waiting.gone and all(device in able and device.healthy for device in drained.devices)


def _keep_promise(turn: Turn) -> None:
    """The first reservation is a promise. It moves later only for what is outside the rules, or for a request that
    comes before it; then that is said."""
    state = turn.state
    first = state.reservations.in_order[0] if state.reservations.in_order else None
    before, state.promise = state.promise, None
    if first is None or first.start_ms is None:
        return
    request = first.waiting.request
    state.promise = Promise(request.lease_id, first.start_ms)
    if before is not None and before.lease_id == request.lease_id and before.start_ms < first.start_ms:
        moved = PromiseMoved(
            cause=turn.cause,
            session=request.session,
            lease_id=request.lease_id,
            service=request.service,
            starts_by_ms=first.start_ms,
            was_ms=before.start_ms,
        )
        turn.tell(moved, reply_address(request.service, request.instance))


def _grant(turn: Turn, waiting: Waiting, devices: list[Device]) -> None:
    turn.state.waitlist.remove(waiting)
    _open_lease(turn, waiting.request, waiting.arrival, waiting.requested_at_ms, devices)


def _open_lease(turn: Turn, request: LeaseRequested, arrival: int, requested_at_ms: int, devices: list[Device]) -> None:
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
    )
    state.ledger.open(Lease(request, arrival, granted, devices, "held", expires_at_ms, now_ms))
    if expires_at_ms is not None:
        state.timers.set(expires_at_ms, TimerKind.LEASE_EXPIRY, request.lease_id)
    turn.lease_ids.append(request.lease_id)
    turn.shown.append(request.lease_id)
    turn.devices += devices
    turn.tell(granted, reply_address(request.service, request.instance))
