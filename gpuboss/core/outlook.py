"""When how much will be free, device by device and node by node, going by when what binds the holders ends.

The availability profile of backfilling schedulers, kept for each node until something changes there: so that where a
request can start earliest costs one search a node, however many leases end on the way.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

from gpuboss.core.ledger import Device, Lease, Ledger, Node
from gpuboss.core.placement import is_open
from gpuboss.core.policy import DEFAULT_POLICY, lingers_ms
from gpuboss.core.waitlist import NEVER_MS, Shape
from gpuboss.events import PolicySet

STARTS_REMEMBERED = 64  # of so many sizes and wishes it is kept when they start on each node


class Profile(NamedTuple):
    """How much (MiB, growing) is there from when on (ms of the log's time; 0: now), if nothing else is begun."""

    mib: list[int]
    from_ms: list[int]

    def fits_ms(self, vram_mib: int) -> int | None:
        """When so much is there; None if never."""
        at = bisect_left(self.mib, vram_mib)
        return self.from_ms[at] if at < len(self.mib) else None

    def mib_at(self, ms: int) -> int:
        """How much is there by then."""
        return self.mib[bisect_right(self.from_ms, ms) - 1]


def end_ms(lease: Lease, policy: PolicySet) -> int | None:
    """When a lease's VRAM is back at the latest, going by what binds its holder; None if nothing does."""
    if lease.reclaiming_since_ms is not None:
        return lease.reclaiming_since_ms + lingers_ms(policy, clean=lease.settles)
    ends = [ms for ms in (lease.expires_at_ms, lease.yield_by_ms) if ms is not None]
    return min(ends) + lingers_ms(policy, clean=False) if ends else None


_SizeAndWish = tuple[int, int, bool, str | None]


def _size_and_wish(shape: Shape) -> _SizeAndWish:
    return shape.vram_mib, shape.gpus, shape.exclusive, shape.node


class _Starts:
    """When requests of one size and wish can start on each node, as it was after so many moves of nodes."""

    __slots__ = ("moves", "places", "starts_ms")

    def __init__(self, nodes: list[Node]) -> None:
        self.moves = -1
        self.places = {node: at for at, node in enumerate(nodes)}
        self.starts_ms = [NEVER_MS] * len(nodes)


class Outlook:
    """The profiles of all devices and nodes. They follow from the ledger and from the policy, and hold nothing else."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._version = 0
        self._policy = DEFAULT_POLICY
        self._of_device: dict[tuple[Device, bool], tuple[int, Profile]] = {}
        self._of_node: dict[tuple[Node, bool, int], tuple[int, Profile]] = {}
        self._starts: dict[_SizeAndWish, _Starts] = {}

    def under(self, policy: PolicySet) -> Outlook:
        """The outlook as it is now, by these rules."""
        self._ledger.changes.count()
        if self._policy is not policy or self._version != self._ledger.version:
            self._policy, self._version = policy, self._ledger.version
            self._of_device.clear()
            self._of_node.clear()
            self._starts.clear()
        return self

    def device_fits_ms(self, shape: Shape, device: Device) -> int | None:
        """When one part of a request fits on a device: 0 if it does now, None if never."""
        return self._device(device, shape.exclusive).fits_ms(shape.vram_mib)

    def starts_ms(self, shape: Shape, nodes: list[Node]) -> list[int]:
        """When all parts of a request fit on each node: 0 if they do now, `NEVER_MS` if never. The list is yours."""
        known = self._starts.get(_size_and_wish(shape))
        if known is None:
            if len(self._starts) >= STARTS_REMEMBERED:
                self._starts.clear()
            known = self._starts[_size_and_wish(shape)] = _Starts(nodes)
        for node in self._ledger.changes.moved_since(known.moves):
            if node in known.places:
                ms = self._node(node, shape).fits_ms(shape.vram_mib)
                known.starts_ms[known.places[node]] = NEVER_MS if ms is None else ms
        known.moves = self._ledger.changes.moves
        return known.starts_ms.copy()

    def place_of(self, shape: Shape, node: Node) -> int | None:
        """Where in the last `starts_ms` of a shape a node is."""
        return self._starts[_size_and_wish(shape)].places.get(node)

    def _node(self, node: Node, shape: Shape) -> Profile:
        key = (node, shape.exclusive, shape.gpus)
        known = self._of_node.get(key)
        if known is None or known[0] != node.version:
            profiles = [self._device(device, shape.exclusive) for device in node.devices]
            known = self._of_node[key] = (node.version, _together(profiles, shape.gpus))
        return known[1]

    def left_over_mib(self, shape: Shape, device: Device, start_ms: int) -> int:
        """What is free beside one part of a request at a start by which it fits; an exclusive one leaves nothing."""
        return 0 if shape.exclusive else self._device(device, exclusive=False).mib_at(start_ms) - shape.vram_mib

    def _device(self, device: Device, exclusive: bool) -> Profile:
        key = (device, exclusive)
        known = self._of_device.get(key)
        if known is None or known[0] != device.version:
            known = self._of_device[key] = (device.version, self._profile(device, exclusive))
        return known[1]

    def _profile(self, device: Device, exclusive: bool) -> Profile:
        """What a device has for who shares it, or for who does not: that is nothing before it is empty."""
        profile = Profile([], [])
        if is_open(device, exclusive=exclusive):
            _then(profile, 0, device.free_mib)
        if not device.healthy or (device.plan is not None and (exclusive or device.plan.waiting.shape.exclusive)):
            return profile
        leases = device.leases.values()
        ends = [(ms, lease) for lease in leases if (ms := end_ms(lease, self._policy)) is not None]
        ends.sort(key=lambda each: each[0])
        free_mib, held_alone, owed_mib = device.free_mib, device.exclusive_leases, _owed_mib(device)
        for number, (ms, lease) in enumerate(ends, start=1):
            free_mib += lease.request.vram_mib
            if device.plan is not None and lease.plan is device.plan:
                free_mib -= min(owed_mib, lease.request.vram_mib)
                owed_mib -= min(owed_mib, lease.request.vram_mib)
            held_alone -= lease.request.exclusive
            if not held_alone and (number == len(device.leases) or not exclusive):
                _then(profile, ms, free_mib)
        return profile


def _owed_mib(device: Device) -> int:
    """How much of what comes back on a device is still to be held there for the request that it was asked back for."""
    return 0 if device.plan is None else device.plan.waiting.shape.vram_mib - device.hold_mib


def _together(profiles: list[Profile], gpus: int) -> Profile:
    """What so many of these devices have at the same time."""
    steps = [
        (ms, number, mib)
        for number, profile in enumerate(profiles)
        for mib, ms in zip(profile.mib, profile.from_ms, strict=True)
    ]
    steps.sort()
    together, has_mib = Profile([], []), [-1] * len(profiles)
    for ms, number, mib in steps:
        has_mib[number] = mib
        enough_mib = max(has_mib) if gpus == 1 else sorted(has_mib)[-gpus] if gpus <= len(has_mib) else -1
        if enough_mib > 0:
            _then(together, ms, enough_mib)
    return together


def _then(profile: Profile, ms: int, mib: int) -> None:
    """From `ms` on so much is there."""
    if not profile.mib or profile.mib[-1] < mib:
        profile.mib.append(mib)
        profile.from_ms.append(ms)
