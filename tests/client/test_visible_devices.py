"""What a process calls the device that it was granted, under CUDA_VISIBLE_DEVICES."""

import pickle

import pytest

from gpuboss.client.lease import Device, Lease
from gpuboss.client.visible_devices import own_ordinals
from gpuboss.errors import ConfigError

UUIDS = ["GPU-00aa1111-0000", "GPU-00bb2222-0000", "MIG-3333cccc-0000"]


def name_of(index: int, visible: str | None) -> str:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    [name] = own_ordinals([f"cuda:{index}"], [UUIDS[index]], environ)
    return name


@pytest.mark.parametrize(
    ("granted", "visible", "name"),
    [
        (1, None, "cuda:1"),
        (1, "1", "cuda:0"),
        (1, "1,0", "cuda:0"),
        (0, "1,0", "cuda:1"),
        (0, " 1 , 0 ", "cuda:1"),
        (1, "01", "cuda:0"),
        (1, "GPU-00bb2222-0000", "cuda:0"),
        (1, "GPU-00bb", "cuda:0"),
        (1, "GPU-00aa,GPU-00bb", "cuda:1"),
        (2, "MIG-3333cccc-0000", "cuda:0"),
        (2, "GPU-00aa,MIG-3333", "cuda:1"),
        (1, "0,1,-1,2", "cuda:1"),
    ],
)
def test_the_granted_device_by_its_own_name(granted: int, visible: str | None, name: str) -> None:
    assert name_of(granted, visible) == name


@pytest.mark.parametrize(
    ("granted", "visible"),
    [
        (1, ""),
        (1, "0"),
        (1, "-1"),
        (1, "0,-1,1"),  # what follows an entry that is none is hidden too
        (1, "GPU-00aa1111-0000"),
        (1, "GPU-00bb2222-0000-and-more"),
        (1, "none"),
    ],
)
def test_a_hidden_device_is_an_error_that_names_both(granted: int, visible: str) -> None:
    with pytest.raises(ConfigError) as error:
        name_of(granted, visible)
    assert f"cuda:{granted} ({UUIDS[granted]})" in str(error.value)
    assert f"CUDA_VISIBLE_DEVICES={visible!r}" in str(error.value)


@pytest.mark.parametrize(
    ("visible", "twice"),
    [
        ("1,1", "1"),
        ("1,01", "1"),
        ("1,0,0", "0"),  # one that was not granted: CUDA shows none all the same
        ("GPU-00bb2222-0000,GPU-00bb2222-0000", "GPU-00bb2222-0000"),
        ("1,GPU-00bb", "1, GPU-00bb"),
        ("GPU-00bb,GPU-00bb2222-0000", "GPU-00bb, GPU-00bb2222-0000"),
    ],
)
def test_a_device_that_is_listed_twice_is_an_error(visible: str, twice: str) -> None:
    with pytest.raises(ConfigError) as error:
        name_of(1, visible)
    assert f"CUDA_VISIBLE_DEVICES={visible!r} lists one device twice ({twice})" in str(error.value)


def test_what_stands_behind_the_end_of_the_list_is_listed_once() -> None:
    assert name_of(1, "1,-1,1") == "cuda:0"


def test_a_cut_uuid_that_fits_two_granted_devices_is_an_error() -> None:
    with pytest.raises(ConfigError) as error:
        own_ordinals(["cuda:0", "cuda:1"], UUIDS[:2], {"CUDA_VISIBLE_DEVICES": "GPU-00"})
    assert "GPU-00 in CUDA_VISIBLE_DEVICES='GPU-00' fits" in str(error.value)
    assert all(uuid in str(error.value) for uuid in UUIDS[:2])


def test_all_devices_of_a_gang_are_named_in_their_order() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "2,1,0"}
    assert own_ordinals(["cuda:0", "cuda:2"], [UUIDS[0], UUIDS[2]], environ) == ("cuda:2", "cuda:0")


def test_the_cpu_is_always_visible() -> None:
    assert own_ordinals(["cpu"], [], {"CUDA_VISIBLE_DEVICES": ""}) == ("cpu",)


def test_the_processs_own_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    lease = Lease("lease-01", node="node-a", devices=["cuda:1"], uuids=UUIDS[1:2], vram_mib=1)
    assert lease.visible_devices() == ("cuda:0",)


def test_a_device_is_a_str_with_its_lease() -> None:
    lease = Lease("lease-01", node="node-a", devices=["cuda:1", "cuda:2"], uuids=UUIDS[1:3], vram_mib=1)
    device = Device(["cuda:0", "cuda:1"], lease)
    assert device == "cuda:0"
    assert isinstance(device, str)
    assert f"{device}" == "cuda:0"
    assert device.lease is lease
    assert device.all == ("cuda:0", "cuda:1")
    assert pickle.loads(pickle.dumps(device)) == "cuda:0"
