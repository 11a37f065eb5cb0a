"""Who of those that wait is served, said a second time: the whole queue is sorted and walked for every decision."""

from __future__ import annotations

from typing import Any

from tests.core.model_decisions import Clock, Decisions
from tests.core.model_limits import Limits
from tests.core.model_plan import Plan
from tests.core.model_prey import Prey, suffices, wanted_mib, worth
from tests.core.model_room import Case, Room, Want


class Queue:
    """Those who wait, and what is kept for them: `plan`. `floor`: what the last idle lease asked back was worth."""

    def __init__(self, room: Room, rules: dict[str, Any], limits: Limits, decisions: Decisions, clock: Clock) -> None:
        self.room = room
        self.rules = rules
        self.limits = limits
        self.decisions = decisions
        self.clock = clock
        self.plan = Plan(room, rules)
        self.floor = 0

    def in_order(self) -> list[Case]:
        """Everyone who waits, in order."""
        waiting = [case for case in self.room.cases.values() if case.is_ == "waiting"]
        return sorted(waiting, key=lambda case: case.order)

    def serve(self) -> None:
        """Everyone in order: whoever has an admitted place gets it, and for those who have none one is kept."""
        before = self.plan
        while self._walk(before):
            pass
        self._keep_promises()

    def forget_wants(self) -> None:
        """Whose devices changed may have to ask for others."""
        for case in self.in_order():
            if case.want is not None and not suffices(self.room, case):
                case.want = None

    def _walk(self, before: Plan) -> bool:
        """One walk along the queue. `short`: of those who pass somebody only the shortest gets its place, and then all
        is walked again."""
        self.plan = plan = Plan(self.room, self.rules, before)
        failed = []
        passing: list[tuple[float, Case, list[str]]] = []
        for case in self.in_order():
            within = self.limits.is_within(case, plan)
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
            admitted = [key for key in able if plan.admits(case.asked, key, self.clock.now_ms)]
            devices = self.room.best(case.asked, admitted)
            if devices is None:
                if not passing and self._ask_back_for(case):
                    return True
                failed.append(self._kind(case))
                plan.keep(case, able)
            elif self.rules["backfill_order"] == "short" and plan.kept and not plan.had(case):
                passing.append((case.asked["ttl_ms"] or float("inf"), case, devices))
            else:
                self.decisions.grant(case, devices)
                if passing or self._concerns_others(case):
                    return True
        if passing:
            _, shortest, devices = min(passing, key=lambda each: each[0])  # of equal ones the first in the queue
            self.decisions.grant(shortest, devices)
        return bool(passing)

    def _concerns_others(self, granted: Case) -> bool:
        """Whether a grant may park somebody, or take room that somebody counted on beside what was asked back."""
        idle = any(case.is_ == "idle" for case in self.room.cases.values())
        may_ask_back = self.rules["preemption"] == "lower" or (self.rules["preemption"] == "idle" and idle)
        return may_ask_back or self.limits.of(granted.asked) is not None

    def _kind(self, case: Case) -> tuple[Any, ...]:
        """What others must be like to have no place where this one has none."""
        return case.shape, case.asked["service"] if self.limits.of(case.asked) is not None else None

    def _serve_wanting(self, case: Case) -> bool:
        """Grant who waits for leases that were asked back, if there is a place with what is held for it."""
        room, want, able = self.room, case.want, self.room.able(case.asked)
        assert want is not None
        allowed = []
        for key in able:
            own_mib = room.hold_mib(key) if key in want.devices else 0
            own = own_mib >= case.asked["vram_mib"] and not (case.asked["exclusive"] and room.on(key))
            if (key in want.devices and own) or self.plan.admits(case.asked, key, self.clock.now_ms, own_mib):
                allowed.append(key)
        room.looking = case
        devices = room.best(case.asked, allowed)
        if devices is None:
            self.plan.keep(case, able)
        room.looking = None
        if devices is not None:
            self.decisions.grant(case, devices)
        return devices is not None

    def _ask_back_for(self, case: Case) -> bool:
        """Ask leases back that make room for who has no place."""
        prey = Prey(self.room, self.plan, case, self.clock.ticked_ms)
        found = prey.found()
        if found is None:
            return False
        devices, leases = found
        asked = [lease for lease in leases if not prey.goes(lease)]
        for lease in asked:
            if lease.is_ == "idle":
                self.floor = worth(lease)
            self.decisions.ask_back(lease, self.rules["grace_ms"], case.asked["lease_id"])
        case.want = Want(devices, leases, {key: wanted_mib(self.room, case, key, leases) for key in devices})
        return True

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
                    self.decisions.say("PromiseMoved", case, starts_by_ms=case.promised_ms, was_ms=was_ms)
        if first is not None:
            first.case.promised_ms = first.start_ms
