"""What is set, for clients and scheduler: `config.yaml`, then `GPUBOSS_*` variables, then arguments."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from msgspec.structs import asdict

from gpuboss.config.settings import (
    CONFIG_VARIABLE,
    SETTINGS,
    KeyPath,
    Values,
    read_arguments,
    read_at,
    read_environment,
    read_section,
    section_of,
)
from gpuboss.config.units import gb_to_mib, parse_devices, parse_duration_ms, parse_size_mib
from gpuboss.config.values import read_device, redact_url
from gpuboss.config.yaml_lines import read_yaml
from gpuboss.core.policy import MAX_WAITING
from gpuboss.errors import ConfigError
from gpuboss.events import PolicySet
from gpuboss.fields import HeadStart, PreemptAfter, Preemption, Priority, ServiceRules

__all__ = [
    "Config",
    "GpuConfig",
    "ModelConfig",
    "PolicyConfig",
    "RetentionConfig",
    "SchedulerConfig",
    "ServiceConfig",
    "check_guarantees",
    "gb_to_mib",
    "load_config",
    "load_config_with_origins",
    "load_policy",
    "parse_devices",
    "parse_duration_ms",
    "parse_size_mib",
    "redact_url",
]

SERVICES_MAX = 350  # with rules of their own: all of them stand in one entry of the log, of 64 KiB at most

Durability = Literal["strict", "standard", "replicated"]

T = TypeVar("T")

# ---------------------------------------------------------------- what the settings become


class GpuConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a service asks with: where Redis is, who it is, and what its requests have unless they say."""

    enabled: bool = True
    redis_url: str = "redis://localhost:6379"
    priority: Priority = "normal"
    service: str | None = None
    instance: str | None = None
    node: str | None = None  # None: any node
    namespace: str = "gpuboss"
    exclusive: bool = False
    ttl_ms: int | None = None  # None: a lease lives until it is released
    wait_timeout_ms: int | None = None  # None: a request waits for ever

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # what rich prints; the URL may hold a password
        return list((msgspec.structs.asdict(self) | {"redis_url": redact_url(self.redis_url)}).items())

    def __repr__(self) -> str:
        return f"GpuConfig({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a model needs; None leaves the matter to `gpu`."""

    vram_mib: int
    device_env: str | None = None
    priority: Priority | None = None
    exclusive: bool | None = None
    gpus: int = 1
    ttl_ms: int | None = None
    wait_timeout_ms: int | None = None
    reclaimable: bool = False
    preemptible: bool = True

    def pinned_device(self, environ: Mapping[str, str] | None = None) -> str | None:
        """The device that the variable `device_env` pins this model to; None if it is not set, or empty.

        `environ` is the process's own by default. Raises `ConfigError`, which names the variable, for what is
        neither `cuda:N` nor a GPU or MIG UUID.
        """
        if self.device_env is None:
            return None
        device = (os.environ if environ is None else environ).get(self.device_env)
        return read_at(read_device, device, self.device_env) if device else None


class ServiceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The rules for one service. `max_waiting` None is as for all, `limit_mib` None is no limit. `origin` is where its
    guarantee stands, as `FILE:LINE`."""

    guarantee_mib: int = 0
    limit_mib: int | None = None
    max_waiting: int | None = None
    max_priority: Priority = "high"
    origin: str = ""


class PolicyConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The rules of scheduling that can be set. `margin_mib` None is `auto`: each device's own default.

    `max_waiting`: how many requests of each service may wait, unless `services` says so for it.
    """

    head_start_ms: HeadStart = HeadStart()
    margin_mib: int | None = None
    max_waiting: int = MAX_WAITING
    services: dict[str, ServiceConfig] = {}
    reservations: int = 4
    backfill_order: Literal["key", "short"] = "key"
    starve_ms: int = 1_800_000
    preemption: Preemption = "idle"
    preempt_after_ms: PreemptAfter = PreemptAfter()
    min_run_ms: int = 60_000
    grace_ms: int = 15_000
    settle_ms: int = 5_000

    def recorded(self, session_ttl_ms: int, lock_delay_ms: int) -> PolicySet:
        """This policy as the log records it, every value resolved."""
        services = {
            name: ServiceRules(
                rules.max_waiting or self.max_waiting, rules.guarantee_mib, rules.limit_mib, rules.max_priority
            )
            for name, rules in self.services.items()
        }
        values = asdict(self) | {"services": services}
        return PolicySet(**values, session_ttl_ms=session_ttl_ms, lock_delay_ms=lock_delay_ms)


class RetentionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the log is kept in Redis: entries that are older than `age_ms`, or beyond the last `count`, go once a
    snapshot stands in for them. None: they stay."""

    age_ms: int | None = None
    count: int | None = None


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the scheduler runs. `devices` are simulated, as (index, MiB); None: the real ones, through NVML.

    `memory_file` is where the end of the log is remembered, so that a lost log is noticed after a restart too; None:
    only while the scheduler runs, and with an embedded server in its `data_dir`. `archive` is the folder into which
    entries are written before they go from the log; None: they are gone.
    """

    embedded: bool = False
    data_dir: str | None = None
    devices: tuple[tuple[int, int], ...] | None = None
    node: str | None = None
    http: tuple[str, int] | None = ("127.0.0.1", 8003)  # None: off
    session_ttl_ms: int = 15_000
    lock_delay_ms: int = 60_000  # where devices are simulated and nothing is set, `load_config` makes it 0
    durability: Durability = "standard"
    policy: PolicyConfig = PolicyConfig()
    memory_file: str | None = None
    retention: RetentionConfig = RetentionConfig()
    archive: str | None = None
    snapshot_every: int = 10_000  # entries of the log
    replies_max: int = 10_000  # entries that a reply stream keeps, about


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """All settings, resolved: sizes in MiB, durations in ms."""

    gpu: GpuConfig = GpuConfig()
    models: dict[str, ModelConfig] = {}
    scheduler: SchedulerConfig = SchedulerConfig()


# ---------------------------------------------------------------- loading


def load_config(
    path: Path | str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    arguments: Mapping[str, object] | None = None,
) -> Config:
    """The settings from defaults, file, environment and `arguments`, of which the later win.

    `path` is the file, else the one that `GPUBOSS_CONFIG` names, else none is read. `environ` is the process's
    own by default; an empty variable counts as not set. `arguments` has dotted keys, such as
    `scheduler.session_ttl`, and None for what is not given. Raises `ConfigError` for any mistake in any of
    them, also an overridden one.
    """
    return load_config_with_origins(path, environ=environ, arguments=arguments)[0]


def load_config_with_origins(
    path: Path | str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    arguments: Mapping[str, object] | None = None,
) -> tuple[Config, dict[str, str]]:
    """As `load_config`, and where each value comes from.

    The origins, by dotted key: `default`, `FILE:LINE`, the variable's name, or `argument`.
    """
    environ = os.environ if environ is None else environ
    path = path if path is not None else environ.get(CONFIG_VARIABLE) or None
    values: Values = {}
    if path is not None:
        values |= read_section(read_yaml(path), os.fspath(path), section_of())
    values |= read_environment(environ)
    values |= read_arguments(arguments or {})
    origins = {setting.key: "default" for setting in SETTINGS if "*" not in setting.key}
    origins |= {".".join(key): given.origin for key, given in values.items() if given.field is not None}
    return _config(values), origins


def load_policy(path: Path | str) -> PolicyConfig:
    """The policy in a file of its own: what `scheduler.policy` holds. Raises `ConfigError`."""
    return _policy(read_section(read_yaml(path), os.fspath(path), section_of("scheduler", "policy")), ())


def check_guarantees(policy: PolicyConfig, capacity_mib: int) -> None:
    """Raises `ConfigError` if what is guaranteed to services is more than all devices together can lend."""
    sum_mib = 0
    for name, rules in policy.services.items():
        sum_mib += rules.guarantee_mib
        if sum_mib > capacity_mib:
            raise ConfigError(
                f"{rules.origin}: the guarantee_mib of {name} brings their sum to {sum_mib} MiB; expected at most "
                f"{capacity_mib} MiB, which is what the devices can lend: lower it, or another before it"
            )


# ---------------------------------------------------------------- building


def _fields(values: Values, path: KeyPath) -> dict[str, object]:
    return {given.field: given.value for key, given in values.items() if key[:-1] == path and given.field is not None}


def _built(kind: Callable[..., T], values: Values, path: KeyPath, **parts: object) -> T:
    return kind(**_fields(values, path), **parts)


def _config(values: Values) -> Config:
    lock_delay = {}
    if ("scheduler", "lock_delay") not in values and _fields(values, ("scheduler",)).get("devices"):
        lock_delay = {"lock_delay_ms": 0}  # a simulated device has no memory that could linger
    return Config(
        gpu=_built(GpuConfig, values, ("gpu",)),
        models={key[1]: _model(values, key) for key in values if len(key) == 2 and key[0] == "models"},
        scheduler=_built(
            SchedulerConfig,
            values,
            ("scheduler",),
            policy=_policy(values, ("scheduler", "policy")),
            retention=_built(RetentionConfig, values, ("scheduler", "retention")),
            **lock_delay,
        ),
    )


def _policy(values: Values, path: KeyPath) -> PolicyConfig:
    head_start_ms = _built(HeadStart, values, (*path, "head_start_ms"))
    preempt_after_ms = _built(PreemptAfter, values, (*path, "preempt_after_ms"))
    named = [key for key in values if len(key) == len(path) + 2 and key[:-1] == (*path, "services")]
    if len(named) > SERVICES_MAX:
        raise ConfigError(
            f"{values[named[0]].origin}: {'.'.join(named[0][:-1])} names {len(named)} services; expected "
            f"{SERVICES_MAX} at most: give those that are alike the value for all"
        )
    services = {key[-1]: _service(values, key) for key in named}
    parts = {"head_start_ms": head_start_ms, "preempt_after_ms": preempt_after_ms, "services": services}
    return _built(PolicyConfig, values, path, **parts)


def _service(values: Values, path: KeyPath) -> ServiceConfig:
    guarantee = values.get((*path, "guarantee_mib"))
    rules = _built(ServiceConfig, values, path, origin="" if guarantee is None else guarantee.origin)
    if rules.limit_mib is not None and rules.guarantee_mib > rules.limit_mib:
        raise ConfigError(
            f"{rules.origin}: {'.'.join(path)}.guarantee_mib is {rules.guarantee_mib}; expected at most its limit_mib, "
            f"{rules.limit_mib}"
        )
    return rules


def _model(values: Values, path: KeyPath) -> ModelConfig:
    sizes = [key for key in ("vram_gb", "vram_mib") if (*path, key) in values]
    if len(sizes) != 1:
        found = "both vram_gb and vram_mib" if sizes else "neither vram_gb nor vram_mib"
        where = f"{values[path].origin}: {'.'.join(path)}"
        raise ConfigError(f"{where} has {found}; expected one of them, for example vram_gb: 8")
    return _built(ModelConfig, values, path)
