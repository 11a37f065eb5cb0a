"""Where a request goes: best fit, shared before empty, then by index; exclusive, pinned and several devices at once."""

import pytest
from msgspec.structs import replace

from gpuboss.events import VramReclaimed
from tests.core.scenario import Scenario, padded


def filled(*free_mib: int, **more: int) -> Scenario:
    """Devices of 24,576 MiB with one lease each that leaves this much free; an empty one for 24,576."""
    scenario = Scenario(*[24_576] * len(free_mib), **more)
    for number, free in enumerate(free_mib):
        if free < 24_576:
            scenario.request(f"fill-{number}", 24_576 - free, device=f"cuda:{number}")
    return scenario


@pytest.mark.parametrize(
    ("free_mib", "vram_mib", "where"),
    [
        ((20_000, 9_000, 10_000), 8_192, "cuda:1"),  # the least left over
        ((20_000, 8_000, 10_000), 8_192, "cuda:2"),  # of those that are enough
        ((24_576, 20_000, 24_576), 8_192, "cuda:1"),  # a shared one before an empty one
        ((9_000, 9_000, 9_000), 8_192, "cuda:0"),  # then the first
        ((24_576, 24_576), 8_192, "cuda:0"),
        ((8_191, 8_192, 8_193), 8_192, "cuda:1"),  # exactly enough is enough
    ],
)
def test_best_fit(free_mib, vram_mib, where):
    assert filled(*free_mib).request("a", vram_mib) == [f"granted a on {where}"]


def test_of_two_that_leave_the_same_the_shared_one():
    scenario = Scenario(16_384, 24_576)
    scenario.request("fill", 8_192, device="cuda:1")
    assert scenario.request("a", 8_192) == ["granted a on cuda:1"]


def test_the_index_is_a_number_not_a_word():
    scenario = Scenario()
    for number in (10, 9, 2):
        scenario.device(number, 24_576)
    assert scenario.request("a", 24_576) == ["granted a on cuda:2"]
    assert scenario.request("b", 24_576) == ["granted b on cuda:9"]
    assert scenario.request("c", 24_576) == ["granted c on cuda:10"]


def test_nodes_come_in_their_order_whatever_the_order_in_which_they_showed_up():
    scenario = Scenario()
    for node in ("gamma", "alpha", "beta"):
        scenario.device(0, 24_576, node)
    assert scenario.request("a", 24_576) == ["granted a on cuda:0"]
    assert scenario.request("b", 24_576) == ["granted b on beta/cuda:0"]
    assert scenario.request("c", 24_576) == ["granted c on gamma/cuda:0"]


def test_exclusive_takes_the_smallest_empty_device_that_is_enough():
    scenario = Scenario(40_960, 24_576, 16_384, 8_192)
    scenario.request("fill", 1, device="cuda:2")
    assert scenario.request("a", 10_000, exclusive=True) == ["granted a on cuda:1"]


def test_an_exclusive_device_is_shared_with_nobody_until_its_lease_is_gone():
    scenario = Scenario(24_576)
    scenario.request("a", 1_000, exclusive=True)
    assert scenario.request("b", 1_000) == []
    assert scenario.request("c", 1_000, exclusive=True) == []
    assert scenario.release("a") == ["ended a: released, freed", "granted b on cuda:0"]
    assert scenario.release("b") == ["ended b: released, freed", "granted c on cuda:0"]


def test_exclusive_waits_until_the_device_is_empty():
    scenario = Scenario(24_576)
    scenario.request("a", 1_000)
    scenario.request("b", 1_000)
    assert scenario.request("c", 1_000, exclusive=True) == []
    assert scenario.release("a") == ["ended a: released, freed"]
    assert scenario.release("b") == ["ended b: released, freed", "granted c on cuda:0"]


def test_a_lease_that_is_being_reclaimed_still_keeps_others_off_an_exclusive_device():
    scenario = Scenario(24_576, lock_delay_ms=60_000)
    scenario.request("a", 1_000, exclusive=True)
    assert scenario.revoke("a") == ["ended a: revoked, reclaiming"]
    assert scenario.request("b", 1_000) == []
    assert scenario.revoke("a") == []
    assert scenario.happens(VramReclaimed(padded("a"), "operator")) == ["granted b on cuda:0"]


def test_pinned_by_place_by_uuid_and_by_node():
    scenario = Scenario(24_576, 24_576)
    scenario.device(0, 24_576, "beta")
    scenario.device(1, 24_576, "beta", uuid="MIG-slice/1/0")
    assert scenario.request("a", 1, device="cuda:1") == ["granted a on cuda:1"]
    assert scenario.request("b", 1, device="GPU-beta-0") == ["granted b on beta/cuda:0"]
    assert scenario.request("c", 1, device="MIG-slice/1/0") == ["granted c on beta/cuda:1"]
    assert scenario.request("d", 1, node="beta") == ["granted d on beta/cuda:0"]
    assert scenario.request("e", 1, node="beta", device="cuda:1") == ["granted e on beta/cuda:1"]


def test_a_pinned_request_waits_for_its_device_though_others_are_empty():
    scenario = Scenario(24_576, 24_576)
    scenario.request("a", 24_576, device="cuda:0")
    assert scenario.request("b", 1, device="cuda:0") == []
    assert scenario.request("c", 1) == ["granted c on cuda:1"]
    assert scenario.release("a") == ["ended a: released, freed", "granted b on cuda:0"]


def two_nodes() -> Scenario:
    """Three devices on alpha, two on beta."""
    scenario = Scenario(24_576, 24_576, 24_576)
    scenario.device(0, 24_576, "beta")
    scenario.device(1, 24_576, "beta")
    return scenario


def test_several_devices_come_from_the_node_that_has_the_fewest_that_suffice():
    scenario = two_nodes()
    assert scenario.request("a", 8_192, gpus=2) == ["granted a on beta/cuda:0+cuda:1"]
    assert scenario.request("b", 8_192, gpus=3) == ["granted b on cuda:0+cuda:1+cuda:2"]


def test_only_devices_that_suffice_are_counted():
    scenario = two_nodes()
    scenario.request("fill", 20_000, device="GPU-alpha-1")
    scenario.request("more", 20_000, device="GPU-beta-0")
    assert scenario.request("a", 8_192, gpus=2) == ["granted a on cuda:0+cuda:2"]


def test_of_the_nodes_devices_those_with_the_least_left_over_named_in_their_order():
    scenario = Scenario(24_576, 24_576, 24_576, 24_576)
    scenario.request("x", 16_000, device="cuda:3")
    scenario.request("y", 10_000, device="cuda:1")
    scenario.request("z", 1, device="cuda:0")
    assert scenario.request("a", 8_192, gpus=2) == ["granted a on cuda:1+cuda:3"]


def test_several_devices_are_had_all_or_none_and_each_is_charged():
    scenario = Scenario(24_576, 24_576)
    scenario.request("fill", 20_000, device="cuda:1")
    assert scenario.request("a", 8_192, gpus=2) == []
    assert scenario.state.ledger.devices["alpha/cuda:0"].charged_mib == 0
    assert scenario.release("fill") == ["ended fill: released, freed", "granted a on cuda:0+cuda:1"]
    assert [device.charged_mib for device in scenario.state.ledger.devices.values()] == [8_192, 8_192]
    assert scenario.release("a") == ["ended a: released, freed"]
    assert [device.charged_mib for device in scenario.state.ledger.devices.values()] == [0, 0]


def test_several_devices_exclusively():
    scenario = Scenario(24_576, 24_576, 24_576)
    scenario.request("fill", 1, device="cuda:1")
    assert scenario.request("a", 8_192, gpus=2, exclusive=True) == ["granted a on cuda:0+cuda:2"]
    assert scenario.request("b", 1) == ["granted b on cuda:1"]
    assert scenario.request("c", 24_576) == []


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"vram_mib": 24_577}, ("24577 MiB", "alpha/cuda:0", "24576 MiB")),
        ({"vram_mib": 8_193, "node": "beta"}, ("8193 MiB", "beta/cuda:0", "8192 MiB")),
        ({"vram_mib": 1, "node": "gamma"}, ("no device on node gamma", "alpha/cuda:0, alpha/cuda:1, beta/cuda:0")),
        ({"vram_mib": 1, "device": "cuda:7"}, ("no cuda:7;", "alpha/cuda:0")),
        ({"vram_mib": 1, "device": "cuda:1", "node": "beta"}, ("no cuda:1 on node beta",)),
        ({"vram_mib": 1, "device": "GPU-other"}, ("no GPU-other",)),
        ({"vram_mib": 1, "gpus": 3}, ("3 devices of 1 MiB", "best node has 2")),
        ({"vram_mib": 20_000, "gpus": 2, "node": "beta"}, ("20000 MiB", "8192 MiB")),
        ({"vram_mib": 1, "gpus": 2, "device": "cuda:0"}, ("2 devices", "has 1")),
    ],
    ids=str,
)
def test_what_no_device_could_ever_hold_is_denied_at_once_with_the_numbers(wish, said):
    scenario = Scenario(24_576, 24_576)
    scenario.device(0, 8_192, "beta")
    assert scenario.request("a", **wish) == ["denied a: impossible"]
    for words in said:
        assert words in scenario.last.detail


def test_what_only_an_empty_device_could_hold_is_not_impossible():
    scenario = Scenario(24_576)
    scenario.request("a", 1)
    assert scenario.request("b", 24_576) == []


def test_reserve_and_margin_are_never_lent():
    scenario = Scenario()
    scenario.device(0, 24_576, reserved_mib=500, margin_mib=76)
    assert scenario.request("a", 24_001) == ["denied a: impossible"]
    assert scenario.request("b", 24_000) == ["granted b on cuda:0"]


def test_foreign_memory_is_in_the_way_but_may_go():
    scenario = Scenario()
    scenario.device(0, 24_576, foreign_mib=10_000)
    assert scenario.request("a", 24_576) == []
    assert scenario.request("b", 14_577) == []
    assert scenario.device(0, 24_576, foreign_mib=0) == ["granted a on cuda:0"]


def test_nothing_is_placed_on_a_device_that_is_out_of_order():
    scenario = Scenario()
    scenario.device(0, 24_576, healthy=False)
    assert scenario.request("a", 1) == []
    assert scenario.device(0, 24_576) == ["granted a on cuda:0"]


def test_of_what_a_gang_leaves_behind_one_takes_the_first_device_and_a_gang_the_others():
    scenario = Scenario(24_576, 24_576, 24_576)
    scenario.happens(replace(scenario.state.policy, reservations=0))
    scenario.request("all", 24_576, gpus=3)
    scenario.request("one", 24_576)
    scenario.request("two", 24_576, gpus=2)
    assert scenario.release("all")[1:] == ["granted one on cuda:0", "granted two on cuda:1+cuda:2"]
