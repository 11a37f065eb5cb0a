"""Sizes, durations and lists of simulated devices as people write them, read exactly into MiB and ms."""

from __future__ import annotations

import re
from decimal import Decimal

from gpuboss.config.values import shown
from gpuboss.errors import ConfigError
from gpuboss.fields import MS_MAX, VRAM_MIB_MAX

_TEXT_CHARACTERS_MAX = 128
_AMOUNT = re.compile(r"((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?) *([A-Za-z]*)\Z")
_DEVICE = re.compile(r"cuda:(0|[1-9][0-9]{0,3}) *= *(\S.*)\Z")

# GB means GiB, as it does on every graphics card's box: a "24 GB" card has 24576 MiB.
_MIB = {
    prefix + suffix: mib
    for prefix, mib in (("m", 1), ("g", 1024), ("t", 1024 * 1024))
    for suffix in ("", "b", "i", "ib")
}
_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def gb_to_mib(value: int | float | Decimal | str) -> int:
    """The MiB of so many GB (1024 MiB each), rounded up; text may name its unit. Raises `ConfigError`."""
    return parse_size_mib(value, bare_unit="GB")


def parse_size_mib(value: object, *, bare_unit: str, round_down: bool = False, most_mib: int = VRAM_MIB_MAX) -> int:
    """The MiB of a size such as `8GB`, `8 GiB`, `8192MiB`, or of a bare number of `bare_unit`.

    A fraction of a MiB rounds up, as is right for what is asked for; `round_down` is for what there is. The
    result is from 0 to `most_mib`. Raises `ConfigError` for everything else.
    """
    expected = f"expected a number of {bare_unit} or one with a unit (MiB, GB, TB), for example 8GB"
    number, unit = _amount(value, f"is not a size; {expected}")
    factor = _MIB.get((unit or bare_unit).lower())
    if factor is None:
        raise ConfigError(f"{shown(value)} has an unknown unit; {expected}")
    return _scaled(number, factor, most_mib, round_down, f"{shown(value)} is above {most_mib} MiB; {expected}")


def parse_duration_ms(value: object) -> int:
    """The ms of a duration such as `30s`, `500ms`, `2m`, `1h`, `7d`, or of a bare number of seconds.

    A fraction of a ms rounds up. The result is from 0 to `MS_MAX`. Raises `ConfigError` for everything else.
    """
    expected = "expected a number of seconds or one with a unit (ms, s, m, h, d), for example 30s"
    number, unit = _amount(value, f"is not a duration; {expected}")
    factor = _MS.get(unit or "s")
    if factor is None:
        raise ConfigError(f"{shown(value)} has an unknown unit; {expected}")
    return _scaled(number, factor, MS_MAX, False, f"{shown(value)} is too long; {expected}")


def parse_some_size_mib(value: object, *, bare_unit: str) -> int:
    """As `parse_size_mib`, but not 0: what nothing fits into, or takes no room, is a mistake."""
    mib = parse_size_mib(value, bare_unit=bare_unit)
    if mib == 0:
        raise ConfigError(f"{shown(value)} is no room at all; expected at least 1 MiB, for example 8GB")
    return mib


def parse_some_duration_ms(value: object) -> int:
    """As `parse_duration_ms`, but not 0: a lease or a wait of no length is a mistake."""
    ms = parse_duration_ms(value)
    if ms == 0:
        raise ConfigError(f"{shown(value)} is no time at all; expected at least 1ms, for example 30s")
    return ms


def parse_devices(text: object) -> list[tuple[int, int]]:
    """The simulated devices of `cuda:0=24576,cuda:1=24GB`: (index, MiB) each, in the order given.

    A bare number is MiB, and a fraction rounds down: no device has more than it has. Raises `ConfigError`.
    """
    expected = "expected cuda:INDEX=SIZE, more of them after a comma, for example cuda:0=24576,cuda:1=24GB"
    if not isinstance(text, str):
        raise ConfigError(f"{shown(text)} is no list of devices; {expected}")
    devices: dict[int, int] = {}
    for item in text.split(","):
        match = _DEVICE.match(item.strip())
        if match is None:
            raise ConfigError(f"{shown(item)} in {shown(text)} is no device; {expected}")
        index, mib = int(match[1]), parse_size_mib(match[2], bare_unit="MiB", round_down=True)
        if index in devices:
            raise ConfigError(f"cuda:{index} is there twice in {shown(text)}; {expected}")
        if mib == 0:
            raise ConfigError(f"{shown(item)} in {shown(text)} is a device without memory; {expected}")
        devices[index] = mib
    return list(devices.items())


def _amount(value: object, complaint: str) -> tuple[Decimal, str]:
    """Number and unit. All goes through its text: so 0.1 is a tenth, not the nearest binary fraction."""
    text = None
    if isinstance(value, str):
        text = value.strip()
    elif isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        # A subclass (an enum, numpy's float64) may print otherwise; astronomic integers do not print at all.
        plain = int(value) if isinstance(value, int) else float(value) if isinstance(value, float) else value
        text = str(plain) if not isinstance(plain, int) or abs(plain) <= MS_MAX * 1024 else None
    match = _AMOUNT.match(text) if text is not None and len(text) <= _TEXT_CHARACTERS_MAX else None
    if match is None:
        raise ConfigError(f"{shown(value)} {complaint}")
    return Decimal(match[1]), match[2]


def _scaled(number: Decimal, factor: int, maximum: int, round_down: bool, complaint: str) -> int:
    numerator, denominator = number.as_integer_ratio()  # integers: neither binary fractions nor 28 digits
    scaled = numerator * factor // denominator if round_down else -(-numerator * factor // denominator)
    if scaled > maximum:
        raise ConfigError(complaint)
    return scaled
