"""What a caller may ask for, and how arguments, model and settings together become a request."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import msgspec

from gpuboss.client.lease import Lease
from gpuboss.config import Config
from gpuboss.config.settings import read_at
from gpuboss.config.units import parse_duration_ms, parse_some_duration_ms, parse_some_size_mib
from gpuboss.config.values import choice, read_boolean, read_device, read_name, shown, whole_number
from gpuboss.errors import ConfigError
from gpuboss.events import LeaseRequested
from gpuboss.fields import GPUS_MAX, MS_MAX, VRAM_MIB_MAX, LeaseId, Priority


class Wish(TypedDict, total=False):
    """The arguments of `lease` and `acquire`: one of the first three, and whatever else matters.

    What is left out, or None, is taken from the model, then from the settings of `gpu`.
    """

    vram_gb: float | None
    """GB of 1024 MiB on each device; a fraction rounds up to a MiB."""
    vram_mib: int | None
    """The same in MiB."""
    model: str | None
    """A model of the configuration, which says how much it needs."""
    priority: Priority | None
    """`low`, `normal` or `high`."""
    device: str | None
    """`cuda:N`, or the UUID of a GPU or MIG slice: this one and no other."""
    node: str | None
    """Only on this host."""
    gpus: int | None
    """That many devices of one node, all or none."""
    exclusive: bool | None
    """The device is shared with nobody."""
    ttl: float | None
    """Seconds that the lease lives after the grant, unless renewed; `math.inf`: until it is released."""
    wait_timeout: float | None
    """Seconds to wait at most; 0: only if there is room at once; `math.inf`: for ever."""
    reclaimable: bool | None
    """It may be kept idle, and asked back while it is."""
    preemptible: bool | None
    """A higher class may ask it back, where the policy says so."""


def request_of(
    wish: Mapping[str, Any],
    config: Config,
    *,
    lease_id: str,
    session: str,
    environ: Mapping[str, str] | None = None,
) -> LeaseRequested:
    """The request that a wish becomes. `environ`, where a model's `device_env` is looked up, is the process's own
    by default. Raises `ConfigError` for arguments that do not fit."""
    given = _given(wish)
    merged = _of_settings(config) | _of_model(given, config, environ) | given
    service = config.gpu.service
    assert service is not None  # a client without a name is not built
    return LeaseRequested(
        lease_id=lease_id,
        service=service,
        vram_mib=merged.get("vram_gb") or merged["vram_mib"],
        priority=merged["priority"],
        device=merged.get("device"),
        node=merged["node"],
        gpus=merged.get("gpus", 1),
        exclusive=merged["exclusive"],
        ttl_ms=_limit_ms(merged["ttl"]),
        wait_ms=_limit_ms(merged["wait_timeout"]),
        reclaimable=merged.get("reclaimable", False),
        preemptible=merged.get("preemptible", True),
        instance=config.gpu.instance,
        session=session,
        pid=os.getpid(),
        model=merged.get("model"),
    )


def ttl_ms_of(name: str, value: object) -> int:
    """An argument in seconds as ms, at least 1. Raises `ConfigError`, which names it."""
    ms: int = read_at(parse_some_duration_ms, value, name)
    return ms


def reload_ms_of(value: object) -> int:
    """What loading a model again costs, in ms. Raises `ConfigError`."""
    ms: int = read_at(whole_number(0, MS_MAX), value, "reload_ms")
    return ms


def lease_id_of(lease: object) -> str:
    """The id of what was given as a lease. Raises `ConfigError` for what is neither a lease nor an id."""
    if isinstance(lease, Lease):
        return lease.lease_id
    try:
        return msgspec.convert(lease if isinstance(lease, str) else None, LeaseId)
    except msgspec.ValidationError:
        raise ConfigError(
            f"{shown(lease)} is no lease; expected what acquire() returned, or its id: 8 to 64 of A-Z a-z 0-9 _ -"
        ) from None


_NO_END = -1  # what `math.inf` is read as: it beats a number in the settings, which None would not


def _ttl_ms(value: object) -> int:
    return _NO_END if value == math.inf else parse_some_duration_ms(value)


def _wait_ms(value: object) -> int:
    return _NO_END if value == math.inf else max(1, parse_duration_ms(value))


def _model_name(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{shown(value)} names no model; expected its name under `models` in the configuration")
    return value


def _gb(value: object) -> int:
    return parse_some_size_mib(value, bare_unit="GB")


_READERS: dict[str, Callable[[object], Any]] = {
    "vram_gb": _gb,
    "vram_mib": whole_number(1, VRAM_MIB_MAX),
    "model": _model_name,
    "priority": choice("low", "normal", "high"),
    "device": read_device,
    "node": read_name,
    "gpus": whole_number(1, GPUS_MAX),
    "exclusive": read_boolean,
    "ttl": _ttl_ms,
    "wait_timeout": _wait_ms,
    "reclaimable": read_boolean,
    "preemptible": read_boolean,
}
assert _READERS.keys() == Wish.__annotations__.keys()

_SIZES = ("vram_gb", "vram_mib", "model")


def _given(wish: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that say something, read."""
    given: dict[str, Any] = {}
    for name, value in wish.items():
        if name not in _READERS:
            raise ConfigError(f"unknown argument {name}; {_meant(name, _READERS)}")
        if value is not None:
            given[name] = read_at(_READERS[name], value, name)
    sizes = [name for name in _SIZES if name in given]
    if len(sizes) != 1:
        found = " and ".join(sizes) or "none of them"
        raise ConfigError(f"expected exactly one of vram_gb, vram_mib and model, given {found}; for example vram_gb=8")
    return given


def _of_settings(config: Config) -> dict[str, Any]:
    gpu = config.gpu
    return {
        "priority": gpu.priority,
        "node": gpu.node,
        "exclusive": gpu.exclusive,
        "ttl": gpu.ttl_ms,
        "wait_timeout": gpu.wait_timeout_ms,
    }


def _of_model(given: Mapping[str, Any], config: Config, environ: Mapping[str, str] | None) -> dict[str, Any]:
    """What the model says, as far as it says anything."""
    if "model" not in given:
        return {}
    model = config.models.get(given["model"])
    if model is None:
        raise ConfigError(
            f"model: {shown(given['model'])} is not in the configuration; {_meant(given['model'], config.models)}"
        )
    said = {
        "vram_mib": model.vram_mib,
        "priority": model.priority,
        "exclusive": model.exclusive,
        "gpus": model.gpus,
        "ttl": model.ttl_ms,
        "wait_timeout": model.wait_timeout_ms,
        "reclaimable": model.reclaimable,
        "preemptible": model.preemptible,
        "device": None if "device" in given else model.pinned_device(environ),
    }
    return {name: value for name, value in said.items() if value is not None}


def _limit_ms(ms: int | None) -> int | None:
    return None if ms == _NO_END else ms


def _meant(name: str, known: Mapping[str, object]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"expected one of {', '.join(known)}" if known else "it has none: give a config.yaml with `models:`"
