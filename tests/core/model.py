"""What the scheduler must decide, said a second time: plain, slow, and without a line of the core.

It keeps one record for each lease_id, recomputes every sum, sorts the whole queue for every pass and reads the log
with `json`. Where the two differ, one of them is wrong.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tests.core.model_plan import Plan
from tests.core.model_prey import RULES as YIELDING
from tests.core.model_prey import Prey, suffices, wanted_mib, worth
from tests.core.model_room import ALIVE, CHARGED, Case, Room, Want

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
OWN_RULES: dict[str, Any] = {"max_waiting": None, "limit_mib": None, "max_priority": "high"}  # of one service
RANKS = ("low", "normal", "high")
FACTS: tuple[str, ...] = ("SchedulerElected", "PolicySet", "DeviceObserved", "DeviceLost", "LeaseObserved")
FACTS += ("SessionLost", "ClockTicked", "ClockJumped", "VramReclaimed", "SnapshotTaken")
DECISIONS: tuple[str, ...] = ("LeaseGranted", "LeaseDenied", "YieldRequested", "LeaseExtended", "LeaseStateChanged")
DECISIONS += ("LeaseEnded", "PromiseMoved", "EventRejected")


class Answer(NamedTuple):
    """One expected decision: its type, its data without `detail`, its reply stream, and whether it is new."""

    type: str
    data: dict[str, Any]
    address: str | None
    is_new: bool


class Rejection(NamedTuple):
    """What is expected of an entry that is no event: the reason, and whom the entry names."""

    reason: str
    lease_id: str | None = None
    service: str | None = None
    session: str | None = None
    address: str | None = None


class Model:
    """The expectation. Feed it the entries of a log in order; it answers with what must be decided."""

    def __init__(self) -> None:
        self.now_ms = self.ticked_ms = self.floor = 0
        self.epoch = self.seq = self.fence = self.arrivals = 0
        self.head_start_ms = {"low": 0, "normal": 900_000, "high": 3_600_000}
        self.max_waiting: int | None = 10_000
        self.services: dict[str, dict[str, Any]] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.cases: dict[str, Case] = {}
        self.room = Room(self.devices, self.cases)
        self.rules = RULES | {"lock_delay_ms": 60_000}
        self.plan = Plan(self.room, self.rules)
        self.defers = False  # whether places are looked for with the next entry only
        self.lost: dict[tuple[str, str], int] = {}
        self._cause = ""
        self._answers: list[Answer] = []

    def apply(self, entry_id: str, fields: list[bytes], expected: Rejection | None = None) -> list[Answer]:
        """Take the next entry. `expected`: it is known to be no event, and must be rejected like this."""
        self._cause, self._answers = entry_id, []
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
            self._reject(expected)
        else:
            if type_name == "LeaseRevoked" and (data.get("epoch"), data.get("seq")) == (self.epoch, self.seq + 1):
                self.seq += 1
            getattr(self, f"on_{type_name}")(data)
        if not self.defers:
            self._pass()
        return self._answers

    def queue(self) -> list[Case]:
        """Everyone who waits, in order."""
        waiting = [case for case in self.cases.values() if case.is_ == "waiting"]
        return sorted(waiting, key=_order)

    # ------------------------------------------------------------ answering

    def _say(self, type_name: str, case: Case, **fields: Any) -> Answer:
        asked = case.asked
        data = {"cause": self._cause, "lease_id": asked["lease_id"], "service": asked["service"], **fields}
        if asked["session"] is not None:
            data["session"] = asked["session"]
        answer = Answer(type_name, data, _address(asked), True)
        self._answers.append(answer)
        return answer

    def _reject(self, rejection: Rejection) -> None:
        data = {"cause": self._cause, "event_id": self._cause, "reason": rejection.reason}
        for name in ("lease_id", "service", "session"):
            if (value := getattr(rejection, name)) is not None:
                data[name] = value
        self._answers.append(Answer("EventRejected", data, rejection.address, True))

    def _refuse(self, reason: str, data: dict[str, Any], listener: dict[str, Any] | None) -> None:
        """Refuse what a service asked; `listener` says on which stream, and for which session, it listens."""
        session = None if listener is None else listener["session"]
        address = data["service"] if listener is None else _address(listener)
        self._reject(Rejection(reason, data["lease_id"], data["service"], session, address))

    def _deny(self, case: Case, reason: str) -> None:
        case.is_, case.over_ms, case.want = "over", self.now_ms, None
        case.final = self._say("LeaseDenied", case, reason=reason)

    def _end(self, case: Case, reason: str) -> None:
        case.settles = reason in ("released", "yielded")
        real = [key for key in case.devices if not self.devices[key]["simulated"]]
        lingers = real or (case.devices if self.rules["lock_delay_ms"] > 0 else [])
        if case.settles:
            lingers = real if self.plan.lingers_ms(case) > 0 else []
        freed = not lingers
        case.is_, case.over_ms = "over" if freed else "reclaiming", self.now_ms
        case.reclaiming_ms = self.now_ms
        case.final = self._say("LeaseEnded", case, reason=reason, freed=freed)

    def _grant(self, case: Case, devices: list[str]) -> None:
        self.fence += 1
        asked, now_ms = case.asked, self.now_ms
        case.is_, case.devices, case.want, case.since_ms = "held", devices, None, now_ms
        case.expires_ms = None if asked["ttl_ms"] is None else now_ms + asked["ttl_ms"]
        case.expiry_set_ms = now_ms
        abouts = [self.devices[key] for key in devices]
        answer = self._say(
            "LeaseGranted",
            case,
            node=abouts[0]["node"],
            device=abouts[0]["device"],
            devices=[about["device"] for about in abouts],
            uuids=[about["uuid"] for about in abouts],
            vram_mib=asked["vram_mib"],
            granted_at_ms=now_ms,
            expires_at_ms=case.expires_ms,
            waited_ms=now_ms - case.submitted_ms,
            fence=self.fence,
            **({} if case.counts_as == asked["priority"] else {"priority": case.counts_as}),
        )
        case.granted = answer.data

    def _pass(self) -> None:
        """Everyone in order: whoever has an admitted place gets it, and for those who have none one is kept."""
        before = self.plan
        while self._walk(before):
            pass
        self._keep_promises()

    def _walk(self, before: Plan) -> bool:
        """One walk along the queue. `short`: of those who pass somebody only the shortest gets its place, and then all
        is walked again."""
        self.plan = plan = Plan(self.room, self.rules, before)
        failed = []
        passing: list[tuple[float, Case, list[str]]] = []
        for case in self.queue():
            within = self._is_within_limit(case)
            if case.want is not None:
                if not within:
                    case.want = None
                    return True
                if self._serve_wanting(case):
                    return True
                continue
            if self._kind(case) in failed or any(self._kind(case) == self._kind(other) for _, other, _ in passing):
                continue
            if not within:
                continue
            able = self.room.able(case.asked)
            devices = self.room.best(case.asked, [key for key in able if plan.admits(case.asked, key, self.now_ms)])
            if devices is None:
                if not passing and self._ask_back_for(case):
                    return True
                failed.append(self._kind(case))
                plan.keep(case, able)
            elif self.rules["backfill_order"] == "short" and plan.kept and not plan.had(case):
                passing.append((case.asked["ttl_ms"] or float("inf"), case, devices))
            else:
                self._grant(case, devices)
                if passing or self._concerns_others(case):
                    return True
        if passing:
            self._grant(*min(passing, key=lambda each: each[0])[1:])  # of equally short ones the first in the queue
        return bool(passing)

    def _concerns_others(self, granted: Case) -> bool:
        """Whether a grant may park somebody, or take room that somebody counted on beside what was asked back."""
        idle = any(case.is_ == "idle" for case in self.cases.values())
        may_ask_back = self.rules["preemption"] == "lower" or (self.rules["preemption"] == "idle" and idle)
        return may_ask_back or self._limit_mib(granted.asked) is not None

    def _kind(self, case: Case) -> tuple[Any, ...]:
        """What others must be like to have no place where this one has none."""
        return case.shape, case.asked["service"] if self._limit_mib(case.asked) is not None else None

    def _limit_mib(self, asked: dict[str, Any]) -> int | None:
        limit_mib: int | None = self.services.get(asked["service"], OWN_RULES)["limit_mib"]
        return limit_mib

    def _is_within_limit(self, case: Case) -> bool:
        """Whether its service may hold it too, beside what it holds and what is kept for those of it that come before:
        who has a reservation, or has had leases asked back, and the first who starves."""
        limit_mib, service = self._limit_mib(case.asked), case.asked["service"]
        if limit_mib is None:
            return True
        mine = [each for each in self.cases.values() if each.asked["service"] == service]
        held_mib = sum(each.asked["vram_mib"] * len(each.devices) for each in mine if each.is_ in CHARGED)
        before = [each for each in mine if each.is_ == "waiting" and _order(each) < _order(case)]
        before.sort(key=_order)
        starving = [each for each in before if each.starves][:1]
        kept = [each for each in before if self.plan.of(each) is not None or each.want is not None or each in starving]
        return held_mib + sum(_size_mib(each.asked) for each in [*kept, case]) <= limit_mib

    def _serve_wanting(self, case: Case) -> bool:
        """Grant who waits for leases that were asked back, if there is a place with what is held for it."""
        room, want, able = self.room, case.want, self.room.able(case.asked)
        assert want is not None
        allowed = []
        for key in able:
            own_mib = room.hold_mib(key) if key in want.devices else 0
            own = own_mib >= case.asked["vram_mib"] and not (case.asked["exclusive"] and room.on(key))
            if (key in want.devices and own) or self.plan.admits(case.asked, key, self.now_ms, own_mib):
                allowed.append(key)
        room.looking = case
        devices = room.best(case.asked, allowed)
        if devices is None:
            self.plan.keep(case, able)
        room.looking = None
        if devices is not None:
            self._grant(case, devices)
        return devices is not None

    def _ask_back_for(self, case: Case) -> bool:
        """Ask leases back that make room for who has no place."""
        prey = Prey(self.room, self.plan, case, self.ticked_ms)
        found = prey.found()
        if found is None:
            return False
        devices, leases = found
        asked = [lease for lease in leases if not prey.goes(lease)]
        for lease in asked:
            if lease.is_ == "idle":
                self.floor = worth(lease)
            self._ask_back(lease, self.rules["grace_ms"], case.asked["lease_id"])
        case.want = Want(devices, leases, {key: wanted_mib(self.room, case, key, leases) for key in devices})
        return True

    def _ask_back(self, lease: Case, grace_ms: int, wanted_by: str | None) -> None:
        lease.is_, lease.yield_by_ms, lease.yield_set_ms = "yielding", self.now_ms + grace_ms, self.now_ms
        self._say("YieldRequested", lease, deadline_ms=lease.yield_by_ms, **{"for": wanted_by})

    def _forget_wants(self) -> None:
        """Whose devices changed may have to ask for others."""
        for case in self.queue():
            if case.want is not None and not suffices(self.room, case):
                case.want = None

    def _keep_promises(self) -> None:
        """Who was promised a start has one by then, or is told; only the first is promised one anew."""
        first = self.plan.kept[0] if self.plan.kept else None
        order = [kept.case for kept in self.plan.before]
        for case in order:
            kept, was_ms = self.plan.of(case), case.promised_ms
            if was_ms is not None and case.is_ == "waiting":
                start_ms = None if kept is None else kept.start_ms
                if start_ms is None or start_ms > was_ms:
                    case.promised_ms = start_ms if kept is first else None
                    self._say("PromiseMoved", case, starts_by_ms=case.promised_ms, was_ms=was_ms)
        if first is not None:
            first.case.promised_ms = first.start_ms

    # ------------------------------------------------------------ facts

    def _advance(self, now_ms: int) -> None:
        self.now_ms = max(self.now_ms, now_ms)
        old_ms = self.now_ms - DAY_MS
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
        self.ticked_ms = self.now_ms
        due = []
        for lease_id, case in self.cases.items():
            deadlines = [(case.wait_until_ms, 2)] if case.is_ == "waiting" else []
            if case.is_ in ALIVE:
                deadlines = [(case.expires_ms, 0), (case.yield_by_ms if case.is_ == "yielding" else None, 1)]
            due += [(ms, kind, lease_id) for ms, kind in deadlines if ms is not None and ms <= self.now_ms]
        for _, kind, lease_id in sorted(due):
            case = self.cases[lease_id]
            if kind == 2:
                self._deny(case, "timeout")
            elif case.is_ in ALIVE:
                self._end(case, "expired" if kind == 0 else "revoked")
        hopeless = self.plan.unpromised
        for case in self.queue():
            if case is hopeless or self._limit_mib(case.asked) is not None:
                case.starves = case.starves or case.starves_ms <= self.now_ms
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
        self._reject(Rejection("unknown_type"))

    def on_PolicySet(self, data: dict[str, Any]) -> None:
        """Those who wait keep their keys."""
        self.head_start_ms = data["head_start_ms"]
        self.rules |= RULES | {name: data[name] for name in self.rules if name in data}
        self.max_waiting = data.get("max_waiting")
        self.services = {name: OWN_RULES | rules for name, rules in data.get("services", {}).items()}
        self._deny_hopeless()

    def on_DeviceObserved(self, data: dict[str, Any]) -> None:
        """A device is there, or changed."""
        defaults = {"reserved_mib": 0, "margin_mib": 0, "foreign_mib": 0, "simulated": False, "healthy": True}
        self.devices[f"{data['node']}/{data['device']}"] = defaults | data
        self._forget_wants()
        self._deny_hopeless()

    def on_DeviceLost(self, data: dict[str, Any]) -> None:
        """All that was on it ends; what of it lies on other devices stays charged there."""
        key = f"{data['node']}/{data['device']}"
        if key not in self.devices:
            return
        for case in self.room.on(key):
            case.devices = [other for other in case.devices if other != key]
            if case.is_ in ALIVE:
                self._end(case, "device_lost")
            elif not case.devices:
                case.is_ = "over"
        del self.devices[key]
        self._forget_wants()
        self._deny_hopeless()

    def _deny_hopeless(self) -> None:
        for case in self.queue():
            self._deny_if_hopeless(case)

    def _deny_if_hopeless(self, case: Case) -> None:
        limit_mib = self._limit_mib(case.asked)
        if limit_mib is not None and _size_mib(case.asked) > limit_mib:
            self._deny(case, "quota")
        elif self.devices and not self.room.able(case.asked):
            self._deny(case, "impossible")

    def on_SessionLost(self, data: dict[str, Any]) -> None:
        """All that the process asked for is over."""
        member = (data["service"], data["session"])
        self.lost.setdefault(member, self.now_ms)
        mine = [case for case in self.cases.values() if (case.asked["service"], case.asked["session"]) == member]
        for case in sorted(mine, key=lambda case: case.arrival):
            if case.is_ == "waiting":
                self._deny(case, "session_lost")
            elif case.is_ in ALIVE:
                self._end(case, "session_lost")

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
        wait_until_ms = None if asked["wait_ms"] is None else self.now_ms + asked["wait_ms"]
        own = self.services.get(asked["service"], OWN_RULES | {"max_waiting": self.max_waiting})
        priority = RANKS[min(RANKS.index(asked["priority"]), RANKS.index(own["max_priority"]))]
        key = self.now_ms - self.head_start_ms[priority]
        most = own["max_waiting"]
        others = [case for case in self.queue() if case.asked["service"] == asked["service"]]
        self.arrivals += 1
        case = Case(asked, self.arrivals, key, self.now_ms, wait_until_ms)
        case.since_ms = self.now_ms
        case.starves_ms = self.now_ms + self.rules["starve_ms"]
        case.counts_as = priority
        self.cases[asked["lease_id"]] = case
        if (asked["service"], asked["session"]) in self.lost:
            self._deny(case, "session_lost")
        elif most is not None and len(others) >= most:
            self._deny(case, "quota")
        else:
            self._deny_if_hopeless(case)

    def _ask_again(self, known: Case, asked: dict[str, Any]) -> None:
        forgotten = known.is_ == "reclaiming" and known.over_ms <= self.now_ms - DAY_MS
        if asked != known.asked or forgotten:
            self._refuse("duplicate", asked, asked)
            return
        if known.granted is not None:
            expires_ms = known.expires_ms if known.is_ in ALIVE else known.granted["expires_at_ms"]
            granted = known.granted | {"expires_at_ms": expires_ms}
            self._answers.append(Answer("LeaseGranted", granted, _address(asked), False))
        if known.final is not None:
            self._answers.append(known.final._replace(is_new=False))

    def _case_of(self, data: dict[str, Any]) -> Case | None:
        """The sender's case; if there is none, that is told."""
        case = self.cases.get(data["lease_id"])
        if case is None or case.asked["service"] != data["service"]:
            self._refuse("unknown_lease" if case is None else "not_owner", data, None)
            return None
        return case

    def _lease_of(self, data: dict[str, Any]) -> Case | None:
        """The sender's lease that may still change; if there is none, that is told."""
        case = self._case_of(data)
        if case is not None and case.is_ not in ("held", "idle"):
            reason = "yielding" if case.is_ == "yielding" else "unknown_lease"
            self._refuse(reason, data, case.asked)
            return None
        return case

    def on_LeaseReleased(self, data: dict[str, Any]) -> None:
        """A lease is given back, or a request taken back."""
        case = self._case_of(data)
        if case is not None and case.is_ == "waiting":
            self._deny(case, "cancelled")
        elif case is not None and case.is_ in ALIVE:
            self._end(case, "yielded" if case.is_ == "yielding" else "released")

    def on_LeaseRenewed(self, data: dict[str, Any]) -> None:
        """A lease goes on."""
        case = self._lease_of(data)
        if case is not None and self.plan.voids(case, self.now_ms + data["ttl_ms"]):
            self._refuse("reserved", data, case.asked)
        elif case is not None:
            case.expires_ms, case.expiry_set_ms = self.now_ms + data["ttl_ms"], self.now_ms
            self._say("LeaseExtended", case, expires_at_ms=case.expires_ms)

    def on_LeaseIdled(self, data: dict[str, Any]) -> None:
        """A lease is kept, unused."""
        case = self._lease_of(data)
        if case is not None and not case.asked["reclaimable"]:
            self._refuse("invalid", data, case.asked)
        elif case is not None:
            if case.is_ == "held":
                case.floor = self.floor
            case.is_, case.reload_ms = "idle", data.get("reload_ms", 0)
            self._say("LeaseStateChanged", case, state="idle")

    def on_LeaseResumed(self, data: dict[str, Any]) -> None:
        """A lease is used again."""
        case = self._lease_of(data)
        if case is not None:
            if case.is_ == "idle":
                case.uses, case.reload_ms = case.uses + 1, data.get("reload_ms", 0) or case.reload_ms
            case.is_ = "held"
            self._say("LeaseStateChanged", case, state="held")

    def on_LeaseReasserted(self, data: dict[str, Any]) -> None:
        """Nothing new where the lease is known."""
        case = self._case_of(data)
        if case is not None and case.is_ not in ALIVE:
            self._refuse("unknown_lease", data, case.asked)

    def on_LeaseRevoked(self, data: dict[str, Any]) -> None:
        """An operator ends it, now or after a grace."""
        case = self.cases.get(data["lease_id"])
        grace_ms = data.get("grace_ms", 0)
        if case is None or case.is_ == "over":
            self._reject(Rejection("unknown_lease", data["lease_id"]))
        elif case.is_ == "waiting":
            self._deny(case, "cancelled")
        elif case.is_ == "reclaiming":
            pass  # the operator vouches that the memory is back; the scheduler's fact follows
        elif not grace_ms:
            self._end(case, "revoked")
        elif case.is_ != "yielding":
            self._ask_back(case, grace_ms, None)


def _order(case: Case) -> tuple[int, int]:
    return case.key, case.arrival


def _size_mib(asked: dict[str, Any]) -> int:
    return int(asked["vram_mib"] * asked["gpus"])


def _address(asked: dict[str, Any]) -> str:
    service, instance = asked["service"], asked["instance"]
    return str(service) if instance is None else f"{service}:{instance}"
