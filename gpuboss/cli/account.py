"""What the log says about one lease or request: as an object, and as sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from gpuboss.cli.wording import ago, count, duration, since, size
from gpuboss.core.explain import explain, kept_before
from gpuboss.core.history import Past
from gpuboss.core.ledger import Device, Lease
from gpuboss.core.placement import place
from gpuboss.core.projections import lease_row
from gpuboss.core.quotas import ahead_of, left_mib, may_begin
from gpuboss.core.state import State
from gpuboss.core.waitlist import Shape, Waiting
from gpuboss.events import LeaseDenied, LeaseEnded, LeaseGranted
from gpuboss.terminal import escaped

Account = dict[str, Any]

DEVICES_NAMED = 4


def account(state: State, lease_id: str) -> Account | None:
    """What became of this id; None if the state knows nothing of it."""
    waiting = state.waitlist.by_id.get(lease_id)
    if waiting is not None:
        return _waiting(state, waiting)
    past = state.history.by_name.get(lease_id)
    # Nothing else asks when it ended, so it is looked for instead of kept by name.
    at_ms = next((at_ms for at_ms, name, _ in state.history.items() if name == lease_id), 0)
    lease = state.ledger.leases.get(lease_id)
    if lease is not None:
        return _held(lease, past, at_ms)
    return None if past is None else ended(past.granted, past.ended, at_ms)


def ended(granted: LeaseGranted | None, end: LeaseEnded | LeaseDenied, at_ms: int) -> Account:
    """What an end in the log says."""
    found: Account = {"lease_id": end.lease_id, "service": end.service, "reason": end.reason, "event_id": end.cause}
    if isinstance(end, LeaseDenied):
        return {**found, "state": "denied", "denied_at_ms": at_ms, "detail": end.detail}
    found |= {"state": "ended", "ended_at_ms": at_ms, "freed": end.freed}
    if granted is not None:
        found |= _of_grant(granted)
    return found


def to_text(found: Account, now_ms: int) -> str:
    """The account for a person, who reads it at `now_ms`; escaped. `decided` in it says whether it is that."""
    writers = {"waiting": _waiting_lines, "ended": _ended_lines, "denied": _denied_lines}
    lines = [*writers.get(found["state"], _held_lines)(found, now_ms)]
    if not found["decided"]:
        lines.append("no scheduler has decided this yet: it is what the request leads to once one does")
    return "\n".join(map(escaped, lines))


# ---------------------------------------------------------------- as an object


def _waiting(state: State, waiting: Waiting) -> Account:
    request, why = waiting.request, explain(state, waiting)
    found: Account = {
        "lease_id": request.lease_id,
        "state": "waiting",
        "service": request.service,
        "vram_mib": request.vram_mib,
        "gpus": request.gpus,
        "device": request.device,
        "node": request.node,
        "exclusive": request.exclusive,
        "priority": waiting.shape.priority,
        "requested_at_ms": waiting.requested_at_ms,
        "wait_until_ms": waiting.wait_until_ms,
        "place": why.place,
        "waiting": len(state.waitlist.by_id),
        "reason": why.reason,
        "blocked_by": why.blocked_by,
        "detail": why.detail,
        "starts_by_ms": why.starts_by_ms,
        "is_promise": why.is_promise,
        "blockers": [_blocker(state, lease_id) for lease_id in why.blocked_by],
    }
    return found | {"advice": list(_advice(state, waiting, found))}


def _blocker(state: State, lease_id: str) -> Account:
    lease = state.ledger.leases.get(lease_id)
    if lease is not None:
        row = _row(lease)
        return row | ({} if lease.reclaiming_since_ms is None else {"reclaiming_since_ms": lease.reclaiming_since_ms})
    waiting = state.waitlist.by_id[lease_id]
    return {
        "lease_id": lease_id,
        "service": waiting.request.service,
        "vram_mib": waiting.request.vram_mib,
        "priority": waiting.shape.priority,
        "state": "waiting",
        "requested_at_ms": waiting.requested_at_ms,
    }


def _advice(state: State, waiting: Waiting, found: Account) -> Iterator[str]:
    held = [each for each in found["blockers"] if each["state"] in ("held", "idle")]
    if held:
        first = min(held, key=lambda each: (each["granted_at_ms"], each["fence"]))
        yield f"the oldest lease in the way can be asked back: gpuboss revoke {first['lease_id']} --grace 30s"
    if any(each["state"] == "reclaiming" for each in found["blockers"]):
        yield "VRAM of a lease that has ended comes back once its memory is seen to be gone"
    if waiting.shape.service is not None and not may_begin(state, waiting):
        yield from _advice_on_limit(state, waiting, waiting.shape.service)
    elif not state.candidates(waiting.shape):
        yield "start a scheduler that has devices: none is known yet"
    else:
        yield from _advice_on_place(state, waiting, found["reason"])


def _advice_on_limit(state: State, waiting: Waiting, service: str) -> Iterator[str]:
    kept_mib = sum(each.shape.size_mib for each in ahead_of(state, waiting))
    if (most_mib := left_mib(state, service) - kept_mib) > 0:
        yield f"a request of {size(most_mib)} or less is within the limit of {service}"
    yield f"{service} could hold more with a higher limit_mib in scheduler.policy"


def _advice_on_place(state: State, waiting: Waiting, reason: str) -> Iterator[str]:
    request, shape = waiting.request, waiting.shape
    if request.device is not None or request.node is not None:
        anywhere = shape._replace(device=None, node=None)
        free = place(anywhere, _open_to(state, waiting, anywhere))
        if free:
            yield f"without the wish for {request.device or request.node} it would fit on {_names(free)} now"
    if request.exclusive:
        free = place(shape._replace(exclusive=False), _open_to(state, waiting, shape))
        if free:
            yield f"if it shared its device (exclusive=false), it would fit on {_names(free)} now"
    if reason == "reserved_for" and request.ttl_ms is None:
        yield "with a TTL that ends before those named above start it could use the room until then"
    if reason == "reserved_for" and waiting.shape.priority != "high":
        yield "a higher priority comes first; those named above were asked for earlier, or with more of it"
    room_mib = max((device.free_mib for device in _open_to(state, waiting, shape) if not device.exclusive), default=0)
    if reason in ("no_room", "pinned_device_full") and 0 < room_mib < request.vram_mib:
        yield f"a request of {size(room_mib)} or less has room now"


def _open_to(state: State, waiting: Waiting, shape: Shape) -> list[Device]:
    """The devices that could hold this shape and are not kept for requests that come before."""
    kept = kept_before(state, waiting)
    return [device for device in state.candidates(shape) if device not in kept]


def _held(lease: Lease, past: Past | None, ended_at_ms: int) -> Account:
    found = _row(lease) | _of_grant(lease.granted)
    if past is not None and lease.state == "reclaiming":
        found |= {"reason": past.ended.reason, "ended_at_ms": ended_at_ms, "freed": False}
    return found


def _row(lease: Lease) -> Account:
    row: Account = msgspec.to_builtins(lease_row(lease))
    return row | ({"yield_by_ms": lease.yield_by_ms} if lease.state == "yielding" else {})


def _of_grant(granted: LeaseGranted) -> Account:
    return {
        "node": granted.node,
        "device": granted.device,
        "devices": list(granted.devices),
        "vram_mib": granted.vram_mib,
        "granted_at_ms": granted.granted_at_ms,
        "waited_ms": granted.waited_ms,
        "fence": granted.fence,
    }


# ---------------------------------------------------------------- as sentences


def _waiting_lines(found: Account, now_ms: int) -> Iterator[str]:
    wish = size(found["vram_mib"]) + (f" on each of {found['gpus']} devices" if found["gpus"] > 1 else "")
    where = " ".join(filter(None, (found["device"], found["node"] and f"on {found['node']}")))
    yield (
        f"{found['lease_id']} waits: {found['service']} asked for {wish}{where and f' of {where}'}"
        f"{', exclusively' if found['exclusive'] else ''} {ago(found['requested_at_ms'], now_ms)}, "
        f"with {found['priority']} priority"
    )
    yield f"place {found['place']} of {count(found['waiting'], 'waiting request')}"
    yield f"{found['reason']}: {found['detail']}"
    for blocker in found["blockers"]:
        yield f"  blocked by {_blocker_line(blocker, now_ms)}"
    if found["starts_by_ms"] is not None:
        yield _start_line(found["starts_by_ms"], found["is_promise"], now_ms)
    if found["wait_until_ms"] is not None:
        yield f"it gives up {ago(found['wait_until_ms'], now_ms)}"
    for advice in found["advice"]:
        yield f"what would help: {advice}"


def _start_line(starts_by_ms: int, is_promise: bool, now_ms: int) -> str:
    when = ago(starts_by_ms, now_ms)
    if not is_promise:
        return f"it might start {when}: a guess, as if nobody came before it"
    return f"it starts {when} at the latest" if starts_by_ms > now_ms else f"it should have started {when}"


def _blocker_line(blocker: Account, now_ms: int) -> str:
    who = f"{blocker['lease_id']} ({blocker['service']}, {size(blocker['vram_mib'])}, {blocker['priority']})"
    if blocker["state"] == "waiting":
        return f"{who}, which has waited for {since(blocker['requested_at_ms'], now_ms)} and comes first"
    end = "has no TTL" if blocker["expires_at_ms"] is None else f"expires {ago(blocker['expires_at_ms'], now_ms)}"
    if blocker["state"] == "yielding":
        end = f"was asked back, and will be taken {ago(blocker['yield_by_ms'], now_ms)}"
    held = f"{blocker['state']} on {_where(blocker)} for {since(blocker['granted_at_ms'], now_ms)}"
    return f"{who}, {held}, {end}"


def _held_lines(found: Account, now_ms: int) -> Iterator[str]:
    yield (
        f"{found['lease_id']} is {found['state']}: {found['service']} has {size(found['vram_mib'])} on "
        f"{_where(found)} for {since(found['granted_at_ms'], now_ms)}, after a wait of {duration(found['waited_ms'])}"
    )
    if found["state"] == "idle":
        yield "its model is kept warm, unused: it may be asked back as soon as somebody who waits needs its room"
    if found["state"] == "reclaiming":
        yield f"it ended {ago(found.get('ended_at_ms'), now_ms)} ({found.get('reason')}); its VRAM is not seen free yet"
    elif found["state"] == "yielding":
        yield f"it was asked back, and will be taken {ago(found['yield_by_ms'], now_ms)}"
    elif found["expires_at_ms"] is None:
        yield "it has no TTL: it ends when it is released, when it is revoked, or when its process dies"
    else:
        yield f"it expires {ago(found['expires_at_ms'], now_ms)}"


def _ended_lines(found: Account, now_ms: int) -> Iterator[str]:
    held = f", having held {size(found['vram_mib'])} on {_where(found)}" if "node" in found else ""
    yield f"{found['lease_id']} ended {ago(found['ended_at_ms'], now_ms)}: {found['reason']}"
    yield f"it belonged to {found['service']}{held}; entry {found['event_id']} ended it"


def _denied_lines(found: Account, now_ms: int) -> Iterator[str]:
    yield f"{found['lease_id']} was denied {ago(found['denied_at_ms'], now_ms)}: {found['reason']}, {found['detail']}"
    yield f"it belonged to {found['service']}; entry {found['event_id']} ended it"


def _where(row: Account) -> str:
    return f"{row['node']}/{'+'.join(row['devices'])}"


def _names(devices: list[Device]) -> str:
    names = ", ".join(device.key for device in devices[:DEVICES_NAMED])
    return names if len(devices) <= DEVICES_NAMED else f"{names}, ..."
