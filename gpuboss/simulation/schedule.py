"""Who asked for what and when, and what became of it: a schedule, simulated or recorded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from msgspec import Struct

from gpuboss.events import (
    DeviceLost,
    DeviceObserved,
    Event,
    LeaseIdled,
    LeaseRenewed,
    LeaseRequested,
    LeaseResumed,
)

Said: TypeAlias = LeaseRenewed | LeaseIdled | LeaseResumed


class Job(Struct, frozen=True):
    """A request, and what its service does with the lease: give it back `hold_ms` after the grant (None: never, so
    that its TTL alone ends it), and before that say what `said` holds, each by its ms after the grant. A request that
    still waits after `patience_ms` is taken back."""

    request: LeaseRequested
    submit_ms: int
    hold_ms: int | None
    patience_ms: int | None = None
    said: tuple[tuple[int, Said], ...] = ()

    @property
    def size_mib(self) -> int:
        """What it asks for on all its devices together, in MiB."""
        return self.request.vram_mib * self.request.gpus


@dataclass(slots=True)
class Outcome:
    """What became of one request. `ended_at_ms` and `reason` are of the lease's end, or of the denial; a request that
    is neither granted nor ended still waits."""

    granted_at_ms: int | None = None
    ended_at_ms: int | None = None
    devices: tuple[str, ...] = ()
    reason: str = ""


class Fact(NamedTuple):
    """Something that the scheduler writes into the log at this ms: the rules, or a device."""

    at_ms: int
    event: Event


class Schedule(NamedTuple):
    """Jobs and what became of each, in one order; what the devices could hold, and until when all this is known."""

    jobs: Sequence[Job]
    outcomes: Sequence[Outcome]
    capacity: Sequence[tuple[int, int]]  # (from this ms on, so many MiB on all devices together), ascending
    until_ms: int

    @property
    def began_at_ms(self) -> int:
        """When the first request was submitted; the end where there is none."""
        return min((job.submit_ms for job in self.jobs), default=self.until_ms)


def capacity_of(facts: Iterable[Fact]) -> list[tuple[int, int]]:
    """What leases could hold on all devices together, in MiB, from each ms on at which that changed.

    A device counts with its total less the driver's part and the margin, also while it is not healthy.
    """
    devices: dict[tuple[str, str], int] = {}
    capacity: dict[int, int] = {}
    for at_ms, event in facts:
        if isinstance(event, DeviceObserved):
            devices[event.node, event.device] = max(0, event.total_mib - event.reserved_mib - event.margin_mib)
        elif isinstance(event, DeviceLost):
            devices.pop((event.node, event.device), None)
        else:
            continue
        capacity[at_ms] = sum(devices.values())
    return list(capacity.items())
