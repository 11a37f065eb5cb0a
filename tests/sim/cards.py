"""What is really on the cards, whoever may think what: memory belongs to processes, and goes when they unload or die.

Two things must hold at every moment. What the processes that run, and rely on their leases, believe they may use is
there. And what is in use is there; where that is too much, the memory of a process is left out that stood still for
longer than the lock delay: the promise ends there, as its lease may have ended when it stopped and its memory stays.
It is left out until it has had a moment to unload (`UNLOAD_US`) after it goes on. So is one that SIGTERM ends: it gives
back while it can still say so, and dies a moment later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tests.sim.processes import Process

if TYPE_CHECKING:
    from tests.sim.world import World

UNLOAD_US = 1_000_000


class Part(NamedTuple):
    """So much on each of these devices."""

    devices: tuple[str, ...]
    vram_mib: int


class Cards:
    """The devices of the world."""

    def __init__(self, world: World, total_mib: dict[str, int]) -> None:
        self.total_mib = total_mib
        self._world = world
        self._used = dict.fromkeys(total_mib, 0)
        self.loaded: dict[tuple[Process, str], Part] = {}
        self.trusted: dict[tuple[Process, str], Part] = {}
        self._to_check: set[str] = set()

    def trust(self, process: Process, lease_id: str, devices: Sequence[str], vram_mib: int) -> None:
        """The process was granted this, and relies on it from now on."""
        if not process.is_dead:
            self.trusted[process, lease_id] = Part(tuple(devices), vram_mib)
            self._to_check.update(devices)

    def distrust(self, process: Process, lease_id: str) -> None:
        """It does not any more."""
        if not process.is_dead:
            self.trusted.pop((process, lease_id), None)

    def load(self, process: Process, lease_id: str) -> None:
        """It uses what it was granted."""
        if not process.is_dead:
            part = self.loaded[process, lease_id] = self.trusted[process, lease_id]
            for device in part.devices:
                self._used[device] += part.vram_mib
            self._check_used(part.devices)

    def unload(self, process: Process, lease_id: str) -> None:
        """Its memory is free again."""
        part = self.loaded.pop((process, lease_id), None) if not process.is_dead else None
        if part is not None:
            for device in part.devices:
                self._used[device] -= part.vram_mib

    def died(self, process: Process) -> None:
        """The driver takes back what a process had."""
        for key in [key for key in self.loaded if key[0] is process]:
            part = self.loaded.pop(key)
            for device in part.devices:
                self._used[device] -= part.vram_mib
        for key in [key for key in self.trusted if key[0] is process]:
            del self.trusted[key]

    def check_trusted(self) -> None:
        """To be called whenever a process has had its turn: what it heard in it counts by then."""
        if not self._to_check:
            return
        for device in sorted(self._to_check):
            believed = {
                key: part.vram_mib
                for key, part in self.trusted.items()
                if device in part.devices and self._relies(key[0])
            }
            if sum(believed.values()) > self.total_mib[device] and not self._world.judge.is_excused:
                self._world.blame(f"{device} is relied on beyond what it has, by {_names(believed)}")
        self._to_check.clear()

    def _check_used(self, devices: Sequence[str]) -> None:
        for device in devices:
            if self._used[device] > self.total_mib[device] and not self._world.judge.is_excused:
                used = {
                    key: part.vram_mib
                    for key, part in self.loaded.items()
                    if device in part.devices and not self.is_excused(key[0])
                }
                if sum(used.values()) > self.total_mib[device]:
                    self._world.blame(f"{device} is used beyond what it has, by {_names(used)}")

    def _relies(self, process: Process) -> bool:
        return process.state == "runs" and not process.is_busy and not self.is_excused(process)

    def is_excused(self, process: Process) -> bool:
        """Whether it stands, or has just stood, still for longer than the promise covers."""
        now_us = self._world.timeline.now_us
        still_us = 0 if process.stopped_at_us is None else now_us - process.stopped_at_us
        return still_us >= self._world.settings.lock_delay_ms * 1000 or now_us < process.excused_until_us


def _names(parts: dict[tuple[Process, str], int]) -> str:
    return ", ".join(f"{process.name}/{lease_id} ({mib})" for (process, lease_id), mib in parts.items())
