"""Where a request goes: the whole rule of placement (policy, rules 3 and 5), so that another can be tried.

Best fit: the least that is left over; then a device that is shared already before an empty one; then the order
of the devices. Exclusive: the smallest empty device that is enough. Several devices: the node with the fewest
sufficient devices that has enough of them, and in it those with the least left over.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter

from gpuboss.core.fronts import Wish
from gpuboss.core.ledger import Device, Ledger
from gpuboss.core.waitlist import Shape


def matches(shape: Shape | Wish, device: Device) -> bool:
    """Whether a request of this shape may be on this device at all, however full it is."""
    observed = device.observed
    if shape.node is not None and shape.node != observed.node:
        return False
    return shape.device is None or shape.device in (observed.device, observed.uuid)


def candidates(ledger: Ledger, shape: Shape) -> list[Device]:
    """The devices that could hold a request of this shape if they were empty, in their order.

    Of nodes that have fewer of them than the request needs, none.
    """
    able = [d for d in ledger.ordered_devices() if matches(shape, d) and d.capacity_mib >= shape.vram_mib]
    if shape.gpus == 1:
        return able
    return [device for group in _by_node(able) if len(group) >= shape.gpus for device in group]


def largest_mib(ledger: Ledger, wish: Wish) -> int:
    """The most that a request with this wish, whatever its size, could ever get of each device."""
    largest = 0
    for node in ledger.nodes:
        if wish.node is None or wish.node == node.name:
            capacities = sorted([device.capacity_mib for device in node.devices if matches(wish, device)])
            if len(capacities) >= wish.gpus:
                largest = max(largest, capacities[-wish.gpus])
    return largest


def why_impossible(ledger: Ledger, shape: Shape) -> str:
    """Why no device could ever hold a shape that has no candidates, for a person and with the numbers."""
    named = [device for device in ledger.ordered_devices() if matches(shape, device)]
    if not named:
        known = ", ".join(device.key for device in ledger.ordered_devices()[:8])
        where = "" if shape.node is None else f" on node {shape.node}"
        return f"there is no {shape.device or 'device'}{where}; known devices: {known}"
    largest = max(named, key=lambda device: device.capacity_mib)
    if largest.capacity_mib < shape.vram_mib:
        return (
            f"asked for {shape.vram_mib} MiB on one device; the largest that may serve it, {largest.key}, "
            f"lends at most {largest.capacity_mib} MiB"
        )
    able = [device for device in named if device.capacity_mib >= shape.vram_mib]
    most = max(len(group) for group in _by_node(able))
    return f"asked for {shape.gpus} devices of {shape.vram_mib} MiB on one node; the best node has {most} such"


def has_room(shape: Shape, device: Device) -> bool:
    """Whether one part of the request fits on the device now."""
    # `is_open` written out: every request asks this of every device of a small farm.
    if device.free_mib < shape.vram_mib or device.exclusive or not device.healthy:
        return False
    return not (shape.exclusive and (device.leases or device.plan))


def is_open(device: Device, *, exclusive: bool) -> bool:
    """Whether something could begin on the device, shared or `exclusive`, if it is small enough."""
    if device.exclusive or not device.healthy:
        return False
    return not (exclusive and (device.leases or device.plan))


def place(shape: Shape, allowed: Iterable[Device]) -> list[Device] | None:
    """The devices that a request of this shape gets out of `allowed` (candidates in their order), or None."""
    if shape.gpus == 1:
        best: Device | None = None
        for device in allowed:
            if has_room(shape, device) and (best is None or left_over(device) < left_over(best)):
                best = device
        return None if best is None else [best]
    fitting = [device for device in allowed if has_room(shape, device)]
    nodes = [group for group in _by_node(fitting) if len(group) >= shape.gpus]
    if not nodes:
        return None
    fitting = min(nodes, key=len)  # sorted and min keep the order among equals: nodes and devices come in theirs
    return sorted(sorted(fitting, key=left_over)[: shape.gpus], key=attrgetter("index"))


def left_over(device: Device) -> tuple[int, bool]:
    """What is the least is best: the free VRAM (the request takes the same of each), then not being empty."""
    return device.free_mib, not device.leases


def nearest(shape: Shape, allowed: Iterable[Device]) -> list[Device] | None:
    """The devices of one node that lack least for this request: what is kept free for it. None if there are
    too few."""
    best: tuple[int, list[Device]] | None = None
    for group in _by_node(allowed):
        group.sort(key=lambda device: _lack_mib(shape, device))
        chosen = group[: shape.gpus]
        lack_mib = sum(_lack_mib(shape, device) for device in chosen)
        if len(chosen) == shape.gpus and (best is None or lack_mib < best[0]):
            best = (lack_mib, chosen)
    return None if best is None else best[1]


def _lack_mib(shape: Shape, device: Device) -> int:
    """How much must come back on the device before the request fits; a device that is out of order comes last."""
    if not device.healthy:
        return device.capacity_mib + shape.vram_mib
    if shape.exclusive or device.exclusive:
        return device.charged_mib
    return max(0, shape.vram_mib - device.free_mib)


def _by_node(devices: Iterable[Device]) -> list[list[Device]]:
    return [list(group) for _, group in groupby(devices, key=lambda device: device.observed.node)]
