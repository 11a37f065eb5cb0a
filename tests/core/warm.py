"""Scenarios with models that are kept warm: idle leases, and what is free and held on each device."""

from __future__ import annotations

from typing import Any

from tests.core.scenario import Scenario, idled

GRACE_MS = 15_000


def warm(*leases: tuple[str, int], devices: int = 1, reload_ms: int = 100, **fields: Any) -> Scenario:
    """Idle leases, by name and size, on devices of 24,576 MiB; further fields as in `LeaseRequested`."""
    scenario = Scenario(*[24_576] * devices)
    for name, vram_mib in leases:
        scenario.request(name, vram_mib, reclaimable=True, **fields)
        scenario.says(idled(name, reload_ms))
    return scenario


def free_and_held(scenario: Scenario) -> list[tuple[int, int]]:
    """Of each device, what is free and what is held."""
    return [(device.free_mib, device.hold_mib) for device in scenario.state.ledger.ordered_devices()]
