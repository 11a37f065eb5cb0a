"""Which leases are asked back for whom, said a second time: every device is looked at, every sum made anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from tests.core.model_plan import Kept, Plan
from tests.core.model_room import Case, Room

CLASSES = ("low", "normal", "high")
RULES: dict[str, Any] = {
    "preemption": "idle",
    "preempt_after_ms": {"normal": 60_000, "high": 5_000},
    "min_run_ms": 60_000,
    "grace_ms": 15_000,
    "settle_ms": 5_000,
}


class Needs(NamedTuple):
    """What of one device has to come back: these leases, if they are all that may count, and so much."""

    key: str
    counted: list[Case]
    must: list[Case]
    gap_mib: int


def worth(lease: Case) -> int:
    """GreedyDual-Size-Frequency, times 2**20."""
    return lease.floor + lease.uses * lease.reload_ms * 2**20 // int(lease.asked["vram_mib"])


def rank(case: Case) -> int:
    """The class, as a number that is larger for a higher one."""
    return CLASSES.index(case.counts_as)


class Prey:
    """The search for one request. `ticked_ms`: the time of the last tick."""

    def __init__(self, room: Room, plan: Plan, case: Case, ticked_ms: int) -> None:
        self.room = room
        self.plan = plan
        self.rules = plan.rules
        self.case = case
        self.ticked_ms = ticked_ms

    def found(self) -> tuple[list[str], list[Case]] | None:
        """The devices where the request will be, and what has to come back for that."""
        if self.rules["preemption"] == "off":
            return None
        found = self._cheapest(self._may_be_idle, lambda lease: (worth(lease), lease.arrival))
        after_ms = self.rules["preempt_after_ms"].get(self.case.counts_as)
        waited_ms = self.ticked_ms - self.case.since_ms
        if found is None and self.rules["preemption"] == "lower" and after_ms is not None and waited_ms >= after_ms:
            found = self._cheapest(self._may_be_held, _by_class)
        return found if found is not None and not all(self.goes(lease) for lease in found[1]) else None

    def goes(self, lease: Case) -> bool:
        """Whether it was asked back before, or given back, and soon comes to nobody."""
        owned = any(each.want is not None and lease in each.want.leases for each in self.room.cases.values())
        soon = (lease.yield_by_ms or 0) - lease.yield_set_ms <= self.rules["grace_ms"]
        is_back_soon = (lease.is_ == "yielding" and soon) or (lease.is_ == "reclaiming" and lease.settles)
        return is_back_soon and not owned

    def _may_be_idle(self, lease: Case) -> bool:
        return lease.is_ == "idle" and rank(lease) <= rank(self.case)

    def _may_be_held(self, lease: Case) -> bool:
        long = self.ticked_ms - lease.since_ms >= max(1, self.rules["min_run_ms"])
        lower = rank(lease) < rank(self.case) and not self._is_guaranteed(lease)
        return self._may_be_idle(lease) or (lease.is_ == "held" and lower and long)

    def _is_guaranteed(self, lease: Case) -> bool:
        """Whether it is not preemptible, and among the oldest such that its service's guarantee covers."""
        service = lease.asked["service"]
        left_mib = self.rules["services"].get(service, {}).get("guarantee_mib", 0)
        mine = [each for each in self.room.cases.values() if each.asked["service"] == service]
        firm = [each for each in mine if each.is_ == "held" and not each.asked["preemptible"]]
        for each in sorted(firm, key=lambda each: int((each.granted or {})["fence"])):
            size_mib = each.asked["vram_mib"] * len(each.devices)
            if size_mib <= left_mib:
                left_mib -= size_mib
                if each is lease:
                    return True
        return False

    def _cheapest(
        self, may: Callable[[Case], bool], order: Callable[[Case], Any]
    ) -> tuple[list[str], list[Case]] | None:
        asked = self.case.asked
        found: list[tuple[tuple[int, ...], int, list[str], list[Case]]] = []
        for _, keys in self.room.by_node(self.room.able(asked)):
            options: list[tuple[tuple[int, ...], int, Needs]] = []
            for key in keys:
                needs = self._needs(key, may)
                if needs is not None:
                    options.append((self._price(self._least([needs], order)), len(options), needs))
            if len(options) < asked["gpus"]:
                continue
            best = sorted(options, key=lambda option: option[:2])[: asked["gpus"]]
            chosen = [needs for _, _, needs in sorted(best, key=lambda option: option[1])]
            leases = self._least(chosen, order)
            found.append((self._price(leases), len(found), [needs.key for needs in chosen], leases))
        return min(found, key=lambda each: each[:2])[2:] if found else None

    def _needs(self, key: str, may: Callable[[Case], bool]) -> Needs | None:
        asked, there = self.case.asked, self.room.on(key)
        if self.room.wanted_by(key) is not None or not self.room.devices[key]["healthy"]:
            return None
        free_mib, kept = self.room.free_mib(key), self._kept_there(key)
        counted = [lease for lease in there if self.goes(lease) or may(lease)]
        if kept is not None:
            if kept.start_ms is None or asked["exclusive"]:
                return None
            start_ms = kept.start_ms
            free_mib = min(free_mib, self.plan.left_over_mib(kept.case, key, start_ms))
            counted = [lease for lease in counted if (ms := self.plan.end_ms(lease)) is None or ms > start_ms]
        must = [lease for lease in there if asked["exclusive"] or lease.asked["exclusive"]]
        needs = Needs(key, counted, must, asked["vram_mib"] - free_mib)
        return needs if _enough(needs, counted) else None

    def _kept_there(self, key: str) -> Kept | None:
        return next((kept for kept in self.plan.kept if key in kept.devices), None)

    def _least(self, needs: list[Needs], order: Callable[[Case], Any]) -> list[Case]:
        """As few as are enough: taken in their order, and then, from the last, those left out that can be."""
        counted = [lease for lease in self.room.cases.values() if any(lease in each.counted for each in needs)]
        counted.sort(key=lambda lease: (lease.granted or {})["fence"])
        first = [lease for lease in _in_turn(counted, needs) if self.goes(lease)]
        taken: list[Case] = []
        for lease in first + sorted((each for each in counted if each not in first), key=order):
            lacking = [each for each in needs if lease in each.counted and _lacks(each, taken, lease)]
            taken += [lease] if lacking else []
        for lease in list(reversed(taken)):
            others = [each for each in taken if each is not lease]
            if all(_enough(each, others) for each in needs):
                taken = others
        return taken

    def _price(self, leases: list[Case]) -> tuple[int, int, int, int]:
        asked = [lease for lease in leases if not self.goes(lease)]
        idle = [lease for lease in asked if lease.is_ == "idle"]
        of_class = [[lease for lease in asked if lease not in idle and rank(lease) == number] for number in (1, 0)]
        return _mib(of_class[0]), _mib(of_class[1]), sum(map(worth, idle)), _mib(asked)


def wanted_mib(room: Room, case: Case, key: str, leases: list[Case]) -> int:
    """What is held, and what is still to come back, on a device for which leases are asked back."""
    return max(int(case.asked["vram_mib"]), sum(int(each.asked["vram_mib"]) for each in leases if key in each.devices))


def suffices(room: Room, case: Case) -> bool:
    """Whether what was asked back for a request still is enough."""
    want, asked = case.want, case.asked
    assert want is not None
    for key in want.devices:
        if key not in room.able(asked) or not room.devices[key]["healthy"]:
            return False
        staying = [lease for lease in room.on(key) if lease not in want.leases]
        if any(asked["exclusive"] or lease.asked["exclusive"] for lease in staying):
            return False
        used_mib = sum(int(lease.asked["vram_mib"]) for lease in staying) + int(room.devices[key]["foreign_mib"])
        if room.capacity_mib(key) - used_mib < asked["vram_mib"]:
            return False
    return True


def _by_class(lease: Case) -> tuple[int, bool, int]:
    return rank(lease), lease.is_ != "idle", -int((lease.granted or {})["fence"])


def _in_turn(leases: list[Case], needs: list[Needs]) -> list[Case]:
    """The leases of the first device, then those of the next."""
    turn = [lease for each in needs for lease in each.counted]
    return sorted(leases, key=turn.index)


def _lacks(needs: Needs, taken: Iterable[Case], lease: Case) -> bool:
    got_mib = sum(int(each.asked["vram_mib"]) for each in taken if each in needs.counted)
    return lease in needs.must or got_mib < needs.gap_mib


def _enough(needs: Needs, taken: list[Case]) -> bool:
    if any(lease not in taken or lease not in needs.counted for lease in needs.must):
        return False
    return sum(int(each.asked["vram_mib"]) for each in taken if each in needs.counted) >= needs.gap_mib


def _mib(leases: list[Case]) -> int:
    return sum(int(lease.asked["vram_mib"]) * len(lease.devices) for lease in leases)
