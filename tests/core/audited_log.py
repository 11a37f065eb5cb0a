"""A finished log as its auditor sees it: which entries the scheduler wrote, what they say, what each input led to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

SERVICE_TYPES: tuple[str, ...] = ("LeaseRequested", "LeaseReleased", "LeaseRenewed", "LeaseIdled", "LeaseResumed")
SERVICE_TYPES += ("LeaseReasserted",)
FACT_TYPES: tuple[str, ...] = ("SchedulerElected", "PolicySet", "DeviceObserved", "DeviceLost", "LeaseObserved")
FACT_TYPES += ("SessionLost",)
FACT_TYPES += ("ClockTicked", "ClockJumped", "VramReclaimed", "SnapshotTaken")
DECISION_TYPES: tuple[str, ...] = ("LeaseGranted", "LeaseDenied", "YieldRequested", "LeaseExtended")
DECISION_TYPES += ("LeaseStateChanged", "LeaseEnded", "PromiseMoved", "EventRejected")
RANKS = ("low", "normal", "high")
INPUT_TYPES = (*SERVICE_TYPES, "LeaseRevoked", *FACT_TYPES)


@dataclass
class Audited:
    """One entry. `odd`: why it is no event at all, as far as one can see from outside; None if it may be one."""

    id: str
    type: str
    data: dict[str, Any]
    odd: str | None = None
    led_to: list[Audited] = field(default_factory=list)

    @property
    def at(self) -> tuple[int, int]:
        """The id, as Redis compares it."""
        ms, _, number = self.id.partition("-")
        return int(ms), int(number)


@dataclass
class AuditedLog:
    """The inputs in order, each with its decisions, and through which of them the scheduler has certainly come."""

    inputs: list[Audited]
    decided_through: tuple[int, int]
    problems: list[str]

    def blame(self, entry: Audited, what: str) -> None:
        """Something is wrong with an entry."""
        self.problems.append(f"{entry.id} {entry.type or '?'}: {what}")


@dataclass
class Caps:
    """How many requests of one service may wait, and how much it may hold: of each, and, where they have rules of
    their own, of some."""

    of_each: int | None = 10_000
    services: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, service: str) -> int | None:
        """How many of this service may wait; None: any number."""
        return self.services[service].get("max_waiting") if service in self.services else self.of_each

    def limit_mib(self, service: str) -> int | None:
        """How many MiB its leases may hold on all devices together; None: any number."""
        return self.services.get(service, {}).get("limit_mib")

    def counts_as(self, asked: dict[str, Any]) -> str:
        """The priority of a request: what it claims, or the most that its service may."""
        most = self.services.get(asked["service"], {}).get("max_priority", "high")
        return RANKS[min(RANKS.index(asked["priority"]), RANKS.index(most))]

    def guarantee_mib(self, service: str) -> int:
        """Of what this service holds and is not preemptible, so much is protected."""
        return int(self.services.get(service, {}).get("guarantee_mib", 0))


@dataclass(frozen=True)
class AskingBack:
    """Whose leases may be asked back for whom."""

    preemption: str = "idle"
    preempt_after_ms: dict[str, int] = field(default_factory=lambda: {"normal": 60_000, "high": 5_000})
    min_run_ms: int = 60_000

    @classmethod
    def of(cls, policy: dict[str, Any]) -> AskingBack:
        """As a policy has it; what it does not say is as it is by default."""
        names = ("preemption", "preempt_after_ms", "min_run_ms")
        return cls(**{name: policy[name] for name in names if name in policy})

    def why_not(self, lease: dict[str, Any], ran_ms: int | None, wants: dict[str, Any], waited_ms: int) -> str | None:
        """What is wrong with asking for a lease; `ran_ms` None: it is idle."""
        holder, asker = (RANKS.index(each["counts_as"]) for each in (lease, wants))
        if self.preemption == "off":
            return "nothing may be asked back"
        if ran_ms is None:
            return None if holder <= asker else "it is idle, and of a higher class"
        if self.preemption != "lower" or holder >= asker:
            return "it is held, and not to be pre-empted"
        if ran_ms < self.min_run_ms or waited_ms < self.preempt_after_ms[wants["counts_as"]]:
            return f"it ran for {ran_ms} ms, and the other waited for {waited_ms} ms"
        return None


def read_log(entries: Iterable[tuple[str, list[bytes]]]) -> AuditedLog:
    """Sort out who wrote what, and pair decisions with their causes."""
    log = AuditedLog([], (0, 0), [])
    by_id: dict[str, Audited] = {}
    epoch, seq, last_at = 0, 0, (-1, -1)
    for entry_id, fields in entries:
        entry = _read(entry_id, fields)
        if entry.at <= last_at:
            log.problems.append(f"{entry.id}: its id is not above the one before it")
        last_at = entry.at
        stamp = (entry.data.get("epoch"), entry.data.get("seq"))
        elected = entry.type == "SchedulerElected" and isinstance(stamp[0], int) and stamp[0] > epoch
        follows = stamp[1] == seq + 1 and (elected or (stamp[0] == epoch and epoch > 0))
        if entry.type in FACT_TYPES + DECISION_TYPES and not follows:
            entry.odd = "forged"
        elif entry.type in (*FACT_TYPES, *DECISION_TYPES, "LeaseRevoked") and follows:
            epoch, seq = int(str(stamp[0])), seq + 1
        if entry.type in DECISION_TYPES and entry.odd is None:
            _pair(log, by_id, entry)
        else:
            log.inputs.append(entry)
            by_id[entry.id] = entry
    return log


def _pair(log: AuditedLog, by_id: dict[str, Audited], decision: Audited) -> None:
    cause = by_id.get(str(decision.data.get("cause")))
    if cause is None:
        log.problems.append(f"{decision.id}: it stands in the log before its cause {decision.data.get('cause')}")
        return
    if cause.at < log.decided_through:
        log.problems.append(f"{decision.id}: decides {cause.id} after a later entry was decided")
    log.decided_through = max(log.decided_through, cause.at)
    cause.led_to.append(decision)


def _read(entry_id: str, fields: list[bytes]) -> Audited:
    named = dict(zip(fields[0::2], fields[1::2], strict=False))
    if len(fields) != 4 or set(named) != {b"type", b"data"}:
        return Audited(entry_id, "", {}, "malformed")
    type_name = named[b"type"].decode("utf-8", "replace")
    if type_name not in INPUT_TYPES + DECISION_TYPES:
        return Audited(entry_id, "", {}, "unknown")
    try:
        data = json.loads(named[b"data"].decode())
    except (ValueError, RecursionError):
        return Audited(entry_id, type_name, {}, "malformed")
    if not isinstance(data, dict):
        return Audited(entry_id, type_name, {}, "malformed")
    return Audited(entry_id, type_name, data)
