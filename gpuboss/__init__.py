"""GPUBoss lends the VRAM of shared GPUs to services, in turn and by priority."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuboss.errors import (
    ConfigError,
    GPUBossError,
    LeaseDenied,
    LeaseImpossible,
    LeaseLost,
    LeaseTimeout,
    SchedulerUnavailable,
)

if TYPE_CHECKING:
    from gpuboss.client import Device, GPUBoss, Lease, Resident

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "Device",
    "GPUBoss",
    "GPUBossError",
    "Lease",
    "LeaseDenied",
    "LeaseImpossible",
    "LeaseLost",
    "LeaseTimeout",
    "Resident",
    "SchedulerUnavailable",
]


def __getattr__(name: str) -> object:
    # The client pulls in redis (140 ms of CPU); `gpuboss --help` and the pure core must not pay for it.
    if name in ("GPUBoss", "Lease", "Device", "Resident"):
        from gpuboss import client

        return getattr(client, name)
    raise AttributeError(f"module 'gpuboss' has no attribute {name!r}")
