"""The devices by what is free on them, and the nodes by what their devices have in common, so that `place` need not
look at all: of a thousand devices it is given those among which the best is."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Container
from operator import itemgetter
from typing import Protocol

from gpuboss.core.fronts import Wish
from gpuboss.core.ledger import Device, Ledger, Node
from gpuboss.core.placement import has_room, is_open, largest_mib, left_over, matches
from gpuboss.core.waitlist import Shape
from gpuboss.fields import GPUS_MAX

WISHES_REMEMBERED = 4096
FEW = 16  # so many devices are looked at faster than found

Room = tuple[int, bool, str, int, Device]  # what of a device is left over, its place in the order, and the device


class Closed(Protocol):
    """The devices that a request may not have, whatever is free on them; all are on some `nodes`."""

    @property
    def nodes(self) -> Container[Node]: ...

    def __contains__(self, device: object, /) -> bool: ...


class NoneClosed:
    """No device is."""

    nodes: tuple[Node, ...] = ()

    def __contains__(self, device: object, /) -> bool:
        return False


NONE_CLOSED = NoneClosed()


class Rooms:
    """All of them. What it knows follows from the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._open: list[Room] = []  # those that are in order and held by nobody alone
        self._empty: list[Room] = []  # of these the empty ones
        self._known: dict[Device, Room] = {}
        self._free_of: dict[tuple[Node, bool], tuple[int, list[int]]] = {}
        self._common: dict[tuple[int, bool], _Common] = {}
        self._named: dict[tuple[str | None, str | None], list[Device]] = {}
        self._largest_mib: dict[Wish, int] = {}
        self._version = 0

    def best(self, shape: Shape, closed: Closed) -> list[Device]:
        """Devices, none of them `closed`, among which is whatever `place` would find among all."""
        named = self.named(shape)
        if len(named) <= FEW:
            return named if closed is NONE_CLOSED else [device for device in named if device not in closed]
        self._ledger.changes.count()
        if self._ledger.changes.changed:
            self._follow()
        if shape.gpus > 1:
            return self._best_node(shape, closed)
        rooms = self._empty if shape.exclusive else self._open
        for at in range(bisect_left(rooms, (shape.vram_mib,)), len(rooms)):
            device = rooms[at][4]
            if device not in closed and matches(shape, device):
                return [device]
        return []

    def common_mib(self, device: Device, *, exclusive: bool) -> list[int]:
        """What somebody could get of a device, and then, of several devices, of each of two of its node, of three, and
        so on: at most, whatever is closed."""
        self._ledger.changes.count()
        alone_mib = device.free_mib if is_open(device, exclusive=exclusive) else 0
        return [alone_mib, *self._free_mib(device.node, exclusive)[-2::-1]]

    def named(self, shape: Shape | Wish) -> list[Device]:
        """The devices on which a shape may be by its wish, in their order."""
        if self._version != self._ledger.version:
            self._forget()
        named = self._named.get((shape.device, shape.node))
        if named is None:
            nodes = [node for node in self._ledger.nodes if shape.node is None or node.name == shape.node]
            named = [device for node in nodes for device in node.devices if matches(shape, device)]
            self._named[shape.device, shape.node] = named
        return named

    def largest_mib(self, wish: Wish) -> int:
        """The most that a request with this wish, whatever its size, could ever get of each device."""
        if self._version != self._ledger.version or len(self._largest_mib) > WISHES_REMEMBERED:
            self._forget()
        largest = self._largest_mib.get(wish)
        if largest is None:
            largest = self._largest_mib[wish] = largest_mib(self._ledger, wish)
        return largest

    def _best_node(self, shape: Shape, closed: Closed) -> list[Device]:
        """The sufficient devices of the node that has the fewest of them, and enough."""
        best: Node | None = None
        fewest = GPUS_MAX + 1
        common = self._common.get((shape.gpus, shape.exclusive))
        if common is None:
            common = self._common[shape.gpus, shape.exclusive] = _Common(shape.gpus)
        for node in self._ledger.changes.moved_since(common.moves):
            common.follow(node, self._free_mib(node, shape.exclusive))
        common.moves = self._ledger.changes.moves
        for node in common.with_mib(shape.vram_mib):
            if shape.node is not None and node.name != shape.node:
                continue
            free = self._free_mib(node, shape.exclusive)
            count = len(free) - bisect_left(free, shape.vram_mib)
            if node in closed.nodes:
                count -= sum(has_room(shape, device) and device in closed for device in node.devices)
            if shape.gpus <= count < fewest:
                best, fewest = node, count
        return [] if best is None else [d for d in best.devices if has_room(shape, d) and d not in closed]

    def nodes(self, shape: Shape) -> list[Node]:
        """The nodes on which a shape may be by its wish."""
        if shape.node is None:
            return self._ledger.nodes
        named = self.named(shape)
        return [named[0].node] if named else []

    def _free_mib(self, node: Node, is_empty: bool) -> list[int]:
        """What is free on the devices of a node that are open, or empty, the least first."""
        known = self._free_of.get((node, is_empty))
        if known is None or known[0] != node.version:
            free = sorted([device.free_mib for device in node.devices if is_open(device, exclusive=is_empty)])
            known = self._free_of[node, is_empty] = (node.version, free)
        return known[1]

    def _forget(self) -> None:
        self._version = self._ledger.version
        self._named.clear()
        self._largest_mib.clear()
        self._free_of.clear()
        self._common.clear()

    def _follow(self) -> None:
        devices = self._ledger.devices
        for device in self._ledger.changes.changed:
            known = self._known.pop(device, None)
            if known is not None:
                _take_out(self._open, known)
                if known[1]:  # else it had leases
                    _take_out(self._empty, known)
            if devices.get(device.key) is device and is_open(device, exclusive=False):
                room = self._known[device] = (*left_over(device), device.node.name, device.index, device)
                insort(self._open, room)
                if room[1] and is_open(device, exclusive=True):
                    insort(self._empty, room)
        self._ledger.changes.changed.clear()


def _take_out(rooms: list[Room], known: Room) -> None:
    at = bisect_left(rooms, known)
    if at < len(rooms) and rooms[at] == known:
        del rooms[at]


class _Common:
    """The nodes by what so many of their devices have in common, as it was after so many moves."""

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus
        self.moves = -1
        self._nodes: list[tuple[int, str, Node]] = []
        self._known: dict[Node, tuple[int, str, Node]] = {}

    def follow(self, node: Node, free_mib: list[int]) -> None:
        """What is free on the devices of a node has changed."""
        known = self._known.pop(node, None)
        if known is not None:
            del self._nodes[bisect_left(self._nodes, known)]
        if len(free_mib) >= self.gpus:
            known = self._known[node] = (free_mib[-self.gpus], node.name, node)
            insort(self._nodes, known)

    def with_mib(self, vram_mib: int) -> list[Node]:
        """The nodes with so much, in their order."""
        found = self._nodes[bisect_left(self._nodes, (vram_mib,)) :]
        return [node for _, _, node in sorted(found, key=itemgetter(1))]
