"""Mistakes in file, variables and arguments: found, placed, and answered with what was meant."""

import time

import pytest
import yaml

from gpuboss.config import Config, load_config, load_policy
from gpuboss.config.yaml_lines import FILE_BYTES_MAX
from gpuboss.errors import ConfigError

# What stands in the file, the line that is named, the beginning of what is said.
MISTAKES = {
    "unknown key": ("gpu:\n  prioritty: low\n", 2, "unknown key 'prioritty' in gpu; did you mean 'priority'?"),
    "unknown section": ("gpus: {}\n", 1, "unknown key 'gpus'; did you mean 'gpu'?"),
    "key unlike any": ("zzz: 1\n", 1, "unknown key 'zzz'; expected one of gpu, models, scheduler"),
    "field's name": ("gpu:\n  ttl_ms: 1\n", 2, "unknown key 'ttl_ms' in gpu; did you mean 'ttl'?"),
    "policy not known": (
        "scheduler:\n  policy:\n    quota: idle\n",
        3,
        "unknown key 'quota' in scheduler.policy; expected one of head_start_ms, margin_mib, reservations",
    ),
    "order of who passes": (
        "scheduler:\n  policy:\n    backfill_order: long\n",
        3,
        "scheduler.policy.backfill_order: 'long' does not fit; expected one of key, short",
    ),
    "rule of a service": (
        "scheduler:\n  policy:\n    services:\n      imajin:\n        limit_mb: 8\n",
        5,
        "unknown key 'limit_mb' in scheduler.policy.services.imajin; did you mean 'limit_mib'?",
    ),
    "rules of no service": (
        "scheduler:\n  policy:\n    services: [imajin]\n",
        3,
        "scheduler.policy.services is a list; expected a mapping with the keys NAME",
    ),
    "rules that are none": (
        "scheduler:\n  policy:\n    services: {imajin: 8}\n",
        3,
        "scheduler.policy.services.imajin is 8 (a number); expected a mapping with the keys guarantee_mib, limit_mib,",
    ),
    "limit": (
        "scheduler: {policy: {services: {imajin: {limit_mib: much}}}}\n",
        1,
        "scheduler.policy.services.imajin.limit_mib: 'much' is not a size; expected a number of MiB",
    ),
    "limit below zero": (
        "scheduler: {policy: {services: {imajin: {limit_mib: -1}}}}\n",
        1,
        "scheduler.policy.services.imajin.limit_mib: -1 (a number) is not a size",
    ),
    "limit above all": (
        "scheduler: {policy: {services: {imajin: {limit_mib: 17179869185}}}}\n",
        1,
        "scheduler.policy.services.imajin.limit_mib: 17179869185 (a number) is above 17179869184 MiB",
    ),
    "guarantee": (
        "scheduler: {policy: {services: {imajin: {guarantee_mib: null}}}}\n",
        1,
        "scheduler.policy.services.imajin.guarantee_mib: null is not a size",
    ),
    "guarantee above the limit": (
        "scheduler:\n  policy:\n    services:\n      imajin:\n        limit_mib: 8192\n        guarantee_mib: 8193\n",
        6,
        "scheduler.policy.services.imajin.guarantee_mib is 8193; expected at most its limit_mib, 8192",
    ),
    "highest priority": (
        "scheduler: {policy: {services: {imajin: {max_priority: urgent}}}}\n",
        1,
        "scheduler.policy.services.imajin.max_priority: 'urgent' does not fit; expected one of low, normal, high",
    ),
    "most who wait": (
        "scheduler: {policy: {services: {imajin: {max_waiting: true}}}}\n",
        1,
        "scheduler.policy.services.imajin.max_waiting: true (a boolean) does not fit; expected a whole number from 1",
    ),
    "too many reservations": (
        "scheduler:\n  policy:\n    reservations: 1025\n",
        3,
        "scheduler.policy.reservations: ",
    ),
    "priority": (
        "gpu:\n  priority: urgent\n",
        2,
        "gpu.priority: 'urgent' does not fit; expected one of low, normal, high",
    ),
    "priority's case": ("gpu: {priority: HIGH}\n", 1, "gpu.priority: 'HIGH' does not fit; expected one of low"),
    "boolean": ("\n\ngpu:\n  enabled: 3\n", 4, "gpu.enabled: 3 (a number) is neither yes nor no; expected true"),
    "number as name": ("gpu: {service: 123}\n", 1, "gpu.service: 123 (a number) is not a name; expected 1 to 63"),
    "list": ("gpu:\n  ttl: [1, 2]\n", 2, "gpu.ttl: a list is not a duration; expected a number of seconds"),
    "mapping": ("gpu:\n  ttl: {s: 1}\n", 2, "gpu.ttl: a mapping is not a duration"),
    "value on its own line": ("gpu:\n  ttl:\n\n    soon\n", 2, "gpu.ttl: 'soon' is not a duration"),
    "null": ("gpu: {redis_url: }\n", 1, "gpu.redis_url: null is not a Redis URL"),
    "negative": ("gpu: {ttl: -1}\n", 1, "gpu.ttl: -1 (a number) is not a duration"),
    "zero": ("gpu: {wait_timeout: 0}\n", 1, "gpu.wait_timeout: 0 (a number) is no time at all; expected at least 1ms"),
    "infinite": ("gpu: {ttl: .inf}\n", 1, "gpu.ttl: Infinity (a number) is not a duration"),
    "no number": ("models: {m: {vram_gb: .nan}}\n", 1, "models.m.vram_gb: NaN (a number) is not a size"),
    "base 60": ("gpu: {ttl: 1:30}\n", 1, "gpu.ttl: '1:30' is not a duration"),
    "no size": ("models:\n  m:\n    gpus: 2\n", 2, "models.m has neither vram_gb nor vram_mib; expected one"),
    "no model": ("models:\n  m:\n", 2, "models.m has neither vram_gb nor vram_mib"),
    "both sizes": ("models:\n  m: {vram_gb: 8, vram_mib: 8192}\n", 2, "models.m has both vram_gb and vram_mib"),
    "no room": (
        "models: {m: {vram_gb: 0}}\n",
        1,
        "models.m.vram_gb: 0 (a number) is no room at all; expected at least",
    ),
    "model's key": ("models:\n  m:\n    vram: 8\n", 3, "unknown key 'vram' in models.m; did you mean 'vram_gb'?"),
    "model's variable": ("models: {m: {vram_gb: 8, device_env: a-b}}\n", 1, "models.m.device_env: 'a-b' names no env"),
    "model's gpus": ("models: {m: {vram_gb: 8, gpus: 0}}\n", 1, "models.m.gpus: 0 (a number) does not fit; expected a"),
    "model's name": ('models:\n  "\\e[31m": {vram_gb: 8}\n', 2, "'\\x1b[31m' cannot name a model; expected 1 to 128"),
    "model as number": ("models:\n  m: 8\n", 2, "models.m is 8 (a number); expected a mapping with the keys vram_gb,"),
    "models as list": ("models: [m]\n", 1, "models is a list; expected a mapping with the keys NAME"),
    "whole file a list": ("- gpu\n", 1, "the file is a list; expected a mapping with the keys gpu, models, scheduler"),
    "devices": ("scheduler: {devices: 'cuda:0=1,cuda:0=2'}\n", 1, "scheduler.devices: cuda:0 is there twice"),
    "head start": (
        "scheduler: {policy: {head_start_ms: {low: -1}}}",
        1,
        "scheduler.policy.head_start_ms.low: -1 (a nu",
    ),
    "margin": ("scheduler: {policy: {margin_mib: much}}", 1, "scheduler.policy.margin_mib: 'much' is not a size"),
    "durability": (
        "scheduler: {durability: hard}",
        1,
        "scheduler.durability: 'hard' does not fit; expected one of strict",
    ),
    "duplicate": ("gpu:\n  ttl: 1\n  node: a\n  ttl: 2\n", 4, "'ttl' is there twice, first on line 2; remove one"),
    "duplicate section": ("gpu: {}\n\ngpu: {}\n", 3, "'gpu' is there twice, first on line 1"),
    "list as key": ("? [a]\n: 1\n", 1, "a list or a mapping as a key; expected a name"),
    "not closed": ("gpu: {\n", 2, "not YAML: while parsing a flow node"),
    "tab": ("gpu:\n\tttl: 1\n", 2, "not YAML: while scanning for the next token, found character"),
    "two documents": ("gpu: {}\n---\ngpu: {}\n", 2, "not YAML: expected a single document"),
    "control character": ("gpu: {}\n# \x01\n", 2, "not YAML: control characters are not allowed"),
    "alias": ("gpu: &a {ttl: 1}\nscheduler: *a\n", 2, "an alias (*name) is not supported; write the value out"),
    "tag": ("gpu:\n  ttl: !!python/object/apply:os.abort []\n", 2, "the tag 'tag:yaml.org,2002:python/object/apply:"),
    "deep": ("gpu: " + "[" * 40 + "]" * 40 + "\n", 1, "nested deeper than 32 levels"),
}


@pytest.fixture(params=["fast", "slow"])
def yaml_loader(request, monkeypatch):
    """Both of PyYAML's parsers: not every installation has the fast one."""
    if request.param == "slow":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    elif not hasattr(yaml, "CSafeLoader"):
        pytest.skip("this PyYAML has no fast parser")


@pytest.mark.parametrize(("text", "line", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_its_line(text, line, said, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ={})
    assert str(caught.value).startswith(f"{path}:{line}: {said}")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("case", [case for case, (_, _, said) in MISTAKES.items() if "not YAML" not in said])
def test_the_slow_parser_finds_the_same_mistakes(case, tmp_path, monkeypatch):
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    test_a_mistake_is_named_with_its_line(*MISTAKES[case], tmp_path)


def test_an_alias_bomb_is_refused_at_once(tmp_path, yaml_loader):
    path = tmp_path / "config.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    path.write_text("\n".join(lines))
    began = time.process_time()
    with pytest.raises(ConfigError, match=r":2: an alias \(\*name\) is not supported"):
        load_config(path, environ={})
    assert time.process_time() - began < 5


def test_brackets_without_end_are_refused_at_once(tmp_path, yaml_loader):
    path = tmp_path / "config.yaml"
    path.write_text("[" * FILE_BYTES_MAX)
    with pytest.raises(ConfigError, match=r":1: (nested deeper than 32 levels|not YAML: .*nesting depth)"):
        load_config(path, environ={})


def test_a_file_above_1_mib_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("#" * (FILE_BYTES_MAX - 1) + "\n")
    assert load_config(path, environ={}) == Config()
    path.write_text("#" * FILE_BYTES_MAX + "\n")
    with pytest.raises(ConfigError, match="larger than 1048576 bytes; expected"):
        load_config(path, environ={})


def test_what_is_not_utf_8_is_refused_with_its_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"gpu:\n  service: \xff\n")
    with pytest.raises(ConfigError, match=r"config\.yaml:2: not UTF-8; save the file as UTF-8"):
        load_config(path, environ={})


@pytest.mark.parametrize("name", ["missing.yaml", "", "nul\x00byte"])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, name):
    for load in (load_policy, lambda path: load_config(path, environ={})):
        with pytest.raises(ConfigError, match=r"cannot read '.*; expected the path of a YAML file"):
            load(f"{tmp_path}/{name}")
    with pytest.raises(ConfigError, match="cannot read 'nowhere': No such file"):
        load_config(environ={"GPUBOSS_CONFIG": "nowhere"})


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"GPUBOSS_TTL": "soon"}, "GPUBOSS_TTL: 'soon' is not a duration; expected"),
        ({"GPUBOSS_PRIORITY": "urgent"}, "GPUBOSS_PRIORITY: 'urgent' does not fit; expected one of low, normal, high"),
        ({"GPUBOSS_NODE": "A"}, "GPUBOSS_NODE: 'A' is not a name"),
        ({"GPUBOSS_SERVICE": "a\n"}, "GPUBOSS_SERVICE: 'a\\n' is not a name"),
        ({"GPUBOSS_PRIORTY": "low"}, "unknown variable 'GPUBOSS_PRIORTY'; did you mean 'GPUBOSS_PRIORITY'?"),
        ({"GPUBOSS_REDISURL": "x"}, "unknown variable 'GPUBOSS_REDISURL'; did you mean 'GPUBOSS_REDIS_URL'?"),
        ({"GPUBOSS_Node": "x"}, "unknown variable 'GPUBOSS_Node'; did you mean 'GPUBOSS_NODE'?"),
        ({"GPUBOSS_CONFG": "x"}, "unknown variable 'GPUBOSS_CONFG'; did you mean 'GPUBOSS_CONFIG'?"),
    ],
)
def test_mistakes_in_variables_are_named(environ, said):
    with pytest.raises(ConfigError) as caught:
        load_config(environ=environ)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "name",
    [
        "GPUBOSS_LEASE_ID",
        "GPUBOSS_SERVER_BINARY",
        "GPUBOSS_FAILPOINT",
        "GPUBOSS_FAILPOINTS",
        "GPUBOSS_TEST_CONFIG",
        "GPUBOSS_TEST_SESSION_TTL",
        "GPUBOSS_",
        "GPUBOSS_SERVICE_HOST",  # these six: what Kubernetes sets for services called gpuboss and gpuboss-redis
        "GPUBOSS_SERVICE_PORT",
        "GPUBOSS_SERVICE_PORT_HTTP",
        "GPUBOSS_PORT_8003_TCP",
        "GPUBOSS_REDIS_SERVICE_HOST",
        "GPUBOSS_REDIS_PORT",
        "IMAGE_GEN_ANIME_DEVICE",
        "PRIORTY",
    ],
)
def test_other_variables_are_left_alone(name):
    assert load_config(environ={name: "anything"}) == Config()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"gpu.ttl": "soon"}, "argument gpu.ttl: 'soon' is not a duration"),
        ({"gpu.prioritty": "low"}, "unknown argument 'gpu.prioritty'; did you mean 'gpu.priority'?"),
        ({"models.m.vram_gb": 8}, "unknown argument 'models.m.vram_gb'"),
        ({"gpu.exclusive": 1}, "argument gpu.exclusive: 1 (a number) is neither yes nor no"),
    ],
)
def test_mistakes_in_arguments_are_named(arguments, said):
    with pytest.raises(ConfigError) as caught:
        load_config(environ={}, arguments=arguments)
    assert str(caught.value).startswith(said)


def test_a_mistake_is_found_even_where_a_stronger_place_overrides_it(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("gpu: {ttl: soon}")
    with pytest.raises(ConfigError, match=r":1: gpu\.ttl: 'soon'"):
        load_config(path, environ={"GPUBOSS_TTL": "1"}, arguments={"gpu.ttl": 1})
