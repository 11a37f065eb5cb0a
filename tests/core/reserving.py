"""Stories about reservations: under other rules than the default ones, and with what is kept for whom in short."""

from __future__ import annotations

from msgspec.structs import replace

from gpuboss.core.reservations import Reservation
from tests.core.scenario import NODE, Scenario, policy


def kept(scenario: Scenario) -> dict[str, tuple[str, int | None]]:
    """For whom devices are kept, in the order of the queue: which, and in how many ms it starts (None: drained)."""
    return {
        each.waiting.request.lease_id.rstrip("_"): (_devices(each), _in_ms(scenario, each))
        for each in scenario.state.reservations.in_order
    }


def _devices(reservation: Reservation) -> str:
    keys = [device.key for device in reservation.devices]
    return "+".join(key.removeprefix(f"{NODE}/") for key in keys)


def _in_ms(scenario: Scenario, reservation: Reservation) -> int | None:
    return None if reservation.start_ms is None else reservation.start_ms - scenario.state.now_ms


def with_rules(*sizes_mib: int, **rules: int | str) -> Scenario:
    """Devices, and other rules than the default ones."""
    scenario = Scenario(*sizes_mib)
    scenario.happens(replace(policy(), **rules))
    return scenario
