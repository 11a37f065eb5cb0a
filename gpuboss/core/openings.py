"""Where there may be room that there was not when the last grant pass ended, and who of those who wait could use it.

After a pass nobody who waits has a place. So in the next only those can have one who could be on a device on which
something became free, or that is reserved less strictly than it was; and those whose service has a limit.
"""

from __future__ import annotations

import heapq
from itertools import product
from typing import TYPE_CHECKING

from gpuboss.core import eviction
from gpuboss.core.fronts import Front, Wish
from gpuboss.core.ledger import Device
from gpuboss.core.placement import is_open
from gpuboss.core.reservations import Reservations
from gpuboss.core.tournament import Lendable, Search
from gpuboss.core.waitlist import NEVER_MS, Waiting

if TYPE_CHECKING:
    from gpuboss.core.state import State


_Terms = tuple[int, int, int]


class Openings:
    """The devices on which there may be room, and the searches for those who could use it."""

    def __init__(self, state: State) -> None:
        self._state = state
        changes, devices = state.ledger.changes, state.ledger.ordered_devices
        # Where leases may be asked back nobody may be left out: time alone gives rights to it, and so do others' ends.
        self._evicts = eviction.may_find(state) and eviction.most_mib(state, devices()) > 0
        self._devices = dict.fromkeys(devices() if changes.freed_all or self._evicts else changes.freed)
        self._found: list[tuple[Waiting, int, _Searching]] = []  # a heap: the next of each search
        self._taken: _Searching | None = None  # the search of which the last was taken
        self._grants = 0

    def reserved_anew(self, before: Reservations) -> None:
        """All is reserved now: some devices may be reserved less strictly than they were before."""
        devices = self._state.ledger.devices
        for device in self._state.reservations.loosened(before):
            if devices.get(device.key) is device:
                self._devices[device] = None

    def search(self, newcomer: Waiting | None) -> None:
        """Begin with the first of all. The newcomer was not there when the last pass ended. Nobody is searched for
        before their turn comes: each wish stands where the first of all who have it does."""
        self._found, self._taken = [], None
        if newcomer is not None and newcomer.is_first:
            self._found.append((newcomer, -1, _Searching(None, -1, [])))
        fronts, evicts, common_mib = self._state.fronts, self._evicts, self._state.rooms.common_mib
        places: dict[Front, list[Device]] = {}
        for device, exclusive in product(self._devices, (False, True)):
            of_each_mib = common_mib(device, exclusive=exclusive)
            if not evicts and not any(of_each_mib):
                continue
            for front in fronts.of_device(device.observed, exclusive=exclusive):
                gpus = front.wish.gpus
                if evicts or (gpus <= len(of_each_mib) and front.least_mib <= of_each_mib[gpus - 1]):
                    there = places.setdefault(front, [])
                    if gpus == 1 or not there or there[-1].node is not device.node:  # one of a node stands for it
                        there.append(device)
        # Those of a service with a limit may begin, wherever there is room, once it holds less, or less is kept for it.
        for front in fronts.limited:
            named = self._state.rooms.named(front.wish)
            places[front] = [device for device in named if evicts or device.free_mib >= front.least_mib]
        for number, (front, devices) in enumerate(places.items()):
            self._found.append((front.branch.first, number, _Searching(front, number, devices)))
        heapq.heapify(self._found)

    def next(self) -> Waiting | None:
        """The next who could be on one of the devices, as far as can be said without looking for its place. Who was
        found before the last grant is searched for once more: too little may be left."""
        if self._taken is not None:
            self._go_on(self._taken)
        while self._found:
            waiting, _, self._taken = heapq.heappop(self._found)
            if self._taken.front is None or (self._taken.search is not None and self._taken.grants == self._grants):
                return waiting
            self._go_on(self._taken)
        return None

    def granted(self) -> None:
        """The last who was found was granted a place."""
        self._grants += 1

    def _go_on(self, searching: _Searching) -> None:
        """Find the next. What could be lent is looked up again only behind a grant: there may be less, never more."""
        front = searching.front
        if front is None or not front.branch.below:
            return
        if searching.search is None or searching.grants != self._grants:
            searching.grants = self._grants
            lendable = self._lendable(front.wish, searching.devices)
            if all(vram_mib < front.least_mib for vram_mib, _ in lendable):
                return
            searching.search = Search(front.branch, lendable)
        waiting = searching.search.next()
        if waiting is not None:
            heapq.heappush(self._found, (waiting, searching.number, searching))

    def _lendable(self, wish: Wish, devices: list[Device]) -> list[Lendable]:
        """What of the devices could be lent to somebody with a wish: of several devices, what each of them has."""
        lendable: list[Lendable] = []
        if self._evicts:
            lendable.append((eviction.most_mib(self._state, devices), NEVER_MS))
        if wish.gpus == 1:
            for most_ms, free_mib, extra_mib in self._terms(devices, wish):
                lendable.append((free_mib, most_ms))
                if extra_mib:
                    lendable.append((extra_mib, NEVER_MS))
        else:
            for node in dict.fromkeys(device.node for device in devices):
                lendable += _together(self._terms(node.devices, wish), wish.gpus)
        if len(lendable) < 2:
            return lendable
        most, most_mib = list[Lendable](), 0
        for vram_mib, most_ms in sorted(lendable, key=lambda each: (-each[1], -each[0])):
            if vram_mib > most_mib:
                most_mib = vram_mib
                most.append((vram_mib, most_ms))
        return most

    def _terms(self, devices: list[Device], wish: Wish) -> list[_Terms]:
        """How long what is free on each device may be lent, how much that is, and how much of it for ever."""
        reservations = self._state.reservations
        terms: list[_Terms] = []
        for device in devices:
            if is_open(device, exclusive=wish.exclusive):
                if device in reservations.by_device:
                    most_ms, extra_mib = reservations.terms(device, self._state.now_ms, self._state.policy)
                    terms.append((most_ms, device.free_mib, 0 if wish.exclusive else min(device.free_mib, extra_mib)))
                else:
                    terms.append((NEVER_MS, device.free_mib, 0))
        return terms


def _together(terms: list[_Terms], gpus: int) -> list[Lendable]:
    """What so many devices have in common, by how long it may be lent."""
    if len(terms) < gpus:
        return []
    together = []
    for most_ms in dict.fromkeys([NEVER_MS, *[ms for ms, _, _ in terms]]):
        mib = sorted([free_mib if ms >= most_ms else extra_mib for ms, free_mib, extra_mib in terms])
        if mib[-gpus] > 0:
            together.append((mib[-gpus], most_ms))
    return together


class _Searching:
    """A search for those with one wish (None: for nobody) who could be on these devices, and how many grants there were
    when it was begun."""

    __slots__ = ("devices", "front", "grants", "number", "search")

    def __init__(self, front: Front | None, number: int, devices: list[Device]) -> None:
        self.front = front
        self.devices = devices
        self.number = number
        self.search: Search | None = None
        self.grants = 0
