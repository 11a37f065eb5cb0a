"""What GPUs this node has: as simulated by a setting, or as NVML sees them."""

from __future__ import annotations

from gpuboss.config import SchedulerConfig
from gpuboss.events import DeviceObserved
from gpuboss.simulation import devices as simulated
from gpuboss_scheduler.devices import nvml


def observe(config: SchedulerConfig, node: str) -> list[DeviceObserved]:
    """The devices of this node, in their order. Raises `nvml.NvmlUnavailable` where there are neither."""
    margin_mib = config.policy.margin_mib
    if config.devices is not None:
        return simulated.observe(config.devices, node, margin_mib)
    return nvml.observe(node, margin_mib)
