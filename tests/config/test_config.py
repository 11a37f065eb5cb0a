"""Loading: every setting from every place it may come from, the stronger place winning."""

import subprocess
import sys
from operator import attrgetter

import msgspec
import pytest
from msgspec.structs import replace

from gpuboss.config import (
    Config,
    GpuConfig,
    ModelConfig,
    PolicyConfig,
    RetentionConfig,
    SchedulerConfig,
    ServiceConfig,
    check_guarantees,
    load_config,
    load_config_with_origins,
    load_policy,
)
from gpuboss.config.settings import SETTINGS
from gpuboss.core.door import DATA_BYTES_MAX
from gpuboss.core.policy import DEFAULT_POLICY
from gpuboss.errors import ConfigError
from gpuboss.fields import HeadStart, PreemptAfter

# As the documentation of the platform that GPUBoss was made for has it.
SMALLEST = """\
# config.yaml
gpu:
  enabled: true
  redis_url: redis://localhost:6379
  priority: "normal"  # low, normal, high
"""

WHOLE = """\
gpu:
  enabled: false
  redis_url: unix:///run/redis.sock
  priority: high
  service: imajin-diffusion
  instance: blue
  node: rack-1
  namespace: "{gpuboss}"
  exclusive: yes
  ttl: 1h
  wait_timeout: 1.5
models:
  deepseek-r1-70b-q4: {vram_gb: 40}
  photorealistic:
    vram_mib: 8192
    device_env: IMAGE_GEN_PHOTOREALISTIC_DEVICE
    priority: low
    exclusive: true
    gpus: 2
    ttl: 2m
    wait_timeout: 500ms
    reclaimable: true
    preemptible: false
scheduler:
  embedded: true
  data_dir: ./data
  devices: cuda:0=24576,cuda:1=24GB
  node: rack-2
  http: off
  session_ttl: 2s
  lock_delay: 0
  durability: strict
  policy:
    head_start_ms: {low: 1, normal: 2, high: 3}
    margin_mib: 512
    max_waiting: 50
    services:
      imajin.batch: {max_waiting: 5, limit_mib: 24GB, guarantee_mib: 1024, max_priority: normal}
      ollama: {}
    reservations: 1
    backfill_order: short
    starve_ms: 0
    preemption: off
    preempt_after_ms: {normal: 4, high: 5}
    min_run_ms: 6
    grace_ms: 7
    settle_ms: 8
  memory_file: ./known-log.json
  retention: {age: 7d, count: 1000000}
  archive: ./archive
  snapshot_every: 100
  replies_max: 500
"""

EVERYTHING = Config(
    gpu=GpuConfig(
        enabled=False,
        redis_url="unix:///run/redis.sock",
        priority="high",
        service="imajin-diffusion",
        instance="blue",
        node="rack-1",
        namespace="{gpuboss}",
        exclusive=True,
        ttl_ms=3_600_000,
        wait_timeout_ms=1500,
    ),
    models={
        "deepseek-r1-70b-q4": ModelConfig(vram_mib=40960),
        "photorealistic": ModelConfig(
            vram_mib=8192,
            device_env="IMAGE_GEN_PHOTOREALISTIC_DEVICE",
            priority="low",
            exclusive=True,
            gpus=2,
            ttl_ms=120_000,
            wait_timeout_ms=500,
            reclaimable=True,
            preemptible=False,
        ),
    },
    scheduler=SchedulerConfig(
        embedded=True,
        data_dir="./data",
        devices=((0, 24576), (1, 24576)),
        node="rack-2",
        http=None,
        session_ttl_ms=2000,
        lock_delay_ms=0,
        durability="strict",
        policy=PolicyConfig(
            head_start_ms=HeadStart(low=1, normal=2, high=3),
            margin_mib=512,
            max_waiting=50,
            services={
                "imajin.batch": ServiceConfig(
                    max_waiting=5, limit_mib=24_576, guarantee_mib=1_024, max_priority="normal"
                ),
                "ollama": ServiceConfig(),
            },
            reservations=1,
            backfill_order="short",
            starve_ms=0,
            preemption="off",
            preempt_after_ms=PreemptAfter(normal=4, high=5),
            min_run_ms=6,
            grace_ms=7,
            settle_ms=8,
        ),
        memory_file="./known-log.json",
        retention=RetentionConfig(age_ms=604_800_000, count=1_000_000),
        archive="./archive",
        snapshot_every=100,
        replies_max=500,
    ),
)

# variable: (text, section of the result, field, value)
VARIABLES = {
    "GPUBOSS_ENABLED": ("1", "gpu", "enabled", True),
    "GPUBOSS_REDIS_URL": ("redis://r:1", "gpu", "redis_url", "redis://r:1"),
    "GPUBOSS_PRIORITY": ("low", "gpu", "priority", "low"),
    "GPUBOSS_SERVICE": ("svc", "gpu", "service", "svc"),
    "GPUBOSS_INSTANCE": ("green", "gpu", "instance", "green"),
    "GPUBOSS_NODE": ("n1", "gpu", "node", "n1"),
    "GPUBOSS_NAMESPACE": ("test", "gpu", "namespace", "test"),
    "GPUBOSS_EXCLUSIVE": ("no", "gpu", "exclusive", False),
    "GPUBOSS_TTL": ("30", "gpu", "ttl_ms", 30_000),
    "GPUBOSS_WAIT_TIMEOUT": ("500ms", "gpu", "wait_timeout_ms", 500),
    "GPUBOSS_EMBEDDED": ("false", "scheduler", "embedded", False),
    "GPUBOSS_DATA_DIR": ("/var/lib/gpuboss", "scheduler", "data_dir", "/var/lib/gpuboss"),
    "GPUBOSS_DEVICES": ("cuda:3=8GB", "scheduler", "devices", ((3, 8192),)),
    "GPUBOSS_HTTP": ("0.0.0.0:80", "scheduler", "http", ("0.0.0.0", 80)),
    "GPUBOSS_SESSION_TTL": ("3", "scheduler", "session_ttl_ms", 3000),
    "GPUBOSS_REPLIES_MAX": ("700", "scheduler", "replies_max", 700),
    "GPUBOSS_MEMORY_FILE": ("/var/lib/gpuboss/log.json", "scheduler", "memory_file", "/var/lib/gpuboss/log.json"),
    "GPUBOSS_RETENTION_AGE": ("36h", "scheduler.retention", "age_ms", 129_600_000),
    "GPUBOSS_RETENTION_COUNT": ("none", "scheduler.retention", "count", None),
    "GPUBOSS_ARCHIVE": ("/var/lib/gpuboss/archive", "scheduler", "archive", "/var/lib/gpuboss/archive"),
    "GPUBOSS_LOCK_DELAY": ("1m", "scheduler", "lock_delay_ms", 60_000),
    "GPUBOSS_DURABILITY": ("replicated", "scheduler", "durability", "replicated"),
}


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_without_anything_the_defaults_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("gpu: {service: never-asked-for}")
    assert load_config(environ={}) == Config()


def test_the_smallest_file_is_all_defaults(write):
    assert load_config(write(SMALLEST), environ={}) == Config()


def test_every_key_of_the_file_has_its_place(write):
    path = write(WHOLE)
    for config in (load_config(path, environ={}), load_config(str(path), environ={"GPUBOSS_CONFIG": "/nowhere"})):
        line = WHOLE[: WHOLE.index("guarantee_mib")].count("\n") + 1
        assert config.scheduler.policy.services["imajin.batch"].origin == f"{path}:{line}"
        assert without_origin(config) == EVERYTHING


def test_the_whole_file_above_leaves_no_setting_out(write):
    _, origins = load_config_with_origins(write(WHOLE), environ={})
    for setting in SETTINGS:
        parts = setting.key.split(".")
        assert any(key.startswith(parts[0]) and key.endswith(f".{parts[-1]}") for key in origins), setting.key
    assert "default" not in origins.values()


@pytest.mark.parametrize("text", ["", "# nothing\n", "gpu:\nmodels:\nscheduler:\n", "scheduler: {policy: }", "---\n"])
def test_empty_files_and_sections_are_defaults(write, text):
    assert load_config(write(text), environ={}) == Config()


def test_a_byte_order_mark_does_no_harm(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbfgpu: {service: a}\r\n")
    assert load_config(path, environ={}).gpu.service == "a"


def test_a_variable_names_the_file(write):
    path = write("gpu: {service: a}")
    assert load_config(environ={"GPUBOSS_CONFIG": str(path)}).gpu.service == "a"
    assert load_config(environ={"GPUBOSS_CONFIG": ""}) == Config()


def test_the_environment_is_the_process_own_by_default(monkeypatch):
    monkeypatch.setenv("GPUBOSS_SERVICE", "from-outside")
    assert load_config().gpu.service == "from-outside"


@pytest.mark.parametrize(("variable", "case"), VARIABLES.items())
def test_each_variable_beats_the_file(write, variable, case):
    text, section, field, value = case
    config = load_config(write(WHOLE), environ={variable: text})
    of_the_field = attrgetter(f"{section}.{field}")
    assert of_the_field(config) == value
    assert of_the_field(EVERYTHING) != value


def test_the_table_of_variables_above_is_whole():
    assert {setting.variable for setting in SETTINGS if setting.variable} == set(VARIABLES)


def test_the_node_is_one_for_client_and_scheduler():
    config = load_config(environ={"GPUBOSS_NODE": "n1"})
    assert config.gpu.node == config.scheduler.node == "n1"


def test_arguments_beat_variables_beat_the_file(write):
    path = write("gpu:\n  ttl: 1\n  service: a\n  instance: b\n")
    environ = {"GPUBOSS_TTL": "2", "GPUBOSS_SERVICE": "c"}
    arguments = {"gpu.ttl": 3, "gpu.wait_timeout": None, "scheduler.devices": "cuda:0=1"}
    config, origins = load_config_with_origins(path, environ=environ, arguments=arguments)
    assert (config.gpu.ttl_ms, config.gpu.service, config.gpu.instance) == (3000, "c", "b")
    assert origins["gpu.ttl"] == "argument"
    assert origins["gpu.service"] == "GPUBOSS_SERVICE"
    assert origins["gpu.instance"] == f"{path}:4"
    assert origins["gpu.wait_timeout"] == origins["scheduler.policy.margin_mib"] == "default"


def test_origins_name_every_setting_and_the_models_own(write):
    _, origins = load_config_with_origins(write("models:\n  v1.5:\n    vram_gb: 8\n"), environ={})
    assert origins.pop("models.v1.5.vram_gb").endswith("config.yaml:3")
    assert set(origins) == {setting.key for setting in SETTINGS if "*" not in setting.key}


def test_an_empty_variable_is_not_set(write):
    config = load_config(write("gpu: {ttl: 5}"), environ=dict.fromkeys(VARIABLES, ""))
    assert config == Config(gpu=GpuConfig(ttl_ms=5000))


def test_null_and_none_undo_what_a_weaker_place_says(write):
    path = write("gpu: {ttl: 5, wait_timeout: null, service: null}")
    assert load_config(path, environ={"GPUBOSS_TTL": "none"}) == Config()


@pytest.mark.parametrize(("text", "mib"), [("8", 8192), ("0.1", 103), ("8192MiB", 8192), ("'8 GB'", 8192)])
def test_a_models_size_is_exact(write, text, mib):
    config = load_config(write(f"models: {{m: {{vram_gb: {text}}}}}"), environ={})
    assert config.models == {"m": ModelConfig(vram_mib=mib)}


def test_lock_delay_is_0_for_simulated_devices_unless_it_is_set(write):
    simulated = {"scheduler.devices": "cuda:0=24576"}
    assert load_config(environ={}).scheduler.lock_delay_ms == 60_000
    assert load_config(environ={}, arguments=simulated).scheduler.lock_delay_ms == 0
    config = load_config(write("scheduler: {lock_delay: 7}"), environ={}, arguments=simulated)
    assert config.scheduler.lock_delay_ms == 7000


def test_a_policy_file_holds_what_the_section_holds(write):
    policy = load_policy(write("head_start_ms: {high: 5}\nmargin_mib: auto\n", "policy.yaml"))
    assert policy == PolicyConfig(head_start_ms=HeadStart(low=0, normal=900_000, high=5), margin_mib=None)
    assert load_policy(write("", "policy.yaml")) == PolicyConfig()
    with pytest.raises(ConfigError, match=r"policy\.yaml:2: unknown key 'margin'; did you mean 'margin_mib'\?"):
        load_policy(write("head_start_ms: {}\nmargin: 5\n", "policy.yaml"))


PHOTOREALISTIC = ModelConfig(vram_mib=8192, device_env="PHOTO_DEVICE")


@pytest.mark.parametrize("device", ["cuda:0", "cuda:17", "GPU-8f6b2a9e-1c57-4f0e-9c55-2f1f2ab0c001", "MIG-1/2/3"])
def test_a_variable_pins_a_models_device(device, monkeypatch):
    assert PHOTOREALISTIC.pinned_device({"PHOTO_DEVICE": device}) == device
    monkeypatch.setenv("PHOTO_DEVICE", device)
    assert PHOTOREALISTIC.pinned_device() == device


def test_without_the_variable_nothing_is_pinned():
    assert PHOTOREALISTIC.pinned_device({}) is None
    assert PHOTOREALISTIC.pinned_device({"PHOTO_DEVICE": ""}) is None
    assert ModelConfig(vram_mib=1).pinned_device({"": "cuda:0", "None": "cuda:0"}) is None


@pytest.mark.parametrize("device", ["cuda", "cuda:", "cuda:01", "cpu", "0", "cuda:0\n", " cuda:0", "gpu-1", "GPU-"])
def test_a_pin_that_names_no_device_is_refused(device):
    with pytest.raises(ConfigError, match=r"^PHOTO_DEVICE: '.*' names no device; expected cuda:N .* example cuda:0"):
        PHOTOREALISTIC.pinned_device({"PHOTO_DEVICE": device})


def test_the_structs_cannot_be_changed():
    for struct in (EVERYTHING, EVERYTHING.gpu, EVERYTHING.scheduler, EVERYTHING.scheduler.policy, PHOTOREALISTIC):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(struct, struct.__struct_fields__[0], None)


def test_importing_it_is_light():
    heavy = ("redis", "typer", "rich", "yaml", "anyio")
    code = f"import sys, gpuboss.config; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def without_origin(config: Config) -> Config:
    """The settings but for where a guarantee stands."""
    policy = config.scheduler.policy
    services = {name: replace(rules, origin="") for name, rules in policy.services.items()}
    return replace(config, scheduler=replace(config.scheduler, policy=replace(policy, services=services)))


def test_a_services_own_rules_need_the_name_of_a_service(write):
    with pytest.raises(ConfigError, match=r"policy\.yaml:2: 'Ollama!' is not a name; expected 1 to 63 of a-z"):
        load_policy(write("services:\n  Ollama!: {max_waiting: 1}\n", "policy.yaml"))
    with pytest.raises(ConfigError, match=r"ollama\.max_waiting: 0 \(a number\) does not fit; expected a whole"):
        load_policy(write("services:\n  ollama: {max_waiting: 0}\n", "policy.yaml"))


def test_more_services_with_rules_of_their_own_than_one_entry_of_the_log_holds_are_refused(write):
    text = "services:\n" + "".join(f"  service-{number}: {{max_waiting: 1}}\n" for number in range(351))
    with pytest.raises(ConfigError, match=r"policy\.yaml:2: services names 351 services; expected 350 at most"):
        load_policy(write(text, "policy.yaml"))


def test_as_many_as_may_fit_into_one_entry_of_the_log_whatever_their_rules(write):
    rules = "{max_waiting: 10000000, limit_mib: 17179869184, guarantee_mib: 17179869184, max_priority: normal}"
    text = "services:\n" + "".join(f"  {number:063}: {rules}\n" for number in range(350))
    recorded = load_policy(write(text.replace("  0", "  a"), "policy.yaml")).recorded(15_000, 60_000)
    assert recorded.services["a" + "0" * 62].limit_mib == 17_179_869_184
    assert len(msgspec.json.encode(recorded)) + len(',"epoch":9007199254740991,"seq":9007199254740991') < DATA_BYTES_MAX


def test_the_sum_of_guarantees_is_refused_where_it_exceeds_what_there_is(write):
    text = "services:\n  first: {guarantee_mib: 16384}\n  second: {guarantee_mib: 8GB}\n  third: {guarantee_mib: 1}\n"
    policy = load_policy(write(text, "policy.yaml"))
    check_guarantees(policy, 24_577)
    with pytest.raises(ConfigError, match=r"policy\.yaml:4: the guarantee_mib of third brings their sum to 24577 MiB;"):
        check_guarantees(policy, 24_576)
    with pytest.raises(ConfigError, match=r"policy\.yaml:3: .* to 24576 MiB; expected at most 20000 MiB"):
        check_guarantees(policy, 20_000)


def test_a_log_that_holds_no_policy_yet_is_under_the_one_that_nobody_set():
    assert PolicyConfig().recorded(session_ttl_ms=15_000, lock_delay_ms=60_000) == DEFAULT_POLICY
