"""GPUs that exist in a setting alone, for machines without any."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from gpuboss.events import DeviceObserved

_NAMESPACE = uuid.UUID("6f0f7b0e-59ab-4d5c-a2a7-6d0c8f5b7e11")


def observe(devices: Iterable[tuple[int, int]], node: str, margin_mib: int | None) -> list[DeviceObserved]:
    """`devices` are pairs of index and MiB. The same node and index has the same UUID, today and tomorrow."""
    return [
        DeviceObserved(
            node=node,
            device=f"cuda:{index}",
            uuid=f"GPU-{uuid.uuid5(_NAMESPACE, f'{node}/cuda:{index}')}",
            name="Simulated GPU",
            total_mib=total_mib,
            margin_mib=margin_mib or 0,
            simulated=True,
        )
        for index, total_mib in sorted(devices)
    ]
