"""The state as bytes and back, and its digest: the same prefix of the log gives the same bytes, on any machine.

What can be derived from the rest (sums, heaps, indexes) is not written but rebuilt.
"""

from __future__ import annotations

import hashlib

import msgspec
from msgspec import Struct

from gpuboss.core.history import Past
from gpuboss.core.ledger import Device, Lease
from gpuboss.core.lifecycle import State as LeaseState
from gpuboss.core.plans import Plan
from gpuboss.core.reservations import Reservation
from gpuboss.core.state import State
from gpuboss.core.timers import TimerKind
from gpuboss.core.waitlist import Waiting, shape_of
from gpuboss.events import DeviceObserved, LeaseDenied, LeaseEnded, LeaseGranted, LeaseRequested, PolicySet
from gpuboss.fields import Digest, Priority


class _Lease(Struct, array_like=True):
    request: LeaseRequested
    arrival: int
    granted: LeaseGranted
    devices: list[str]
    state: LeaseState
    expires_at_ms: int | None
    expiry_set_ms: int
    yield_by_ms: int | None
    yield_set_ms: int
    reclaiming_since_ms: int | None
    vouched: bool
    uses: int
    reload_ms: int
    since_ms: int
    floor: int
    settles: bool = False


class _Waiting(Struct, array_like=True):
    request: LeaseRequested
    priority: Priority
    key: int
    arrival: int
    requested_at_ms: int
    wait_until_ms: int | None
    starves_at_ms: int
    starves: bool
    since_ms: int
    preempts_at_ms: int | None


class _Plan(Struct, array_like=True):
    lease_id: str
    devices: list[str]
    leases: list[str]
    stock_mib: list[int]


class _Reservation(Struct, array_like=True):
    lease_id: str
    devices: list[str]
    start_ms: int | None
    extra_mib: list[int]
    promised_ms: int | None
    target: list[str]


class _Past(Struct, array_like=True):
    request: LeaseRequested
    granted: LeaseGranted | None
    ended: LeaseEnded | None
    denied: LeaseDenied | None
    at_ms: int


class _Snapshot(Struct):
    last_id: str
    inputs: Digest
    now_ms: int
    ticked_ms: int
    epoch: int
    seq: int
    core: int
    incarnation: str
    policy: PolicySet
    policy_recorded: bool
    fence: int
    recovering_since_ms: int | None
    recovering_for_ms: int
    recovering_elected_ms: int
    recovering_elected_for_ms: int
    arrivals: int
    devices: list[DeviceObserved]
    leases: list[_Lease]
    floor: int
    waiting: list[_Waiting]
    plans: list[_Plan]
    reservations: list[_Reservation]
    first: list[str]
    unpromised: str | None
    look_is_due: bool
    history: list[_Past]
    lost_sessions: list[tuple[str, int]]


_DECODER = msgspec.json.Decoder(_Snapshot)


def dump(state: State) -> bytes:
    """The state as JSON, the same bytes for the same state."""
    unpromised = state.reservations.unpromised
    snapshot = _Snapshot(
        last_id=state.last_id,
        inputs=state.inputs.hex(),
        now_ms=state.now_ms,
        ticked_ms=state.ticked_ms,
        epoch=state.epoch,
        seq=state.seq,
        core=state.core,
        incarnation=state.incarnation,
        policy=state.policy,
        policy_recorded=state.policy_recorded,
        fence=state.fence,
        recovering_since_ms=state.recovering_since_ms,
        recovering_for_ms=state.recovering_for_ms,
        recovering_elected_ms=state.recovering_elected_ms,
        recovering_elected_for_ms=state.recovering_elected_for_ms,
        arrivals=state.arrivals,
        devices=[device.observed for device in state.ledger.ordered_devices()],
        leases=[_dump_lease(lease) for lease in state.ledger.leases.values()],
        floor=state.floor,
        waiting=[_dump_waiting(waiting) for waiting in state.waitlist.by_id.values()],
        plans=[_dump_plan(state, each.plan) for each in state.waitlist.by_id.values() if each.plan is not None],
        reservations=[_dump_reservation(each) for each in state.reservations.in_order],
        first=[waiting.request.lease_id for waiting in state.reservations.first],
        unpromised=None if unpromised is None else unpromised.request.lease_id,
        look_is_due=state.look_is_due,
        history=[_dump_past(past, at_ms) for at_ms, _, past in state.history.items()],
        lost_sessions=[(member, at_ms) for at_ms, member, _ in state.lost_sessions.items()],
    )
    return msgspec.json.encode(snapshot)


def digest(dumped: bytes) -> str:
    """The SHA-256 of a dumped state, in hex."""
    return hashlib.sha256(dumped).hexdigest()


def load(dumped: bytes) -> State:
    """The state that was dumped. Raises `msgspec.DecodeError` for bytes that no `dump` wrote."""
    snapshot = _DECODER.decode(dumped)
    state = State()
    state.last_id, state.inputs = snapshot.last_id, bytes.fromhex(snapshot.inputs)
    state.now_ms, state.ticked_ms = snapshot.now_ms, snapshot.ticked_ms
    state.epoch, state.seq = snapshot.epoch, snapshot.seq
    state.core, state.incarnation = snapshot.core, snapshot.incarnation
    state.set_policy(snapshot.policy)
    state.policy_recorded = snapshot.policy_recorded
    state.fence, state.arrivals, state.floor = snapshot.fence, snapshot.arrivals, snapshot.floor
    state.recovering_since_ms, state.recovering_for_ms = snapshot.recovering_since_ms, snapshot.recovering_for_ms
    state.recovering_elected_ms = snapshot.recovering_elected_ms
    state.recovering_elected_for_ms = snapshot.recovering_elected_for_ms
    if state.recovering_until_ms is not None:
        state.timers.set(state.recovering_until_ms, TimerKind.RECOVERY_END, "")
    for observed in snapshot.devices:
        state.ledger.observe(observed)
    for lease in snapshot.leases:
        _load_lease(state, lease)
    for waiting in snapshot.waiting:
        _load_waiting(state, waiting)
    for plan in snapshot.plans:
        _load_plan(state, plan)
    _load_kept(state, snapshot)
    for past in snapshot.history:
        ended = past.ended if past.ended is not None else past.denied
        assert ended is not None
        state.history.add(past.request.lease_id, Past(past.request, past.granted, ended), past.at_ms)
    for member, at_ms in snapshot.lost_sessions:
        state.lost_sessions.add(member, None, at_ms)
    _rebuild_sessions(state)
    return state


def _dump_lease(lease: Lease) -> _Lease:
    return _Lease(
        request=lease.request,
        arrival=lease.arrival,
        granted=lease.granted,
        devices=[device.key for device in lease.devices],
        state=lease.state,
        expires_at_ms=lease.expires_at_ms,
        expiry_set_ms=lease.expiry_set_ms,
        yield_by_ms=lease.yield_by_ms,
        yield_set_ms=lease.yield_set_ms,
        reclaiming_since_ms=lease.reclaiming_since_ms,
        vouched=lease.vouched,
        uses=lease.uses,
        reload_ms=lease.reload_ms,
        since_ms=lease.since_ms,
        floor=lease.floor,
        settles=lease.settles,
    )


def _dump_waiting(waiting: Waiting) -> _Waiting:
    return _Waiting(
        request=waiting.request,
        priority=waiting.shape.priority,
        key=waiting.key,
        arrival=waiting.arrival,
        requested_at_ms=waiting.requested_at_ms,
        wait_until_ms=waiting.wait_until_ms,
        starves_at_ms=waiting.starves_at_ms,
        starves=waiting.starves,
        since_ms=waiting.since_ms,
        preempts_at_ms=waiting.preempts_at_ms,
    )


def _dump_plan(state: State, plan: Plan) -> _Plan:
    """Without the leases that gave everything back: they matter no more."""
    pending = [lease for lease in plan.leases if lease.plan is plan and _is_there(state, lease)]
    return _Plan(
        lease_id=plan.waiting.request.lease_id,
        devices=_keys(plan.devices),
        leases=[lease.request.lease_id for lease in pending],
        stock_mib=plan.stock_mib,
    )


def _is_there(state: State, lease: Lease) -> bool:
    return state.ledger.leases.get(lease.request.lease_id) is lease


def _dump_reservation(reservation: Reservation) -> _Reservation:
    return _Reservation(
        lease_id=reservation.waiting.request.lease_id,
        devices=_keys(reservation.devices),
        start_ms=reservation.start_ms,
        extra_mib=reservation.extra_mib,
        promised_ms=reservation.promised_ms,
        target=_keys(reservation.target),
    )


def _keys(devices: list[Device]) -> list[str]:
    return [device.key for device in devices]


def _dump_past(past: Past, at_ms: int) -> _Past:
    ended = past.ended
    return _Past(
        request=past.request,
        granted=past.granted,
        ended=ended if isinstance(ended, LeaseEnded) else None,
        denied=ended if isinstance(ended, LeaseDenied) else None,
        at_ms=at_ms,
    )


def _load_lease(state: State, dumped: _Lease) -> None:
    lease = Lease(
        request=dumped.request,
        arrival=dumped.arrival,
        granted=dumped.granted,
        devices=_devices(state, dumped.devices),
        state=dumped.state,
        expires_at_ms=dumped.expires_at_ms,
        expiry_set_ms=dumped.expiry_set_ms,
        yield_by_ms=dumped.yield_by_ms,
        yield_set_ms=dumped.yield_set_ms,
        reclaiming_since_ms=dumped.reclaiming_since_ms,
        vouched=dumped.vouched,
        uses=dumped.uses,
        reload_ms=dumped.reload_ms,
        since_ms=dumped.since_ms,
        floor=dumped.floor,
        settles=dumped.settles,
    )
    state.ledger.reopen(lease)
    if lease.expires_at_ms is not None:
        state.timers.set(lease.expires_at_ms, TimerKind.LEASE_EXPIRY, lease.request.lease_id)
    if lease.yield_by_ms is not None:
        state.timers.set(lease.yield_by_ms, TimerKind.YIELD_DEADLINE, lease.request.lease_id)


def _load_waiting(state: State, dumped: _Waiting) -> None:
    waiting = Waiting(
        request=dumped.request,
        shape=shape_of(dumped.request, dumped.priority, state.limits),
        key=dumped.key,
        arrival=dumped.arrival,
        requested_at_ms=dumped.requested_at_ms,
        wait_until_ms=dumped.wait_until_ms,
        starves_at_ms=dumped.starves_at_ms,
        starves=dumped.starves,
        since_ms=dumped.since_ms,
        preempts_at_ms=dumped.preempts_at_ms,
    )
    state.enqueue(waiting)


def _load_plan(state: State, dumped: _Plan) -> None:
    waiting, leases = state.waitlist.by_id[dumped.lease_id], state.ledger.leases
    plan = Plan(waiting, _devices(state, dumped.devices), [leases[each] for each in dumped.leases], dumped.stock_mib)
    waiting.plan = plan
    for lease in plan.leases:
        lease.plan = plan
    for device in plan.devices:
        device.keep_for(plan)
    state.planned[dumped.lease_id] = waiting
    state.waitlist.leave(waiting)


def _load_kept(state: State, snapshot: _Snapshot) -> None:
    """What is kept for those who wait, as the last pass made it."""
    by_id, kept = state.waitlist.by_id, state.reservations
    for each in snapshot.reservations:
        devices, target = _devices(state, each.devices), _devices(state, each.target)
        kept.add(Reservation(by_id[each.lease_id], devices, each.start_ms, each.extra_mib, each.promised_ms, target))
    kept.first = [by_id[lease_id] for lease_id in snapshot.first]
    kept.is_whole = False  # whether it was is not written
    state.look_is_due = snapshot.look_is_due
    state.ledger.changes.freed_all = True  # what changed since the last pass is not written
    if snapshot.unpromised is not None:
        waiting = kept.unpromised = by_id[snapshot.unpromised]
        if not waiting.starves:
            state.timers.set(waiting.starves_at_ms, TimerKind.STARVATION, snapshot.unpromised)


def _devices(state: State, keys: list[str]) -> list[Device]:
    return [state.ledger.devices[key] for key in keys]


def _rebuild_sessions(state: State) -> None:
    """Sessions list their lease_ids in the order in which they were asked for: it is the order of their ends."""
    alive: list[Lease | Waiting] = [lease for lease in state.ledger.leases.values() if lease.state != "reclaiming"]
    alive += state.waitlist.by_id.values()
    for owner in sorted(alive, key=lambda owner: owner.arrival):
        state.join_session(owner.request)
