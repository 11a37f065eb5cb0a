"""What is kept for those who have no place, said a second time: every moment at which something ends is tried out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.core.model_room import ALIVE, Case, Room


@dataclass
class Kept:
    """Devices that are kept for a request, which fits on them at `start_ms`; None: nobody else may come there."""

    case: Case
    devices: list[str]
    start_ms: int | None
    target: list[str] = field(default_factory=list)  # what is to be emptied, where there is no date


class Plan:
    """All that is kept after one pass, and who comes to nothing. `before`: the plan of the last pass."""

    def __init__(self, room: Room, rules: dict[str, Any], before: Plan | None = None) -> None:
        self.room = room
        self.rules = rules
        self.before = [] if before is None else before.kept
        self.kept: list[Kept] = []
        self.placeless = 0  # how many have been found to have no place
        self.unpromised: Case | None = None

    def admits(self, asked: dict[str, Any], key: str, now_ms: int, own_mib: int = 0) -> bool:
        """Whether a lease that begins now is in the way of nobody for whom the device is kept; `own_mib` of what it
        takes were held for it."""
        for kept in self.kept:
            if key not in kept.devices:
                continue
            if kept.start_ms is None:
                return False
            ends = [] if asked["ttl_ms"] is None else [now_ms + asked["ttl_ms"] + self.rules["lock_delay_ms"]]
            if any(ms <= kept.start_ms for ms in ends):
                return True
            over_mib = self.left_over_mib(kept.case, key, kept.start_ms) + own_mib
            return not asked["exclusive"] and asked["vram_mib"] <= over_mib
        return True

    def of(self, case: Case) -> Kept | None:
        """What is kept for one request."""
        return next((kept for kept in self.kept if kept.case is case), None)

    def had(self, case: Case) -> bool:
        """Whether something was kept for it before."""
        return any(kept.case is case for kept in self.before)

    def keep(self, case: Case, able: list[str]) -> None:
        """Keep a place for who has none."""
        if self.placeless >= self.rules["reservations"]:
            return
        self.placeless += 1
        mine = next((kept for kept in self.before if kept.case is case), Kept(case, [], None))
        free = [key for key in able if all(key not in kept.devices for kept in self.kept)]
        best = min(self._starts(case, free), default=None)
        if case.want is not None:
            pending = [lease for key in case.want.devices for lease in self.room.on(key) if lease in case.want.leases]
            back_ms = max(self.end_ms(lease) or 0 for lease in pending)
            if best is None or best[0] >= back_ms:
                self.kept.append(Kept(case, [], back_ms))
                return
        if best is not None:
            at_ms, _, _, devices = best
            stays = len(mine.devices) >= case.asked["gpus"] and set(mine.devices) <= set(free)
            if stays and all(self._fits(case, key, at_ms) for key in mine.devices):
                devices = mine.devices
            self.kept.append(Kept(case, devices, at_ms))
            return
        self.unpromised = self.unpromised or case
        if case.starves and all(kept.start_ms is not None for kept in self.kept):
            self._drain(case, [key for key in free if self.room.devices[key]["healthy"]], mine.target)

    def _drain(self, case: Case, healthy: list[str], target: list[str]) -> None:
        if not target or not set(target) <= set(healthy):
            target = self.room.nearest(case.asked, healthy) or []
        lacking = [key for key in target if not self.room.has_room(case.asked, key)]
        left_open = lacking[max(1, len(self.room.devices) // 4) :]
        if target:
            self.kept.append(Kept(case, [key for key in target if key not in left_open], None, target))

    def voids(self, lease: Case, until_ms: int) -> bool:
        """Whether somebody's start would be lost if a lease ended that late."""
        now = self.end_ms(lease)
        for kept in self.kept:
            for key in kept.devices if kept.case.is_ == "waiting" else []:
                if key not in lease.devices or now is None or until_ms + self.rules["lock_delay_ms"] <= now:
                    continue
                if kept.start_ms is None:
                    if self.room.has_room(kept.case.asked, key):
                        continue
                    return True
                if now <= kept.start_ms < until_ms + self.rules["lock_delay_ms"]:
                    alone = lease.asked["exclusive"] or kept.case.asked["exclusive"]
                    if alone or self.left_over_mib(kept.case, key, kept.start_ms) < lease.asked["vram_mib"]:
                        return True
        return False

    def end_ms(self, lease: Case) -> int | None:
        """When the memory of a lease is back, as far as that is certain."""
        if lease.is_ not in ALIVE:
            return lease.reclaiming_ms + lingers_ms(self.rules, lease)
        ends = [ms for ms in (lease.expires_ms, lease.yield_by_ms) if ms is not None]
        return min(ends) + int(self.rules["lock_delay_ms"]) if ends else None

    def left_over_mib(self, case: Case, key: str, at_ms: int) -> int:
        """What of a device nobody would hold then, beside the request itself."""
        if case.asked["exclusive"]:
            return 0
        looking, self.room.looking = self.room.looking, case
        over_mib = self.room.free_mib(key) + self._back_mib(key, at_ms) - int(case.asked["vram_mib"])
        self.room.looking = looking
        return over_mib

    def _starts(self, case: Case, free: list[str]) -> Iterator[tuple[int, int, str, list[str]]]:
        """Each node on which it can start at some time: when, how much is left over, and where."""
        moments = {0} | {ms for key in free for each in self.room.on(key) if (ms := self.end_ms(each)) is not None}
        gpus = case.asked["gpus"]
        for node in sorted({self.room.devices[key]["node"] for key in free}):
            here = [key for key in free if self.room.devices[key]["node"] == node]
            for at_ms in sorted(moments):
                fit = [key for key in here if self._fits(case, key, at_ms)]
                if len(fit) >= gpus:
                    fit.sort(key=lambda key: self.left_over_mib(case, key, at_ms))
                    over_mib = sum(self.left_over_mib(case, key, at_ms) for key in fit[:gpus])
                    yield at_ms, over_mib, node, fit[:gpus]
                    break

    def _fits(self, case: Case, key: str, at_ms: int) -> bool:
        if not self.room.devices[key]["healthy"]:
            return False
        there = [each for each in self.room.on(key) if (ms := self.end_ms(each)) is None or ms > at_ms]
        wanted_by = self.room.wanted_by(key)
        if wanted_by is not None and (case.asked["exclusive"] or wanted_by.asked["exclusive"]):
            return False
        if any(each.asked["exclusive"] for each in there) or (case.asked["exclusive"] and there):
            return False
        return self.room.free_mib(key) + self._back_mib(key, at_ms) >= case.asked["vram_mib"]

    def _back_mib(self, key: str, at_ms: int) -> int:
        ended = [each for each in self.room.on(key) if (ms := self.end_ms(each)) is not None and ms <= at_ms]
        pending, wanted_by = self.room.pending(key), self.room.wanted_by(key)
        back_mib = sum(int(each.asked["vram_mib"]) for each in ended if each not in pending)
        if wanted_by is None:
            return back_mib
        # Of what was asked back only what its requester does not need is for others.
        asked_mib = sum(int(each.asked["vram_mib"]) for each in ended if each in pending)
        owed_mib = int(wanted_by.asked["vram_mib"]) - self.room.hold_mib(key)
        return back_mib + max(0, asked_mib - owed_mib)


def lingers_ms(rules: dict[str, Any], lease: Case) -> int:
    """How long the memory of a lease may still be there after its end."""
    delays = [rules["lock_delay_ms"]] + ([rules["settle_ms"]] if lease.settles else [])
    return int(min(delays))
