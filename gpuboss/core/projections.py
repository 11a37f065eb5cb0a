"""What Redis shows of the state: one row for each lease, waiting request and device."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType

from gpuboss.core.explain import Explanation, explain_first
from gpuboss.core.ledger import Device, Lease
from gpuboss.core.lifecycle import State as LeaseState
from gpuboss.core.state import State
from gpuboss.core.waitlist import Waiting
from gpuboss.fields import Priority

BLOCKERS_SHOWN = 16  # of a waiting request: a thousand small leases in the way of a thousand requests are a million ids


class LeaseRow(Struct, frozen=True):
    """A lease as `redis-cli hgetall "gpuboss:leases"` shows it."""

    lease_id: str
    service: str
    session: str | None
    node: str
    device: str
    devices: tuple[str, ...]
    vram_mib: int
    priority: Priority
    state: LeaseState
    granted_at_ms: int
    expires_at_ms: int | None
    fence: int


class QueueRow(Struct, frozen=True):
    """A waiting request. `place`, `reason` and `blocked_by` are refreshed apart from the commits; of
    the blockers it has the first few."""

    lease_id: str
    service: str
    vram_mib: int
    priority: Priority
    requested_at_ms: int
    place: int | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    blocked_by: list[str] | UnsetType = UNSET


class DeviceRow(Struct, frozen=True):
    """A device. What is neither leased, reclaiming, foreign nor free is the driver's and the margin."""

    uuid: str
    name: str
    total_mib: int
    leased_mib: int
    reclaiming_mib: int
    foreign_mib: int
    free_mib: int
    healthy: bool


def lease_row(lease: Lease) -> LeaseRow:
    """The row of a lease."""
    request, granted = lease.request, lease.granted
    return LeaseRow(
        lease_id=request.lease_id,
        service=request.service,
        session=request.session,
        node=granted.node,
        device=granted.device,
        devices=granted.devices,
        vram_mib=request.vram_mib,
        priority=lease.priority,
        state=lease.state,
        granted_at_ms=granted.granted_at_ms,
        expires_at_ms=lease.expires_at_ms,
        fence=granted.fence,
    )


def queue_row(waiting: Waiting, explanation: Explanation | None = None) -> QueueRow:
    """The row of a waiting request, with its explanation where one was made."""
    request = waiting.request
    return QueueRow(
        lease_id=request.lease_id,
        service=request.service,
        vram_mib=request.vram_mib,
        priority=waiting.shape.priority,
        requested_at_ms=waiting.requested_at_ms,
        place=UNSET if explanation is None else explanation.place,
        reason=UNSET if explanation is None else explanation.reason,
        blocked_by=UNSET if explanation is None else explanation.blocked_by[:BLOCKERS_SHOWN],
    )


def device_row(device: Device) -> DeviceRow:
    """The row of a device."""
    observed = device.observed
    return DeviceRow(
        uuid=observed.uuid,
        name=observed.name,
        total_mib=observed.total_mib,
        leased_mib=device.charged_mib - device.reclaiming_mib,
        reclaiming_mib=device.reclaiming_mib,
        foreign_mib=observed.foreign_mib,
        free_mib=device.free_mib,
        healthy=observed.healthy,
    )


def lease_rows(state: State) -> dict[str, LeaseRow]:
    """All leases by lease_id."""
    return {lease_id: lease_row(lease) for lease_id, lease in state.ledger.leases.items()}


def queue_rows(state: State) -> dict[str, QueueRow]:
    """All waiting requests by lease_id, in the order of the queue; the first thousand with their explanation."""
    explained = explain_first(state)
    return {
        waiting.request.lease_id: queue_row(waiting, explained.get(waiting.request.lease_id))
        for waiting in state.waitlist.in_order()
    }


def device_rows(state: State) -> dict[str, DeviceRow]:
    """All devices by `<node>/cuda:<n>`, in their order."""
    return {device.key: device_row(device) for device in state.ledger.ordered_devices()}
