"""How arguments, model and settings become a request, and which are refused with which words."""

import math
import os
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from gpuboss.client.lease import Lease
from gpuboss.client.wish import Wish, lease_id_of, request_of
from gpuboss.config import Config, GpuConfig, ModelConfig
from gpuboss.errors import ConfigError
from gpuboss.events import LeaseRequested

PINNED = "IMAGE_GEN_PHOTOREALISTIC_DEVICE"
CONFIG = Config(
    gpu=GpuConfig(service="painter", node="node-b", priority="low", exclusive=True, ttl_ms=90_000, wait_timeout_ms=7),
    models={
        "photorealistic": ModelConfig(vram_mib=8192, device_env=PINNED),
        "anime": ModelConfig(
            vram_mib=4096,
            priority="high",
            exclusive=False,
            gpus=2,
            ttl_ms=5_000,
            wait_timeout_ms=6_000,
            reclaimable=True,
            preemptible=False,
        ),
    },
)
PLAIN = Config(gpu=GpuConfig(service="painter"))


def request(
    wish: Mapping[str, Any], config: Config = PLAIN, environ: Mapping[str, str] | None = None
) -> LeaseRequested:
    made = request_of(wish, config, lease_id="lease-01", session="session-1", environ=environ or {})
    # What is made without checks must be what the scheduler's door lets in.
    assert msgspec.json.decode(msgspec.json.encode(made), type=LeaseRequested) == made
    return made


def test_a_bare_wish_is_a_request_with_the_contracts_defaults() -> None:
    assert request({"vram_gb": 8}) == LeaseRequested("lease-01", "painter", 8192, session="session-1", pid=os.getpid())


def test_every_argument_arrives() -> None:
    wish: Wish = {
        "vram_mib": 100,
        "priority": "high",
        "device": "cuda:3",
        "node": "node-c",
        "gpus": 2,
        "exclusive": True,
        "ttl": 1.5,
        "wait_timeout": 0.25,
        "reclaimable": True,
        "preemptible": False,
    }
    assert request(wish) == LeaseRequested(
        "lease-01",
        "painter",
        100,
        priority="high",
        device="cuda:3",
        node="node-c",
        gpus=2,
        exclusive=True,
        ttl_ms=1500,
        wait_ms=250,
        reclaimable=True,
        preemptible=False,
        session="session-1",
        pid=os.getpid(),
    )


@pytest.mark.parametrize(("vram_gb", "vram_mib"), [(8, 8192), (0.5, 512), (0.1, 103), ("8GB", 8192), ("512MiB", 512)])
def test_gb_are_of_1024_mib_and_round_up(vram_gb: object, vram_mib: int) -> None:
    assert request({"vram_gb": vram_gb}).vram_mib == vram_mib


def test_settings_fill_in_what_is_not_said() -> None:
    made = request({"vram_gb": 1, "priority": None, "ttl": None}, CONFIG)
    assert (made.priority, made.node, made.exclusive) == ("low", "node-b", True)
    assert (made.ttl_ms, made.wait_ms) == (90_000, 7)


def test_a_model_says_what_it_needs_and_beats_the_settings() -> None:
    made = request({"model": "anime"}, CONFIG)
    assert (made.model, made.vram_mib, made.priority, made.exclusive) == ("anime", 4096, "high", False)
    assert (made.gpus, made.ttl_ms, made.wait_ms) == (2, 5_000, 6_000)
    assert (made.reclaimable, made.preemptible) == (True, False)
    assert request({"model": "photorealistic"}, CONFIG).priority == "low"


def test_arguments_beat_the_model() -> None:
    made = request(
        {"model": "anime", "priority": "normal", "gpus": 1, "exclusive": True, "preemptible": True, "ttl": 1}, CONFIG
    )
    assert (made.priority, made.gpus, made.exclusive, made.preemptible) == ("normal", 1, True, True)
    assert made.ttl_ms == 1000


def test_infinity_beats_a_limit_in_the_settings() -> None:
    made = request({"model": "anime", "ttl": math.inf, "wait_timeout": math.inf}, CONFIG)
    assert (made.ttl_ms, made.wait_ms) == (None, None)


def test_not_to_wait_at_all_is_the_shortest_wait() -> None:
    assert request({"vram_gb": 1, "wait_timeout": 0}).wait_ms == 1


def test_a_models_variable_pins_its_device() -> None:
    wish: Wish = {"model": "photorealistic"}
    assert request(wish, CONFIG).device is None
    assert request(wish, CONFIG, {PINNED: ""}).device is None
    assert request(wish, CONFIG, {PINNED: "cuda:1"}).device == "cuda:1"
    assert request({**wish, "device": "cuda:0"}, CONFIG, {PINNED: "cuda:1"}).device == "cuda:0"


def test_a_models_variable_is_looked_up_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PINNED, "cuda:1")
    assert request_of({"model": "photorealistic"}, CONFIG, lease_id="lease-01", session="s").device == "cuda:1"


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({}, ["exactly one of vram_gb, vram_mib and model", "given none"]),
        ({"vram_gb": None}, ["given none"]),
        ({"vram_gb": 1, "vram_mib": 1024}, ["given vram_gb and vram_mib"]),
        ({"vram_gb": 1, "model": "anime"}, ["given vram_gb and model"]),
        ({"vram_gb": 0}, ["vram_gb", "0", "at least 1 MiB"]),
        ({"vram_gb": -8}, ["vram_gb", "-8"]),
        ({"vram_gb": math.nan}, ["vram_gb", "nan"]),
        ({"vram_gb": True}, ["vram_gb", "true"]),
        ({"vram_gb": 10**9}, ["vram_gb", "16777216 MiB"]),
        ({"vram_mib": 0}, ["vram_mib", "0", "from 1 to 16777216"]),
        ({"vram_mib": 8.5}, ["vram_mib", "8.5"]),
        ({"vram_mb": 8}, ["unknown argument vram_mb", "did you mean 'vram_mib'"]),
        ({"vram_gb": 1, "priority": "urgent"}, ["priority", "'urgent'", "low, normal, high"]),
        ({"vram_gb": 1, "device": "gpu0"}, ["device", "'gpu0'", "cuda:N"]),
        ({"vram_gb": 1, "node": "Node A"}, ["node", "'Node A'"]),
        ({"vram_gb": 1, "gpus": 0}, ["gpus", "from 1 to 1024"]),
        ({"vram_gb": 1, "exclusive": "maybe"}, ["exclusive", "'maybe'", "true or false"]),
        ({"vram_gb": 1, "ttl": 0}, ["ttl", "0", "at least 1ms"]),
        ({"vram_gb": 1, "ttl": "soon"}, ["ttl", "'soon'", "30s"]),
        ({"vram_gb": 1, "wait_timeout": -1}, ["wait_timeout", "-1"]),
        ({"model": "animé"}, ["'animé'", "did you mean 'anime'"]),
        ({"model": ""}, ["model", "''"]),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected(wish: Mapping[str, Any], said: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        request(wish, CONFIG)
    for part in said:
        assert part in str(error.value)


def test_a_model_without_a_configuration_says_where_models_go() -> None:
    with pytest.raises(ConfigError, match=r"'anime' is not in the configuration.*config\.yaml"):
        request({"model": "anime"})


def test_a_variable_that_pins_to_nonsense_is_named() -> None:
    with pytest.raises(ConfigError, match=f"{PINNED}.*'first'"):
        request({"model": "photorealistic"}, CONFIG, {PINNED: "first"})


def test_a_lease_or_its_id_names_it() -> None:
    lease = Lease("4f9c0e7a1b2d", node="node-a", devices=["cuda:0"], uuids=[], vram_mib=1)
    assert lease_id_of(lease) == lease_id_of("4f9c0e7a1b2d") == "4f9c0e7a1b2d"


@pytest.mark.parametrize("given", [None, 5, "", "short", "with a space", "4f9c0e7a1b2d\n"])
def test_what_is_no_lease_is_refused(given: object) -> None:
    with pytest.raises(ConfigError, match="is no lease; expected what acquire"):
        lease_id_of(given)
