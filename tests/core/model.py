"""What the scheduler must decide, said a second time: plain, slow, and without a line of the core.

It keeps one record for each lease_id, recomputes every sum, sorts the whole queue for every pass and reads the log
with `json`. Where the two differ, one of them is wrong.
"""

from __future__ import annotations

import json
from typing import Any

from tests.core.model_decisions import Answer, Clock, Decisions, Rejection
from tests.core.model_limits import Limits
from tests.core.model_prey import RULES as YIELDING
from tests.core.model_queue import Queue
from tests.core.model_room import ALIVE, Case, Room

DAY_MS = 24 * 60 * 60 * 1000
DEFAULTS: dict[str, Any] = {
    "priority": "normal",
    "device": None,
    "node": None,
    "gpus": 1,
    "exclusive": False,
    "ttl_ms": None,
    "wait_ms": None,
    "reclaimable": False,
    "preemptible": True,
    "instance": None,
    "session": None,
}
# What holds where a policy does not say.
RULES: dict[str, Any] = (
    {"reservations": 4, "starve_ms": 1_800_000, "backfill_order": "key"} | YIELDING | {"services": {}}
)
FACTS: tuple[str, ...] = ("SchedulerElected", "PolicySet", "DeviceObserved", "DeviceLost", "LeaseObserved")
FACTS += ("SessionLost", "ClockTicked", "ClockJumped", "VramReclaimed", "SnapshotTaken")
DECISIONS: tuple[str, ...] = ("LeaseGranted", "LeaseDenied", "YieldRequested", "LeaseExtended", "LeaseStateChanged")
DECISIONS += ("LeaseEnded", "PromiseMoved", "EventRejected")


class Model:
    """The expectation. Feed it the entries of a log in order; it answers with what must be decided."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.epoch = self.seq = self.arrivals = 0
        self.head_start_ms = {"low": 0, "normal": 900_000, "high": 3_600_000}
        self.devices: dict[str, dict[str, Any]] = {}
        self.cases: dict[str, Case] = {}
        self.room = Room(self.devices, self.cases)
        self.rules = RULES | {"lock_delay_ms": 60_000}
        self.limits = Limits(self.cases)
        self.decisions = Decisions(self.room, self.rules, self.clock)
        self.queue = Queue(self.room, self.rules, self.limits, self.decisions, self.clock)
        self.defers = False  # whether places are looked for with the next entry only
        self.lost: dict[tuple[str, str], int] = {}

    def apply(self, entry_id: str, fields: list[bytes], expected: Rejection | None = None) -> list[Answer]:
        """Take the next entry. `expected`: it is known to be no event, and must be rejected like this."""
        self.decisions.begin(entry_id)
        type_name, data = "", {}
        if expected is None:
            named = dict(zip(fields[0::2], fields[1::2], strict=True))
            type_name, data = named[b"type"].decode(), json.loads(named[b"data"])
            if type_name in FACTS + DECISIONS and not self._is_genuine(type_name, data):
                expected = Rejection("forged", data.get("lease_id"), data.get("service"), data.get("session"))
            elif type_name in DECISIONS:
                return []
        self._advance(int(entry_id.split("-")[0]))
        self.defers = False
        if expected is not None:
            self.decisions.reject(expected)
        else:
            if type_name == "LeaseRevoked" and (data.get("epoch"), data.get("seq")) == (self.epoch, self.seq + 1):
                self.seq += 1
            getattr(self, f"on_{type_name}")(data)
        if not self.defers:
            self.queue.serve()
        return self.decisions.answers

    # ------------------------------------------------------------ facts

    def _advance(self, now_ms: int) -> None:
        self.clock.now_ms = max(self.clock.now_ms, now_ms)
        old_ms = self.clock.now_ms - DAY_MS
        for lease_id in [i for i, case in self.cases.items() if case.is_ == "over" and case.over_ms <= old_ms]:
            del self.cases[lease_id]
        self.lost = {member: at_ms for member, at_ms in self.lost.items() if at_ms > old_ms}

    def _is_genuine(self, type_name: str, data: dict[str, Any]) -> bool:
        epoch, seq = data.get("epoch", 0), data.get("seq", 0)
        elected = type_name == "SchedulerElected"
        if seq != self.seq + 1 or not (epoch > self.epoch if elected else 0 < epoch == self.epoch):
            return False
        self.epoch, self.seq = epoch, seq
        return True

    def on_ClockTicked(self, data: dict[str, Any]) -> None:
        """Everything that is due, by (deadline, kind, id)."""
        self._advance(data["now_ms"])
        self.clock.ticked_ms = self.clock.now_ms
        due = []
        for lease_id, case in self.cases.items():
            deadlines = [(case.wait_until_ms, 2)] if case.is_ == "waiting" else []
            if case.is_ in ALIVE:
                deadlines = [(case.expires_ms, 0), (case.yield_by_ms if case.is_ == "yielding" else None, 1)]
            due += [(ms, kind, lease_id) for ms, kind in deadlines if ms is not None and ms <= self.clock.now_ms]
        for _, kind, lease_id in sorted(due):
            case = self.cases[lease_id]
            if kind == 2:
                self.decisions.deny(case, "timeout")
            elif case.is_ in ALIVE:
                self.decisions.end(case, "expired" if kind == 0 else "revoked")
        hopeless = self.queue.plan.unpromised
        for case in self.queue.in_order():
            if case is hopeless or self.limits.of(case.asked) is not None:
                case.starves = case.starves or case.starves_ms <= self.clock.now_ms
        self.defers = data.get("inputs_follow", False)

    def on_ClockJumped(self, data: dict[str, Any]) -> None:
        """What was set before moves along."""
        from_ms, delta_ms = int(data["from_id"].split("-")[0]), data["delta_ms"]
        for case in self.cases.values():
            if case.expires_ms is not None and case.expiry_set_ms < from_ms:
                case.expires_ms = max(0, case.expires_ms + delta_ms)
            if case.yield_by_ms is not None and case.yield_set_ms < from_ms:
                case.yield_by_ms = max(0, case.yield_by_ms + delta_ms)
            if case.wait_until_ms is not None and case.submitted_ms < from_ms:
                case.wait_until_ms = max(0, case.wait_until_ms + delta_ms)
            if case.since_ms < from_ms:
                case.since_ms = max(0, case.since_ms + delta_ms)
            if case.submitted_ms < from_ms:
                case.starves_ms = max(0, case.starves_ms + delta_ms)
            if case.is_ == "reclaiming" and case.reclaiming_ms < from_ms:
                case.reclaiming_ms = max(0, case.reclaiming_ms + delta_ms)

    def on_SchedulerElected(self, data: dict[str, Any]) -> None:
        """Its stamp was counted; there is nothing else to it."""

    def on_SnapshotTaken(self, data: dict[str, Any]) -> None:
        """It says what is, and changes nothing."""

    def on_LeaseObserved(self, data: dict[str, Any]) -> None:
        """These rules do not act on it yet."""
        self.decisions.reject(Rejection("unknown_type"))

    def on_PolicySet(self, data: dict[str, Any]) -> None:
        """Those who wait keep their keys."""
        self.head_start_ms = data["head_start_ms"]
        self.rules |= RULES | {name: data[name] for name in self.rules if name in data}
        self.limits.follow(data)
        self._deny_hopeless()

    def on_DeviceObserved(self, data: dict[str, Any]) -> None:
        """A device is there, or changed."""
        defaults = {"reserved_mib": 0, "margin_mib": 0, "foreign_mib": 0, "simulated": False, "healthy": True}
        self.devices[f"{data['node']}/{data['device']}"] = defaults | data
        self.queue.forget_wants()
        self._deny_hopeless()

    def on_DeviceLost(self, data: dict[str, Any]) -> None:
        """All that was on it ends; what of it lies on other devices stays charged there."""
        key = f"{data['node']}/{data['device']}"
        if key not in self.devices:
            return
        for case in self.room.on(key):
            case.devices = [other for other in case.devices if other != key]
            if case.is_ in ALIVE:
                self.decisions.end(case, "device_lost")
            elif not case.devices:
                case.is_ = "over"
        del self.devices[key]
        self.queue.forget_wants()
        self._deny_hopeless()

    def _deny_hopeless(self) -> None:
        for case in self.queue.in_order():
            self._deny_if_hopeless(case)

    def _deny_if_hopeless(self, case: Case) -> None:
        if self.limits.is_beyond(case):
            self.decisions.deny(case, "quota")
        elif self.devices and not self.room.able(case.asked):
            self.decisions.deny(case, "impossible")

    def on_SessionLost(self, data: dict[str, Any]) -> None:
        """All that the process asked for is over."""
        member = (data["service"], data["session"])
        self.lost.setdefault(member, self.clock.now_ms)
        mine = [case for case in self.cases.values() if (case.asked["service"], case.asked["session"]) == member]
        for case in sorted(mine, key=lambda case: case.arrival):
            if case.is_ == "waiting":
                self.decisions.deny(case, "session_lost")
            elif case.is_ in ALIVE:
                self.decisions.end(case, "session_lost")

    def on_VramReclaimed(self, data: dict[str, Any]) -> None:
        """The memory is back."""
        case = self.cases.get(data["lease_id"])
        if case is not None and case.is_ == "reclaiming":
            case.is_ = "over"

    # ------------------------------------------------------------ services and operators

    def on_LeaseRequested(self, data: dict[str, Any]) -> None:
        """A new request is queued or denied, an old one answered again."""
        asked = {name: data.get(name, default) for name, default in DEFAULTS.items()}
        asked |= {name: data[name] for name in ("lease_id", "service", "vram_mib")}
        known = self.cases.get(asked["lease_id"])
        if known is not None:
            self._ask_again(known, asked)
            return
        wait_until_ms = None if asked["wait_ms"] is None else self.clock.now_ms + asked["wait_ms"]
        priority = self.limits.counts_as(asked)
        key = self.clock.now_ms - self.head_start_ms[priority]
        most = self.limits.max_waiting(asked["service"])
        others = [case for case in self.queue.in_order() if case.asked["service"] == asked["service"]]
        self.arrivals += 1
        case = Case(asked, self.arrivals, key, self.clock.now_ms, wait_until_ms)
        case.since_ms = self.clock.now_ms
        case.starves_ms = self.clock.now_ms + self.rules["starve_ms"]
        case.counts_as = priority
        self.cases[asked["lease_id"]] = case
        if (asked["service"], asked["session"]) in self.lost:
            self.decisions.deny(case, "session_lost")
        elif most is not None and len(others) >= most:
            self.decisions.deny(case, "quota")
        else:
            self._deny_if_hopeless(case)

    def _ask_again(self, known: Case, asked: dict[str, Any]) -> None:
        forgotten = known.is_ == "reclaiming" and known.over_ms <= self.clock.now_ms - DAY_MS
        if asked != known.asked or forgotten:
            self.decisions.refuse("duplicate", asked, asked)
        else:
            self.decisions.repeat(known, asked)

    def _case_of(self, data: dict[str, Any]) -> Case | None:
        """The sender's case; if there is none, that is told."""
        case = self.cases.get(data["lease_id"])
        if case is None or case.asked["service"] != data["service"]:
            self.decisions.refuse("unknown_lease" if case is None else "not_owner", data, None)
            return None
        return case

    def _lease_of(self, data: dict[str, Any]) -> Case | None:
        """The sender's lease that may still change; if there is none, that is told."""
        case = self._case_of(data)
        if case is not None and case.is_ not in ("held", "idle"):
            reason = "yielding" if case.is_ == "yielding" else "unknown_lease"
            self.decisions.refuse(reason, data, case.asked)
            return None
        return case

    def on_LeaseReleased(self, data: dict[str, Any]) -> None:
        """A lease is given back, or a request taken back."""
        case = self._case_of(data)
        if case is not None and case.is_ == "waiting":
            self.decisions.deny(case, "cancelled")
        elif case is not None and case.is_ in ALIVE:
            self.decisions.end(case, "yielded" if case.is_ == "yielding" else "released")

    def on_LeaseRenewed(self, data: dict[str, Any]) -> None:
        """A lease goes on."""
        case = self._lease_of(data)
        if case is not None and self.queue.plan.voids(case, self.clock.now_ms + data["ttl_ms"]):
            self.decisions.refuse("reserved", data, case.asked)
        elif case is not None:
            case.expires_ms, case.expiry_set_ms = self.clock.now_ms + data["ttl_ms"], self.clock.now_ms
            self.decisions.say("LeaseExtended", case, expires_at_ms=case.expires_ms)

    def on_LeaseIdled(self, data: dict[str, Any]) -> None:
        """A lease is kept, unused."""
        case = self._lease_of(data)
        if case is not None and not case.asked["reclaimable"]:
            self.decisions.refuse("invalid", data, case.asked)
        elif case is not None:
            if case.is_ == "held":
                case.floor = self.queue.floor
            case.is_, case.reload_ms = "idle", data.get("reload_ms", 0)
            self.decisions.say("LeaseStateChanged", case, state="idle")

    def on_LeaseResumed(self, data: dict[str, Any]) -> None:
        """A lease is used again."""
        case = self._lease_of(data)
        if case is not None:
            if case.is_ == "idle":
                case.uses, case.reload_ms = case.uses + 1, data.get("reload_ms", 0) or case.reload_ms
            case.is_ = "held"
            self.decisions.say("LeaseStateChanged", case, state="held")

    def on_LeaseReasserted(self, data: dict[str, Any]) -> None:
        """Nothing new where the lease is known."""
        case = self._case_of(data)
        if case is not None and case.is_ not in ALIVE:
            self.decisions.refuse("unknown_lease", data, case.asked)

    def on_LeaseRevoked(self, data: dict[str, Any]) -> None:
        """An operator ends it, now or after a grace."""
        case = self.cases.get(data["lease_id"])
        grace_ms = data.get("grace_ms", 0)
        if case is None or case.is_ == "over":
            self.decisions.reject(Rejection("unknown_lease", data["lease_id"]))
        elif case.is_ == "waiting":
            self.decisions.deny(case, "cancelled")
        elif case.is_ == "reclaiming":
            pass  # if the operator vouches that the memory is back, the scheduler's fact follows
        elif not grace_ms:
            self.decisions.end(case, "revoked")
        elif case.is_ != "yielding":
            self.decisions.ask_back(case, grace_ms, None)
