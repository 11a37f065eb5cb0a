"""What this process calls a GPU: CUDA numbers only those that CUDA_VISIBLE_DEVICES lets it see."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from gpuboss.errors import ConfigError

VARIABLE = "CUDA_VISIBLE_DEVICES"


def own_ordinals(
    devices: Sequence[str], uuids: Sequence[str], environ: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """The granted `devices` as this process must name them, in the same order.

    `environ` is the process's own by default; without CUDA_VISIBLE_DEVICES the names are the granted ones.
    Raises `ConfigError` if the variable hides one of them.
    """
    visible = (os.environ if environ is None else environ).get(VARIABLE)
    if visible is None or not all(device.startswith("cuda:") for device in devices):
        return tuple(devices)
    entries = _visible_entries(visible)
    pairs = zip_longest(devices, uuids[: len(devices)], fillvalue="")
    return tuple(_own_name(device, uuid, entries, visible) for device, uuid in pairs)


def _visible_entries(text: str) -> list[str]:
    """The entries that count: as for CUDA, the first that is no index and no UUID hides itself and the rest."""
    entries: list[str] = []
    for entry in map(str.strip, text.split(",")):
        if not entry.isdecimal() and not entry.startswith(("GPU-", "MIG-")):
            break
        entries.append(entry)
    return entries


def _own_name(device: str, uuid: str, entries: Sequence[str], visible: str) -> str:
    index = device.removeprefix("cuda:")
    for ordinal, entry in enumerate(entries):
        # A UUID may be cut short, as long as it fits one device alone; which others it fits is CUDA's concern.
        if (entry.isdecimal() and str(int(entry)) == index) or (not entry.isdecimal() and uuid.startswith(entry)):
            return f"cuda:{ordinal}"
    raise ConfigError(
        f"{device} ({uuid}) was granted, but {VARIABLE}={visible!r} hides it from this process; expected a device "
        f"that it lists: pin the request with device=..., or unset {VARIABLE}"
    )
