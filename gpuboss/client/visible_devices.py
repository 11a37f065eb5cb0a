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
    Raises `ConfigError` if the variable hides one of them, or leaves open which is which.
    """
    visible = (os.environ if environ is None else environ).get(VARIABLE)
    if visible is None or not all(device.startswith("cuda:") for device in devices):
        return tuple(devices)
    entries = _visible_entries(visible)
    pairs = list(zip_longest(devices, uuids[: len(devices)], fillvalue=""))
    _refuse_ambiguous(entries, pairs, visible)
    return tuple(_own_name(device, uuid, entries, visible) for device, uuid in pairs)


def _visible_entries(text: str) -> list[str]:
    """The entries that count: as for CUDA, the first that is no index and no UUID hides itself and the rest."""
    entries: list[str] = []
    for entry in map(str.strip, text.split(",")):
        if not entry.isdecimal() and not entry.startswith(("GPU-", "MIG-")):
            break
        entries.append(str(int(entry)) if entry.isdecimal() else entry)
    return entries


def _refuse_ambiguous(entries: Sequence[str], pairs: Sequence[tuple[str, str]], visible: str) -> None:
    """CUDA shows a process no device at all where two entries are one device, or one entry could be two."""
    twice = [entry for entry in entries if entries.count(entry) > 1]
    for device, uuid in pairs:
        named = [entry for entry in entries if _names(entry, device, uuid)]
        twice += named if len(named) > 1 else []
    if twice:
        raise ConfigError(
            f"{VARIABLE}={visible!r} lists one device twice ({', '.join(dict.fromkeys(twice))}); expected each device "
            f"once: take one of them out, or unset {VARIABLE}"
        )
    for entry in entries:
        fitting = [uuid for device, uuid in pairs if not entry.isdecimal() and _names(entry, device, uuid)]
        if len(fitting) > 1:
            raise ConfigError(
                f"{entry} in {VARIABLE}={visible!r} fits {' and '.join(fitting)}, which were both granted; expected a "
                f"UUID that is long enough for one device alone: write it in full, or unset {VARIABLE}"
            )


def _names(entry: str, device: str, uuid: str) -> bool:
    """Whether an entry means this device. A UUID may be cut short, as long as it fits one device alone; which others
    than the granted it fits is CUDA's concern."""
    return entry == device.removeprefix("cuda:") if entry.isdecimal() else uuid.startswith(entry)


def _own_name(device: str, uuid: str, entries: Sequence[str], visible: str) -> str:
    for ordinal, entry in enumerate(entries):
        if _names(entry, device, uuid):
            return f"cuda:{ordinal}"
    raise ConfigError(
        f"{device} ({uuid}) was granted, but {VARIABLE}={visible!r} hides it from this process; expected a device "
        f"that it lists: pin the request with device=..., or unset {VARIABLE}"
    )
