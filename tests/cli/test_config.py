"""`gpuboss config`: every setting, its value and its origin; and what is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpuboss.config.settings import SETTINGS
from tests.cli.console import Console

CONFIG = """\
gpu:
  redis_url: redis://user:secret@gpu-box:6379/1
  ttl: 90s
models:
  deepseek-r1.70b:
    vram_gb: 40
    device_env: DEEPSEEK_DEVICE
scheduler:
  devices: cuda:0=24GB,cuda:1=24576
  http: off
  policy:
    head_start_ms: {high: 5000}
    services:
      imajin.batch: {max_waiting: 5}
"""


@pytest.fixture
def shell(tmp_path: Path) -> Console:
    """A shell with the file above, and one variable."""
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    console = Console("", GPUBOSS_CONFIG=str(file), GPUBOSS_PRIORITY="high")
    return console


def shown(shell: Console, *arguments: str) -> dict[str, Any]:
    ended = shell.call("config", "--json", *arguments)
    assert (ended.code, ended.err) == (0, "")
    document: dict[str, Any] = ended.document
    return document


def test_each_value_with_its_unit_and_its_origin(shell: Console) -> None:
    file = shell.environ["GPUBOSS_CONFIG"]
    found = shown(shell, "--namespace", "other")
    for key, value, unit, origin in (
        ("gpu.redis_url", "redis://user:***@gpu-box:6379/1", None, f"{file}:2"),
        ("gpu.ttl", 90_000, "ms", f"{file}:3"),
        ("gpu.wait_timeout", None, "ms", "default"),
        ("gpu.priority", "high", None, "GPUBOSS_PRIORITY"),
        ("gpu.namespace", "other", None, "argument"),
        ("gpu.enabled", True, None, "default"),
        ("models.deepseek-r1.70b.vram_gb", 40_960, "MiB", f"{file}:6"),
        ("models.deepseek-r1.70b.device_env", "DEEPSEEK_DEVICE", None, f"{file}:7"),
        ("scheduler.devices", "cuda:0=24576,cuda:1=24576", None, f"{file}:9"),
        ("scheduler.http", "off", None, f"{file}:10"),
        ("scheduler.lock_delay", 0, "ms", "default"),
        ("scheduler.policy.head_start_ms.high", 5_000, "ms", f"{file}:12"),
        ("scheduler.policy.max_waiting", 10_000, None, "default"),
        ("scheduler.policy.services.imajin.batch.max_waiting", 5, None, f"{file}:14"),
        ("scheduler.policy.head_start_ms.normal", 900_000, "ms", "default"),
        ("scheduler.policy.preempt_after_ms.high", 5_000, "ms", "default"),
        ("scheduler.policy.margin_mib", None, "MiB", "default"),
    ):
        assert found[key] == {"value": value, "unit": unit, "origin": origin}, key


def test_every_setting_is_shown() -> None:
    keys = {setting.key for setting in SETTINGS if "*" not in setting.key}
    assert shown(Console("")).keys() == keys


def test_for_people(shell: Console) -> None:
    lines = {line.split()[0]: line.split()[1:] for line in shell.call("config").out.splitlines()}
    file = shell.environ["GPUBOSS_CONFIG"]
    assert lines["SETTING"] == ["VALUE", "FROM"]
    assert lines["gpu.ttl"] == ["1", "min", "30", "s", f"{file}:3"]
    assert lines["gpu.service"] == ["-", "default"]
    assert lines["gpu.enabled"] == ["true", "default"]
    assert lines["models.deepseek-r1.70b.vram_gb"] == ["40", "GiB", f"{file}:6"]
    assert lines["scheduler.devices"] == ["cuda:0=24576,cuda:1=24576", f"{file}:9"]


def test_passwords_are_never_shown(shell: Console) -> None:
    for arguments in ([], ["--json"]):
        ended = shell.call("config", *arguments)
        assert "secret" not in ended.out
        assert "redis://user:***@gpu-box:6379/1" in ended.out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu: {prioritty: low}", "config.yaml:1: unknown key 'prioritty' in gpu; did you mean 'priority'?"),
        ("gpu:\n  ttl: soon", "config.yaml:2: gpu.ttl: 'soon' is not a duration"),
        ("gpu: [", "config.yaml"),
    ],
)
def test_a_mistake_is_said_and_exits_3(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    ended = Console("").call("config", "--config", str(file))
    assert (ended.code, ended.out) == (3, "")
    assert said in ended.err
    assert ended.err.count("\n") == 1


def test_a_file_that_is_not_there_exits_3() -> None:
    ended = Console("").call("config", "--config", "/no/such/config.yaml")
    assert (ended.code, ended.out) == (3, "")
    assert "/no/such/config.yaml" in ended.err


def test_a_misspelt_variable_exits_3() -> None:
    ended = Console("", GPUBOSS_REDIS_URI="redis://elsewhere").call("config")
    assert (ended.code, ended.out) == (3, "")
    assert "did you mean 'GPUBOSS_REDIS_URL'?" in ended.err
