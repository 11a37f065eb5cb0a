"""What is really on the cards, whoever may think what: memory belongs to processes, and goes when they unload or die.

Two things must hold at every moment. What is in use is there: that is looked at whenever a model is loaded. And what
processes rely on is there: they note it, for the judge of histories.

The promise does not cover a process that stands still for longer than the lock delay: its lease may have ended when it
stopped, and its memory stays. From then on nothing is noted as relied on, and its memory is left out until it has had a
moment to unload (`UNLOAD_US`) after it goes on. So it is with one that SIGTERM ends: it gives back while it can still
say so, and dies a moment later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tests.sim.processes import Process
from tests.verdict.history import Note

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
        self.history: list[Note] = []
        self._relied: dict[tuple[Process, str], str] = {}  # as which request of the history

    def trust(self, process: Process, lease_id: str, part: Part) -> None:
        """The process was granted this, and relies on it from now on."""
        if not process.is_dead:
            self._over(process, lease_id)
            request = self._relied[process, lease_id] = f"{process.name}/{lease_id}#{len(self.history)}"
            self.history.append(Note(self._world.timeline.now_us / 1e6, "granted", request, *part))

    def distrust(self, process: Process, lease_id: str) -> None:
        """It does not any more."""
        if not process.is_dead:
            self._over(process, lease_id)

    def load(self, process: Process, lease_id: str, part: Part) -> None:
        """It uses what it was granted."""
        if not process.is_dead:
            self.loaded[process, lease_id] = part
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
        self.excuse(process)

    def excuse(self, process: Process) -> None:
        """The promise covers nothing any more of what it relied on so far."""
        for _, lease_id in [key for key in self._relied if key[0] is process]:
            self._over(process, lease_id)

    def _over(self, process: Process, lease_id: str) -> None:
        request = self._relied.pop((process, lease_id), None)
        if request is not None:
            self.history.append(Note(self._covered_until_us(process) / 1e6, "over", request))

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

    def is_excused(self, process: Process) -> bool:
        """Whether it stands, or has just stood, still for longer than the promise covers."""
        now_us = self._world.timeline.now_us
        return self._covered_until_us(process) < now_us or now_us < process.excused_until_us

    def _covered_until_us(self, process: Process) -> int:
        """Now, or the moment until which the promise covered one that stands still."""
        now_us = self._world.timeline.now_us
        if process.still_since_us is None:
            return now_us
        return min(now_us, process.still_since_us + self._world.settings.lock_delay_ms * 1000)


def _names(parts: dict[tuple[Process, str], int]) -> str:
    return ", ".join(f"{process.name}/{lease_id} ({mib})" for (process, lease_id), mib in parts.items())
