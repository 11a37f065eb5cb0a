"""Where a request may go, said a second time: every sum is taken afresh, every order sorted anew."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

CHARGED = ("held", "idle", "yielding", "reclaiming")
ALIVE = ("held", "idle", "yielding")


@dataclass
class Want:
    """What was asked back for a request: it will be on these devices once these leases are gone. `stock_mib`: what is
    held for it there, and what those leases still had, when it was asked."""

    devices: list[str]
    leases: list[Case]
    stock_mib: dict[str, int]


@dataclass(eq=False)
class Case:
    """One lease_id from its request to the day after its end. `is_`: waiting, one of CHARGED, or over."""

    asked: dict[str, Any]
    arrival: int
    key: int
    submitted_ms: int
    wait_until_ms: int | None
    is_: str = "waiting"
    counts_as: str = ""
    starves_ms: int = 0
    starves: bool = False
    promised_ms: int | None = None
    reclaiming_ms: int = 0
    settles: bool = False  # its holder gave it back
    devices: list[str] = field(default_factory=list)
    expires_ms: int | None = None
    expiry_set_ms: int = 0
    yield_by_ms: int | None = None
    yield_set_ms: int = 0
    since_ms: int = 0  # when it began to wait, or to hold, without jumps of the clock
    uses: int = 1
    reload_ms: int = 0
    floor: int = 0
    want: Want | None = None
    granted: dict[str, Any] | None = None
    final: Any = None
    over_ms: int = 0

    @property
    def shape(self) -> tuple[Any, ...]:
        """What decides where it fits."""
        names = ("vram_mib", "gpus", "exclusive", "device", "node", "ttl_ms")
        return (self.counts_as, *(self.asked[name] for name in names))

    @property
    def order(self) -> tuple[int, int]:
        """Who comes before whom."""
        return self.key, self.arrival

    @property
    def size_mib(self) -> int:
        """What it takes on all its devices together."""
        return int(self.asked["vram_mib"] * self.asked["gpus"])


class Room:
    """The devices by `<node>/cuda:<n>`, as last observed, and the cases by lease_id: both are the model's own."""

    def __init__(self, devices: dict[str, dict[str, Any]], cases: dict[str, Case]) -> None:
        self.devices = devices
        self.cases = cases
        self.looking: Case | None = None  # who sees what is held for it as free

    def free_mib(self, key: str) -> int:
        """What is free on a device."""
        return self._unused_mib(key) - self.hold_mib(key)

    def wanted_by(self, key: str) -> Case | None:
        """For whom leases on a device were asked back, unless it is the one who looks."""
        wants = [case for case in self.cases.values() if case.want is not None and key in case.want.devices]
        assert len(wants) <= 1, "a device has one plan at most"
        return None if not wants or wants[0] is self.looking else wants[0]

    def pending(self, key: str) -> list[Case]:
        """Which of the leases that were asked back are still there."""
        case = self.wanted_by(key)
        return [] if case is None or case.want is None else [each for each in case.want.leases if each in self.on(key)]

    def hold_mib(self, key: str) -> int:
        """What is held on a device for whom leases there were asked back."""
        case = self.wanted_by(key)
        if case is None or case.want is None:
            return 0
        if case.asked["exclusive"]:
            return max(0, self._unused_mib(key))
        pending_mib = sum(int(each.asked["vram_mib"]) for each in self.pending(key))
        return min(int(case.asked["vram_mib"]), case.want.stock_mib[key] - pending_mib)

    def _unused_mib(self, key: str) -> int:
        return self.capacity_mib(key) - int(self.devices[key]["foreign_mib"]) - self._charged_mib(key)

    def capacity_mib(self, key: str) -> int:
        """What leases could ever hold of a device."""
        about = self.devices[key]
        return int(about["total_mib"] - about["reserved_mib"] - about["margin_mib"])

    def on(self, key: str) -> list[Case]:
        """The leases that are charged on a device, in the order of their grants."""
        charged = [case for case in self.cases.values() if case.is_ in CHARGED and key in case.devices]
        return sorted(charged, key=lambda case: int((case.granted or {})["fence"]))

    def able(self, asked: dict[str, Any]) -> list[str]:
        """The devices that could hold the request if they were empty."""
        fit = [
            key
            for key in sorted(self.devices, key=_place_of)
            if asked["node"] in (None, self.devices[key]["node"])
            and asked["device"] in (None, self.devices[key]["device"], self.devices[key]["uuid"])
            and self.capacity_mib(key) >= asked["vram_mib"]
        ]
        return [key for _, group in self.by_node(fit) if len(group) >= asked["gpus"] for key in group]

    def best(self, asked: dict[str, Any], allowed: Iterable[str]) -> list[str] | None:
        """Where the request goes out of `allowed`, by the rule of placement."""
        fit = [key for key in allowed if self.has_room(asked, key)]
        nodes = [(len(group), node) for node, group in self.by_node(fit) if len(group) >= asked["gpus"]]
        if not nodes:
            return None
        if asked["gpus"] > 1:
            fit = [key for key in fit if self.devices[key]["node"] == min(nodes)[1]]
        fit.sort(key=lambda key: (self.free_mib(key), not self.on(key), _place_of(key)))
        return sorted(fit[: asked["gpus"]], key=_place_of)

    def has_room(self, asked: dict[str, Any], key: str) -> bool:
        """Whether one part of the request fits on a device now."""
        if not self.devices[key]["healthy"] or self.free_mib(key) < asked["vram_mib"]:
            return False
        others = self.on(key)
        if asked["exclusive"] and self.wanted_by(key) is not None:
            return False
        return not any(case.asked["exclusive"] for case in others) and not (asked["exclusive"] and others)

    def nearest(self, asked: dict[str, Any], allowed: Iterable[str]) -> list[str] | None:
        """The devices of one node that lack least for the request."""
        found = []
        for node, group in self.by_node(allowed):
            lacking = sorted((self._lack_mib(asked, key), _place_of(key), key) for key in group)[: asked["gpus"]]
            if len(lacking) == asked["gpus"]:
                found.append((sum(lack for lack, _, _ in lacking), node, [key for _, _, key in lacking]))
        return min(found)[2] if found else None

    def _lack_mib(self, asked: dict[str, Any], key: str) -> int:
        if not self.devices[key]["healthy"]:
            return self.capacity_mib(key) + int(asked["vram_mib"])
        if asked["exclusive"] or any(case.asked["exclusive"] for case in self.on(key)):
            return self._charged_mib(key)
        return max(0, int(asked["vram_mib"]) - self.free_mib(key))

    def _charged_mib(self, key: str) -> int:
        return sum(int(case.asked["vram_mib"]) for case in self.on(key))

    def by_node(self, keys: Iterable[str]) -> list[tuple[str, list[str]]]:
        return [(node, list(group)) for node, group in groupby(keys, key=lambda key: str(self.devices[key]["node"]))]


def _place_of(key: str) -> tuple[str, int]:
    node, _, device = key.partition("/")
    return node, int(device.partition(":")[2])
