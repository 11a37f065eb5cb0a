"""The table of settings, and what file, environment and arguments each say about them.

To add a setting: give it a line in `SETTINGS`, and a field with its default in the struct of its section, in
__init__.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar

from gpuboss.config.units import (
    parse_devices,
    parse_duration_ms,
    parse_size_mib,
    parse_some_duration_ms,
    parse_some_size_mib,
)
from gpuboss.config.values import (
    choice,
    optional,
    read_boolean,
    read_http_address,
    read_name,
    read_namespace,
    read_path,
    read_redis_url,
    read_variable_name,
    shown,
    whole_number,
)
from gpuboss.config.yaml_lines import Located
from gpuboss.errors import ConfigError
from gpuboss.fields import GPUS_MAX, MS_MAX, RESERVATIONS_MAX, TOTAL_MIB_MAX, WAITING_MAX

CONFIG_VARIABLE = "GPUBOSS_CONFIG"
NAME_CHARACTERS_MAX = 128

T = TypeVar("T")


class Setting(NamedTuple):
    """A key of the file and of arguments (`*` is any name), its field, how it is read, and its variable."""

    key: str
    field: str
    read: Callable[[object], object]
    variable: str | None = None


def _duration_or_none(value: object) -> int | None:
    # The word is there so that a variable or an argument can undo what the file says.
    return None if value is None or value == "none" else parse_some_duration_ms(value)


def _count_or_none(value: object) -> int | None:
    return None if value is None or value == "none" else whole_number(1, MS_MAX)(value)


def _margin(value: object) -> int | None:
    return None if value == "auto" else parse_size_mib(value, bare_unit="MiB")


def _preemption(value: object) -> object:
    """YAML reads a bare `off` as false."""
    return _which_leases("off" if value is False else value)


def _devices(value: object) -> tuple[tuple[int, int], ...]:
    return tuple(parse_devices(value))


_some_gb = partial(parse_some_size_mib, bare_unit="GB")
_some_mib = partial(parse_some_size_mib, bare_unit="MiB")
_which_leases = choice("off", "idle", "lower")
_priority = choice("low", "normal", "high")
_name_or_none = optional(read_name)
_total_mib = partial(parse_size_mib, bare_unit="MiB", most_mib=TOTAL_MIB_MAX)
_ms = whole_number(0, MS_MAX)

SETTINGS = (
    Setting("gpu.enabled", "enabled", read_boolean, "GPUBOSS_ENABLED"),
    Setting("gpu.redis_url", "redis_url", read_redis_url, "GPUBOSS_REDIS_URL"),
    Setting("gpu.priority", "priority", _priority, "GPUBOSS_PRIORITY"),
    Setting("gpu.service", "service", _name_or_none, "GPUBOSS_SERVICE"),
    Setting("gpu.instance", "instance", _name_or_none, "GPUBOSS_INSTANCE"),
    Setting("gpu.node", "node", _name_or_none, "GPUBOSS_NODE"),
    Setting("gpu.namespace", "namespace", read_namespace, "GPUBOSS_NAMESPACE"),
    Setting("gpu.exclusive", "exclusive", read_boolean, "GPUBOSS_EXCLUSIVE"),
    Setting("gpu.ttl", "ttl_ms", _duration_or_none, "GPUBOSS_TTL"),
    Setting("gpu.wait_timeout", "wait_timeout_ms", _duration_or_none, "GPUBOSS_WAIT_TIMEOUT"),
    Setting("models.*.vram_gb", "vram_mib", _some_gb),
    Setting("models.*.vram_mib", "vram_mib", _some_mib),
    Setting("models.*.device_env", "device_env", optional(read_variable_name)),
    Setting("models.*.priority", "priority", optional(_priority)),
    Setting("models.*.exclusive", "exclusive", optional(read_boolean)),
    Setting("models.*.gpus", "gpus", whole_number(1, GPUS_MAX)),
    Setting("models.*.ttl", "ttl_ms", _duration_or_none),
    Setting("models.*.wait_timeout", "wait_timeout_ms", _duration_or_none),
    Setting("models.*.reclaimable", "reclaimable", read_boolean),
    Setting("models.*.preemptible", "preemptible", read_boolean),
    Setting("scheduler.embedded", "embedded", read_boolean, "GPUBOSS_EMBEDDED"),
    Setting("scheduler.data_dir", "data_dir", optional(read_path), "GPUBOSS_DATA_DIR"),
    Setting("scheduler.devices", "devices", optional(_devices), "GPUBOSS_DEVICES"),
    Setting("scheduler.node", "node", _name_or_none, "GPUBOSS_NODE"),
    Setting("scheduler.http", "http", read_http_address, "GPUBOSS_HTTP"),
    Setting("scheduler.session_ttl", "session_ttl_ms", parse_some_duration_ms, "GPUBOSS_SESSION_TTL"),
    Setting("scheduler.lock_delay", "lock_delay_ms", parse_duration_ms, "GPUBOSS_LOCK_DELAY"),
    Setting("scheduler.durability", "durability", choice("strict", "standard", "replicated"), "GPUBOSS_DURABILITY"),
    Setting("scheduler.policy.head_start_ms.low", "low", _ms),
    Setting("scheduler.policy.head_start_ms.normal", "normal", _ms),
    Setting("scheduler.policy.head_start_ms.high", "high", _ms),
    Setting("scheduler.policy.margin_mib", "margin_mib", _margin),
    Setting("scheduler.policy.reservations", "reservations", whole_number(0, RESERVATIONS_MAX)),
    Setting("scheduler.policy.backfill_order", "backfill_order", choice("key", "short")),
    Setting("scheduler.policy.starve_ms", "starve_ms", _ms),
    Setting("scheduler.policy.preemption", "preemption", _preemption),
    Setting("scheduler.policy.preempt_after_ms.normal", "normal", _ms),
    Setting("scheduler.policy.preempt_after_ms.high", "high", _ms),
    Setting("scheduler.policy.min_run_ms", "min_run_ms", _ms),
    Setting("scheduler.policy.grace_ms", "grace_ms", _ms),
    Setting("scheduler.policy.settle_ms", "settle_ms", _ms),
    Setting("scheduler.policy.max_waiting", "max_waiting", whole_number(1, WAITING_MAX)),
    Setting("scheduler.policy.services.*.guarantee_mib", "guarantee_mib", _total_mib),
    Setting("scheduler.policy.services.*.limit_mib", "limit_mib", optional(_total_mib)),
    Setting("scheduler.policy.services.*.max_waiting", "max_waiting", whole_number(1, WAITING_MAX)),
    Setting("scheduler.policy.services.*.max_priority", "max_priority", _priority),
    Setting("scheduler.memory_file", "memory_file", optional(read_path), "GPUBOSS_MEMORY_FILE"),
    Setting("scheduler.retention.age", "age_ms", _duration_or_none, "GPUBOSS_RETENTION_AGE"),
    Setting("scheduler.retention.count", "count", _count_or_none, "GPUBOSS_RETENTION_COUNT"),
    Setting("scheduler.archive", "archive", optional(read_path), "GPUBOSS_ARCHIVE"),
    Setting("scheduler.snapshot_every", "snapshot_every", whole_number(1, MS_MAX)),
    Setting("scheduler.replies_max", "replies_max", whole_number(1, MS_MAX), "GPUBOSS_REPLIES_MAX"),
)

_VARIABLE_PREFIX = "GPUBOSS_"
# Variables of ours that are no settings: never mistaken for a misspelt one.
_NOT_SETTINGS = ("GPUBOSS_TEST_", "GPUBOSS_FAILPOINT", "GPUBOSS_LEASE_ID", "GPUBOSS_SERVER_BINARY")
# Names share letters by chance: GPUBOSS_SERVICE_HOST, which Kubernetes sets for a service called gpuboss, is
# 0.74 alike to GPUBOSS_SERVICE. A letter too many or too few leaves 0.8 and more.
_ALIKE_VARIABLE = 0.8

KeyPath: TypeAlias = tuple[str, ...]
Section: TypeAlias = "dict[str, Setting | Section]"


class Given(NamedTuple):
    """A setting's value, its struct's field, and its origin. `field` None is a model's section as a whole."""

    field: str | None
    value: object
    origin: str


Values: TypeAlias = dict[KeyPath, Given]


def _as_tree(settings: Iterable[Setting]) -> Section:
    root: Section = {}
    for setting in settings:
        section = root
        *parents, last = setting.key.split(".")
        for parent in parents:
            child = section.setdefault(parent, {})
            assert isinstance(child, dict)  # a key is a setting or a section, never both
            section = child
        section[last] = setting
    return root


def section_of(*path: str) -> Section:
    """The part of the table below a dotted path, such as `scheduler`, `policy`; all of it without a path."""
    section = _as_tree(SETTINGS)
    for key in path:
        child = section[key]
        assert isinstance(child, dict)
        section = child
    return section


def read_section(node: Located, file: str, section: Section, path: KeyPath = ()) -> Values:
    """What a part of a file says. `file` and `path`, where the part is, are for messages and origins.

    Raises `ConfigError` for unknown keys and for values that do not fit, with their lines.
    """
    if node.value is None:
        return {}
    if not isinstance(node.value, dict):
        whose = ".".join(path) or "the file"
        keys = "NAME" if "*" in section else ", ".join(section)
        raise ConfigError(
            f"{file}:{node.line}: {whose} is {shown(node.value)}; expected a mapping with the keys {keys}"
        )
    values: Values = {}
    for key, child in node.value.items():
        origin, here = f"{file}:{child.line}", (*path, key)
        known = section.get("*") or section.get(key)
        if known is None:
            whose = f" in {'.'.join(path)}" if path else ""
            raise ConfigError(f"{origin}: unknown key {shown(key)}{whose}; {_meant(key, section)}")
        if isinstance(known, Setting):
            value = read_at(known.read, child.value, f"{origin}: {'.'.join(here)}")
            values[here] = Given(known.field, value, origin)
            continue
        if "*" in section:
            values[here] = Given(None, None, origin)
            _refuse_bad_name(key, origin, path)
        values |= read_section(child, file, known, here)
    return values


def _refuse_bad_name(name: str, origin: str, section: KeyPath) -> None:
    if section[-1:] == ("services",):
        read_at(read_name, name, origin)
    # Names are shown on terminals and travel in events, so no control characters and no novels.
    if not name.isprintable() or not 0 < len(name) <= NAME_CHARACTERS_MAX:
        raise ConfigError(
            f"{origin}: {shown(name)} cannot name a model; expected 1 to {NAME_CHARACTERS_MAX} printable "
            "characters, for example deepseek-r1-70b-q4"
        )


def read_environment(environ: Mapping[str, str]) -> Values:
    """What the `GPUBOSS_*` variables say; an empty one counts as not set.

    Raises `ConfigError` for values that do not fit, and for a variable that looks like one of them misspelt.
    """
    values: Values = {}
    for setting in SETTINGS:
        text = environ.get(setting.variable or "", "")
        if setting.variable and text:
            value = read_at(setting.read, text, setting.variable)
            values[tuple(setting.key.split("."))] = Given(setting.field, value, setting.variable)
    known = {CONFIG_VARIABLE, *(setting.variable for setting in SETTINGS if setting.variable)}
    for name in sorted(environ.keys() - known):
        if name.startswith(_VARIABLE_PREFIX) and not name.startswith(_NOT_SETTINGS):
            _refuse_misspelt_variable(name, sorted(known))
    return values


def _refuse_misspelt_variable(name: str, known: Iterable[str]) -> None:
    import difflib

    settings = [variable.removeprefix(_VARIABLE_PREFIX) for variable in known]
    word = name.removeprefix(_VARIABLE_PREFIX).upper()
    if close := difflib.get_close_matches(word, settings, n=1, cutoff=_ALIKE_VARIABLE):
        raise ConfigError(
            f"unknown variable {shown(name)}; did you mean '{_VARIABLE_PREFIX}{close[0]}'? If not, rename it"
        )


def read_arguments(arguments: Mapping[str, object]) -> Values:
    """What arguments say, by dotted key; None is not given. Raises `ConfigError` as for a file."""
    settings = {setting.key: setting for setting in SETTINGS if "*" not in setting.key}
    values: Values = {}
    for key, given in arguments.items():
        if given is None:
            continue
        setting = settings.get(key)
        if setting is None:
            raise ConfigError(f"unknown argument {shown(key)}; {_meant(key, settings)}")
        value = read_at(setting.read, given, f"argument {key}")
        values[tuple(key.split("."))] = Given(setting.field, value, "argument")
    return values


def read_at(read: Callable[[object], T], value: object, where: str) -> T:
    """The value as `read` reads it. Raises its `ConfigError`, with `where` at the start of the message."""
    try:
        return read(value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _meant(key: str, known: Iterable[str]) -> str:
    import difflib

    known = list(known)
    close = difflib.get_close_matches(key.lower(), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
