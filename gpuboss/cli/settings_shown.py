"""The settings as a list to be shown: what the code uses, under the names that people set."""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

from gpuboss.cli.wording import duration, size
from gpuboss.config import Config, redact_url
from gpuboss.config.settings import SETTINGS

_NAMED = ("models", "scheduler.policy.services")  # sections whose keys are names that people give


class Shown(NamedTuple):
    """One setting. `unit`: of a value that is a number (`ms`, `MiB`), else None."""

    key: str
    value: object
    unit: str | None
    origin: str


def settings(config: Config, origins: dict[str, str]) -> list[Shown]:
    """All settings, in the order of their table, then what is set for models and services."""
    fields = {setting.key: setting.field for setting in SETTINGS}
    shown = []
    for key, origin in origins.items():
        section, _, name = key.rpartition(".")
        named = next((prefix for prefix in _NAMED if section.startswith(f"{prefix}.")), None)
        if named is not None:
            owner = section.removeprefix(f"{named}.")  # its name may hold points itself
            field = fields[f"{named}.*.{name}"]
            sections: Any = reduce(getattr, named.split("."), config)
            value = getattr(sections[owner], field)
        else:
            field = fields[key]
            value = getattr(reduce(getattr, section.split("."), config), field)
        is_time = field.endswith("_ms") or section.endswith("_ms")
        unit = "ms" if is_time else "MiB" if field.endswith("_mib") else None
        shown.append(Shown(key, _plain(field, value), unit, origin))
    return shown


def to_text(setting: Shown) -> str:
    """The value for people."""
    value = setting.value
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return duration(value) if setting.unit == "ms" else size(value) if setting.unit == "MiB" else str(value)
    return (
        str(value) if isinstance(value, str) else ",".join(map(str, value)) if isinstance(value, list) else str(value)
    )


def _plain(field: str, value: object) -> object:
    if field == "redis_url":
        return redact_url(str(value))
    if field == "devices" and isinstance(value, tuple):
        return ",".join(f"cuda:{index}={mib}" for index, mib in value)
    if field == "http":
        return f"{value[0]}:{value[1]}" if isinstance(value, tuple) else "off"
    return value
