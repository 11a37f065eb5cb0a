"""Every event of the log and of the reply streams, as frozen structs: the vocabulary of GPUBoss.

An entry of a stream has two fields, `type` (the name of one of these classes) and `data` (its JSON). VRAM is in
MiB, times are ms of the log's clock, durations end in `_ms`. Rules of evolution: a type's name never changes its
meaning, new fields are optional, readers skip fields that they do not know.

To add an event: write its class here, put it into the table at the end, give it a handler in
`gpuboss/core/machine.py` (inputs) and a line in the tests of `tests/core`; the JSON Schema follows by itself.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from gpuboss.fields import (
    GPUS_MAX,
    MS_MAX,
    RESERVATIONS_MAX,
    AskedMib,
    DeviceName,
    DeviceWish,
    Digest,
    DurationMs,
    HeadStart,
    LeaseId,
    Mib,
    Ms,
    PreemptAfter,
    Preemption,
    Priority,
    SentLeaseId,
    SentServiceName,
    ServiceName,
    ServiceRules,
    SessionId,
    StreamId,
    Text,
    WaitingCap,
)


class Event(Struct, frozen=True, gc=False):
    """What all events have in common: nothing but being one."""


# ---------------------------------------------------------------- from services


class FromService(Event, frozen=True):
    """What all have in common that a service says: which lease, or request, it means, and its own name."""

    lease_id: SentLeaseId
    service: SentServiceName


class LeaseRequested(FromService, frozen=True):
    """A service asks for VRAM: `vram_mib` on each of `gpus` devices of one node, all or none."""

    vram_mib: AskedMib
    priority: Priority = "normal"
    device: DeviceWish | None = None
    node: ServiceName | None = None
    gpus: Annotated[int, Meta(ge=1, le=GPUS_MAX)] = 1
    exclusive: bool = False
    ttl_ms: DurationMs | None = None
    wait_ms: DurationMs | None = None
    reclaimable: bool = False
    preemptible: bool = True
    instance: ServiceName | None = None
    session: SentLeaseId | None = None
    pid: Annotated[int, Meta(ge=0, le=2**32)] | None = None
    model: Text | None = None
    traceparent: Text | None = None


class LeaseReleased(FromService, frozen=True):
    """A service gives its lease back, or, while it still waits, takes its request back."""


class LeaseRenewed(FromService, frozen=True):
    """A holder asks that its lease end `ttl_ms` after this event."""

    ttl_ms: DurationMs


class LeaseIdled(FromService, frozen=True):
    """A holder keeps its model warm but does not use it: the VRAM may be asked back. `reload_ms`: its price."""

    reload_ms: Ms = 0


class LeaseResumed(FromService, frozen=True):
    """A holder wants to use its warm model again; it may once `LeaseStateChanged` says `held`."""

    reload_ms: Ms = 0


class LeaseReasserted(FromService, frozen=True):
    """A holder repeats the projection of its lease after the log was lost (a new `incarnation`); `exclusive`,
    `reclaimable`, `preemptible` and `instance` are as in its request, and have the same defaults."""

    node: ServiceName
    device: DeviceName
    devices: list[DeviceName]
    vram_mib: AskedMib
    priority: Priority
    state: Literal["held", "idle", "yielding", "reclaiming"]
    granted_at_ms: Ms
    fence: Ms
    expires_at_ms: Ms | None = None
    session: SessionId | None = None
    exclusive: bool = False
    reclaimable: bool = False
    preemptible: bool = True
    instance: ServiceName | None = None


# ---------------------------------------------------------------- from operators


class LeaseRevoked(Event, frozen=True, omit_defaults=True):
    """An operator takes a lease away, after `grace_ms` in which its holder may give it back itself. `vouched`: or says
    of one that has ended that its memory is gone, so that it is free; whoever revokes twice does not say that.

    `epoch` and `seq` are there when the scheduler writes it for an operator who deleted a projection.
    """

    lease_id: LeaseId
    reason: Text
    by: Text
    grace_ms: Ms = 0
    vouched: bool = False
    epoch: Ms | None = None
    seq: Ms | None = None


# ---------------------------------------------------------------- facts that the scheduler adds


class LogLost(Struct, frozen=True):
    """What is known of a log of which entries are gone: the last id that it had, and a fence above all it granted."""

    last_id: StreamId
    fence: Ms


class SchedulerElected(Event, frozen=True, omit_defaults=True):
    """A scheduler's reign begins. `core` is the version of the decision rules, `incarnation` the log's own name.

    `lost` is there where entries of the log are gone that were there before: a new incarnation begins, in which
    nothing is granted until whoever holds a lease had time to say so. `cursor` is there where the reigns before had
    another core: the last entry that they decided.
    """

    scheduler: Text
    version: Text
    core: Ms
    incarnation: Text
    lost: LogLost | None = None
    cursor: StreamId | None = None


class PolicySet(Event, frozen=True):
    """The rules from here on, every value resolved. `margin_mib` null: the devices' own default.

    Of each service `max_waiting` requests may wait (null: any number), unless `services` names it. `preemption`: which
    leases may be asked back for who waits, `grace_ms` in which they are given back; `preempt_after_ms` and
    `min_run_ms` bound what `lower` may do. `settle_ms`: how long the memory of a lease that its holder gave back may
    take, at most, to be seen back on a real device."""

    head_start_ms: HeadStart
    margin_mib: Mib | None
    session_ttl_ms: DurationMs
    lock_delay_ms: Ms
    max_waiting: WaitingCap | None = None
    services: dict[ServiceName, ServiceRules] = {}
    reservations: Annotated[int, Meta(ge=0, le=RESERVATIONS_MAX)] = 4
    backfill_order: Literal["key", "short"] = "key"
    starve_ms: Ms = 1_800_000
    preemption: Preemption = "idle"
    preempt_after_ms: PreemptAfter = PreemptAfter()
    min_run_ms: Ms = 60_000
    grace_ms: Ms = 15_000
    settle_ms: Ms = 5_000


class DeviceObserved(Event, frozen=True):
    """A device is there, or something about it changed. What is never lent: reserved, margin, foreign."""

    node: ServiceName
    device: DeviceName
    uuid: DeviceWish
    name: Text
    total_mib: Mib
    reserved_mib: Mib = 0
    margin_mib: Mib = 0
    foreign_mib: Mib = 0
    simulated: bool = False
    healthy: bool = True


class DeviceLost(Event, frozen=True):
    """A device is gone; what was leased on it has ended."""

    node: ServiceName
    device: DeviceName


class LeaseObserved(Event, frozen=True):
    """What NVML sees a lease's processes use on one of its devices."""

    lease_id: LeaseId
    device: DeviceName
    used_mib: Mib


class SessionLost(Event, frozen=True):
    """A process of a service stopped its heartbeat for longer than the session TTL."""

    service: ServiceName
    session: SessionId


class ClockTicked(Event, frozen=True, omit_defaults=True):
    """The log's clock reached `now_ms`: the only event at which timers fire. `inputs_follow`: entries of the same ms
    stand behind it, and who waits is looked at with the next of them, so that what ends by itself and what is given
    back at one ms is lent out in one go. For virtual time; a scheduler that leads cannot know it, and never says so."""

    now_ms: Ms
    inputs_follow: bool = False


class ClockJumped(Event, frozen=True):
    """The server's clock jumped at entry `from_id`: deadlines set before it move along by `delta_ms`. It is
    negative where that clock was put back, and the log's stood still for so long while nothing happened."""

    from_id: StreamId
    delta_ms: Annotated[int, Meta(ge=-MS_MAX, le=MS_MAX)]


class VramReclaimed(Event, frozen=True):
    """The VRAM of a lease that has ended is back: NVML shows it, an operator vouches for it, or there was time for it.
    `settled`: its holder gave it back, and `settle_ms` passed; `lock_delay`: it ended in any other way."""

    lease_id: LeaseId
    how: Literal["nvml", "settled", "lock_delay", "operator"]


class SnapshotTaken(Event, frozen=True):
    """The state behind the entry `through` was kept. `inputs` is the running digest of all inputs through it, `state`
    the digest of the state itself: what a replay compares with what it finds."""

    through: StreamId
    inputs: Digest
    state: Digest


# ---------------------------------------------------------------- decisions

# Only the scheduler writes these, from values that were validated when they came in: plain types, four times as
# fast to read back in a replay.


class Decision(Event, frozen=True, kw_only=True, omit_defaults=True):
    """What the scheduler derived from the entry `cause`; `session` is there where the request named one."""

    cause: str
    session: str | None = None


class LeaseGranted(Decision, frozen=True):
    """A lease begins. `fence` only grows; `device` is the first of `devices`. `priority`: less than was claimed."""

    lease_id: str
    service: str
    node: str
    device: str
    devices: tuple[str, ...]
    uuids: tuple[str, ...]
    vram_mib: int
    granted_at_ms: int
    expires_at_ms: int | None
    waited_ms: int
    fence: int
    priority: Priority | None = None


class LeaseDenied(Decision, frozen=True):
    """A request ends without a lease. `detail` is for a person and holds the numbers."""

    lease_id: str
    service: str
    reason: Literal["impossible", "timeout", "cancelled", "quota", "session_lost"]
    detail: str


class YieldRequested(Decision, frozen=True):
    """The holder is asked to unload and release by `deadline_ms`. `for`: the lease_id that waits, if one does."""

    lease_id: str
    service: str
    deadline_ms: int
    for_: str | None = field(name="for")


class PromiseMoved(Decision, frozen=True):
    """A request that waits will not start by `was_ms`, as it was promised, but by `starts_by_ms` (null: nothing is
    promised any more). What led to that, the entry `cause`, is outside the rules, or lets one that comes before it
    have the room."""

    lease_id: str
    service: str
    starts_by_ms: int | None
    was_ms: int


class LeaseExtended(Decision, frozen=True):
    """The answer to a renewal."""

    lease_id: str
    service: str
    expires_at_ms: int


class LeaseStateChanged(Decision, frozen=True):
    """The answer to idling and resuming."""

    lease_id: str
    service: str
    state: Literal["held", "idle"]


class LeaseEnded(Decision, frozen=True):
    """A lease is over. `freed`: its VRAM is free now; false: it is being reclaimed."""

    lease_id: str
    service: str
    reason: Literal["released", "expired", "revoked", "session_lost", "device_lost", "yielded"]
    freed: bool


RejectionReason = Literal[
    "malformed",
    "invalid",
    "unknown_type",
    "not_owner",
    "unknown_lease",
    "too_large",
    "duplicate",
    "reserved",
    "yielding",
    "forged",
]


class EventRejected(Decision, frozen=True):
    """An entry that changes nothing, and why. `detail` is for people: a replay does not compare it."""

    event_id: str
    reason: RejectionReason
    detail: str
    lease_id: str | None = None
    service: str | None = None


class Stamp(Struct, frozen=True, gc=False):
    """What everything that the scheduler writes to the log carries: its reign, and a number without gaps."""

    epoch: Ms = 0
    seq: Ms = 0


def _by_name(*classes: type[Event]) -> dict[str, type[Event]]:
    return {cls.__name__: cls for cls in classes}


FROM_SERVICES = _by_name(LeaseRequested, LeaseReleased, LeaseRenewed, LeaseIdled, LeaseResumed, LeaseReasserted)
FROM_OPERATORS = _by_name(LeaseRevoked)
FACTS = _by_name(
    SchedulerElected,
    PolicySet,
    DeviceObserved,
    DeviceLost,
    LeaseObserved,
    SessionLost,
    ClockTicked,
    ClockJumped,
    VramReclaimed,
    SnapshotTaken,
)
DECISIONS = _by_name(
    LeaseGranted, LeaseDenied, YieldRequested, PromiseMoved, LeaseExtended, LeaseStateChanged, LeaseEnded, EventRejected
)
ALL = FROM_SERVICES | FROM_OPERATORS | FACTS | DECISIONS
