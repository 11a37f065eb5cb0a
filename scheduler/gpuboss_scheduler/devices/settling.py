"""Watches, on this node's real devices, for memory to be free that was given back.

A driver takes its time to free what a process gave up. So a level is compared, and not a change: what is used is no
more than what the other leases there may use. What nobody is charged for, a context that stays, has the margin.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from gpuboss.core.ledger import Lease, Ledger
from gpuboss_scheduler.devices.nvml import NvmlUnavailable

UNKNOWN_MIB = 2**63  # what a device of another node uses, which NVML does not show here: more than any may


class Settling:
    """Looks at the devices in a thread, one look at a time: a driver that hangs holds nothing up but the next look.
    `used_mib` is what is used of each device, by UUID."""

    def __init__(self, used_mib: Callable[[], Mapping[str, int]]) -> None:
        self._used_mib = used_mib
        self._look: _Look | None = None

    @property
    def is_looking(self) -> bool:
        """Whether a look is under way, or over and not asked for."""
        return self._look is not None

    def seen_back(self, ledger: Ledger) -> set[str]:
        """Of which leases a look that ended shows that their memory is free. Where none is under way, one begins."""
        look = self._look
        if look is not None and look.done.is_set():
            self._look = None
            return look.seen_back()
        if look is None and ledger.settling:
            self._look = _Look([*ledger.settling.values()], self._used_mib)
            threading.Thread(target=self._look.run, name="gpuboss nvml", daemon=True).start()
        return set()


class _Look:
    """One look, at what settled when it began. What may be used is noted before: whoever is granted anything while it
    lasts has loaded nothing."""

    def __init__(self, leases: list[Lease], used_mib: Callable[[], Mapping[str, int]]) -> None:
        self.done = threading.Event()
        self._sizes = [
            (lease.request.lease_id, lease.request.vram_mib, [device.observed.uuid for device in lease.devices])
            for lease in leases
        ]
        self._may_use_mib = {
            device.observed.uuid: device.charged_mib + device.observed.foreign_mib + device.observed.margin_mib
            for lease in leases
            for device in lease.devices
        }
        self._read = used_mib
        self._used_mib: Mapping[str, int] = {}

    def run(self) -> None:
        """Look. What cannot be read is not seen to be back."""
        try:
            self._used_mib = self._read()
        except NvmlUnavailable:
            pass
        finally:
            self.done.set()

    def seen_back(self) -> set[str]:
        """Whose memory is free, of those that settled: together they leave no more than the others may use."""
        seen: set[str] = set()
        for lease_id, vram_mib, uuids in self._sizes:
            if all(self._used_mib.get(uuid, UNKNOWN_MIB) <= self._may_use_mib[uuid] - vram_mib for uuid in uuids):
                seen.add(lease_id)
                for uuid in uuids:
                    self._may_use_mib[uuid] -= vram_mib
        return seen
