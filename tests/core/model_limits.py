"""How much a service may have at once, said a second time: what it holds, and what comes before, is summed up anew."""

from __future__ import annotations

from typing import Any

from tests.core.model_plan import Plan
from tests.core.model_room import CHARGED, Case

OWN_RULES: dict[str, Any] = {"max_waiting": None, "limit_mib": None, "max_priority": "high"}  # of one service
RANKS = ("low", "normal", "high")


class Limits:
    """The rules of single services, and what holds for those that have none. `cases`: the model's own."""

    def __init__(self, cases: dict[str, Case]) -> None:
        self.cases = cases
        self._max_waiting: int | None = 10_000
        self._services: dict[str, dict[str, Any]] = {}

    def follow(self, policy: dict[str, Any]) -> None:
        """Other rules hold from now on."""
        self._max_waiting = policy.get("max_waiting")
        self._services = {name: OWN_RULES | rules for name, rules in policy.get("services", {}).items()}

    def max_waiting(self, service: str) -> int | None:
        """How many requests of a service may wait."""
        own = self._services.get(service, OWN_RULES | {"max_waiting": self._max_waiting})
        most: int | None = own["max_waiting"]
        return most

    def counts_as(self, asked: dict[str, Any]) -> str:
        """What a request claims, or the most that its service may."""
        own = self._services.get(asked["service"], OWN_RULES)
        return RANKS[min(RANKS.index(asked["priority"]), RANKS.index(own["max_priority"]))]

    def of(self, asked: dict[str, Any]) -> int | None:
        """How many MiB the service that asked may hold."""
        limit_mib: int | None = self._services.get(asked["service"], OWN_RULES)["limit_mib"]
        return limit_mib

    def is_beyond(self, case: Case) -> bool:
        """Whether it alone is more than its service may hold."""
        limit_mib = self.of(case.asked)
        return limit_mib is not None and case.size_mib > limit_mib

    def is_within(self, case: Case, plan: Plan) -> bool:
        """Whether its service may hold it too, beside what it holds and what is kept for those of it that come before:
        who has a reservation, or has had leases asked back, and the first who starves."""
        limit_mib, service = self.of(case.asked), case.asked["service"]
        if limit_mib is None:
            return True
        mine = [each for each in self.cases.values() if each.asked["service"] == service]
        held_mib = sum(each.asked["vram_mib"] * len(each.devices) for each in mine if each.is_ in CHARGED)
        before = [each for each in mine if each.is_ == "waiting" and each.order < case.order]
        before.sort(key=lambda each: each.order)
        starving = [each for each in before if each.starves][:1]
        kept = [each for each in before if plan.of(each) is not None or each.want is not None or each in starving]
        return held_mib + sum(each.size_mib for each in [*kept, case]) <= limit_mib
