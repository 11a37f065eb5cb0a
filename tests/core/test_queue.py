"""The order of the queue: a static key with a head start; who does not fit keeps one place free, and no more."""

import pytest

from tests.core.scenario import Scenario, policy

MINUTE_MS = 60_000


def full(*sizes_mib: int, **more: int) -> Scenario:
    """Devices with nothing free: the lease on cuda:N is called `fill-N`."""
    scenario = Scenario(*sizes_mib, **more)
    for number, size_mib in enumerate(sizes_mib):
        scenario.request(f"fill-{number}", size_mib, device=f"cuda:{number}")
    return scenario


def granted_in_order(scenario: Scenario) -> str:
    """Who is granted, in order, once `fill-0` is given back."""
    lines = scenario.release("fill-0")
    return "".join(line.split()[1] for line in lines if line.startswith("granted"))


def test_high_comes_before_normal_before_low():
    scenario = full(24_576)
    for name, priority in (("l", "low"), ("n", "normal"), ("h", "high")):
        scenario.request(name, 8_192, priority=priority)
    assert granted_in_order(scenario) == "hnl"


def test_within_a_class_first_come_first_served():
    scenario = full(24_576)
    for name in "abc":
        scenario.request(name, 8_192)
    assert granted_in_order(scenario) == "abc"


def test_different_shapes_share_one_queue():
    scenario = full(24_576)
    for name, vram_mib in (("a", 8_192), ("b", 4_096), ("c", 8_192), ("d", 4_096)):
        scenario.request(name, vram_mib)
    assert granted_in_order(scenario) == "abcd"


@pytest.mark.parametrize(
    ("first", "second", "head_start_ms"),
    [("normal", "high", 45 * MINUTE_MS), ("low", "normal", 15 * MINUTE_MS), ("low", "high", 60 * MINUTE_MS)],
)
def test_who_has_waited_longer_than_the_difference_of_the_head_starts_comes_first(first, second, head_start_ms):
    for waited_ms, order in ((head_start_ms - 1, "ba"), (head_start_ms, "ab"), (head_start_ms + 1, "ab")):
        scenario = full(8_192)
        scenario.request("a", 4_096, priority=first)
        scenario.now_ms += waited_ms
        scenario.request("b", 4_096, priority=second)
        assert granted_in_order(scenario) == order


def test_head_starts_are_settings_and_large_ones_make_the_classes_strict():
    scenario = full(8_192, high=10**9)
    scenario.request("a", 4_096)
    scenario.now_ms += 10**8
    scenario.request("b", 4_096, priority="high")
    assert granted_in_order(scenario) == "ba"


def test_keys_are_frozen_when_the_policy_changes():
    scenario = full(24_576)
    scenario.request("a", 8_192)
    scenario.request("b", 8_192, priority="high")
    scenario.happens(policy(high=0, normal=0))
    scenario.request("c", 8_192, priority="high")
    assert granted_in_order(scenario) == "bac"


def test_who_does_not_fit_blocks_one_device_only():
    scenario = full(24_576, 24_576)
    assert scenario.request("large", 24_576) == []
    assert scenario.request("small", 8_192) == []
    scenario.request("tiny", 1)
    assert scenario.release("fill-1") == ["ended fill-1: released, freed", "granted large on cuda:1"]
    assert scenario.release("fill-0") == [
        "ended fill-0: released, freed",
        "granted small on cuda:0",
        "granted tiny on cuda:0",
    ]


def test_what_is_kept_free_is_the_device_that_lacks_least():
    scenario = Scenario(24_576, 24_576)
    scenario.request("a", 20_000, device="cuda:0")
    scenario.request("b", 10_000, device="cuda:1")
    assert scenario.request("large", 20_000) == [], "lacks least on cuda:1"
    assert scenario.request("on-1", 4_000, device="cuda:1") == [], "there is room, but it is kept free"
    assert scenario.request("any", 4_000) == ["granted any on cuda:0"]
    assert scenario.release("b") == ["ended b: released, freed", "granted large on cuda:1", "granted on-1 on cuda:1"]


def test_what_is_kept_free_stays_where_it_was_chosen():
    scenario = Scenario(24_576, 24_576)
    scenario.request("a", 20_000, device="cuda:0")
    scenario.request("b", 10_000, device="cuda:1")
    scenario.request("c", 10_000, device="cuda:1")
    scenario.request("large", 24_576)  # lacks 20,000 on either; cuda:0 comes first
    scenario.release("b")  # now it lacks least on cuda:1, and yet
    assert scenario.request("d", 10_000) == ["granted d on cuda:1"]
    assert scenario.request("e", 4_000, device="cuda:0") == []
    assert scenario.release("a") == ["ended a: released, freed", "granted large on cuda:0"]


def test_who_waits_is_placed_elsewhere_if_room_turns_up_there_first():
    scenario = full(24_576, 24_576)
    scenario.request("large", 24_576)  # keeps cuda:0 free
    assert scenario.release("fill-1") == ["ended fill-1: released, freed", "granted large on cuda:1"]
    assert scenario.request("small", 1) == []
    assert scenario.release("fill-0") == ["ended fill-0: released, freed", "granted small on cuda:0"]


def test_a_device_that_is_out_of_order_is_not_kept_free():
    scenario = full(24_576, 24_576)
    scenario.request("large", 24_576)
    scenario.device(0, 24_576, healthy=False)
    scenario.release("fill-0")
    scenario.request("small", 1)
    assert scenario.device(0, 24_576) == ["granted large on cuda:0"]
    assert scenario.release("fill-1") == ["ended fill-1: released, freed", "granted small on cuda:1"]


def test_a_device_that_is_out_of_order_is_the_last_to_be_kept_free():
    scenario = full(24_576, 24_576)
    scenario.release("fill-0")
    scenario.device(0, 24_576, healthy=False)
    scenario.request("large", 24_576)  # lacks all of cuda:1, but cuda:0 may never be well again
    scenario.device(0, 24_576, foreign_mib=1)
    assert scenario.request("small", 1, device="cuda:0") == ["granted small on cuda:0"]


def test_what_an_exclusive_lease_leaves_free_counts_for_nothing():
    scenario = Scenario(24_576, 24_576)
    scenario.request("alone", 20_000, device="cuda:0", exclusive=True)
    scenario.request("a", 16_000, device="cuda:1")
    scenario.request("b", 5_000, device="cuda:1")
    scenario.request("large", 8_192)  # lacks 20,000 on cuda:0, and 4,616 on cuda:1
    assert scenario.request("small", 1, device="cuda:1") == []
    assert scenario.release("alone")[1:] == ["granted large on cuda:0", "granted small on cuda:1"]


def test_who_wants_to_be_alone_keeps_free_the_device_with_least_on_it():
    scenario = Scenario(24_576, 24_576)
    scenario.request("a", 5_000, device="cuda:0")
    scenario.request("b", 4_000, device="cuda:1")
    scenario.request("alone", 1, exclusive=True)
    assert scenario.request("small", 1, device="cuda:1") == []
    assert scenario.request("other", 1, device="cuda:0") == ["granted other on cuda:0"]
    assert scenario.release("b") == ["ended b: released, freed", "granted alone on cuda:1"]


def test_who_comes_first_takes_what_is_kept_for_who_comes_later():
    scenario = Scenario(24_576)
    scenario.request("a", 20_000)
    scenario.request("later", 10_000)
    assert scenario.request("first", 4_000, priority="high") == ["granted first on cuda:0"]


def test_what_was_kept_free_is_free_again_when_who_waited_is_gone():
    for ending in (
        lambda scenario: scenario.release("large"),
        lambda scenario: scenario.revoke("large"),
        lambda scenario: scenario.tick(after_ms=50),
    ):
        scenario = Scenario(24_576)
        scenario.request("a", 10_000)
        scenario.request("large", 24_576, wait_ms=50)
        assert scenario.request("small", 10_000) == []
        assert ending(scenario)[1:] == ["granted small on cuda:0"]


def test_several_devices_keep_free_those_of_one_node():
    scenario = Scenario(24_576, 24_576)
    scenario.device(0, 24_576, "beta")
    scenario.device(1, 24_576, "beta")
    for number, node, vram_mib in ((0, "alpha", 9_000), (1, "alpha", 9_000), (0, "beta", 1_000), (1, "beta", 9_000)):
        scenario.request(f"{node}-{number}", vram_mib, device=f"GPU-{node}-{number}")
    assert scenario.request("gang", 24_576, gpus=2) == [], "lacks 10,000 on beta, 18,000 on alpha"
    assert scenario.request("small", 1, node="beta") == []
    assert scenario.request("other", 1, node="alpha") == ["granted other on cuda:0"]
    scenario.release("beta-0")
    assert scenario.release("beta-1") == [
        "ended beta-1: released, freed",
        "granted gang on beta/cuda:0+cuda:1",
    ]


def test_a_pinned_request_holds_up_nobody_who_may_go_elsewhere():
    scenario = full(24_576, 24_576)
    scenario.request("pinned", 1, device="cuda:0")
    scenario.request("any", 1)
    assert scenario.release("fill-1") == ["ended fill-1: released, freed", "granted any on cuda:1"]


def test_one_of_a_shape_blocks_for_all_of_it():
    scenario = full(24_576, 24_576)
    for name in ("a", "b", "c"):
        scenario.request(name, 24_576)  # one shape: only `a` keeps a device free
    assert scenario.request("small", 1) == []
    assert scenario.release("fill-1") == ["ended fill-1: released, freed", "granted a on cuda:1"]
    assert scenario.release("fill-0") == ["ended fill-0: released, freed", "granted b on cuda:0"]


def test_the_flood_of_one_shape_goes_around_it():
    scenario = Scenario(24_576, 24_576)
    scenario.request("x", 20_000, device="cuda:0")
    scenario.request("y", 20_000, device="cuda:1")
    for name in ("a", "b", "c"):
        scenario.request(name, 24_576)
    assert scenario.request("small", 4_000) == ["granted small on cuda:1"], "cuda:0 is kept for `a`, and `b` has none"


def test_nothing_is_decided_where_nothing_changed():
    scenario = Scenario(24_576)
    scenario.request("a", 24_576)
    scenario.request("b", 1)
    assert scenario.tick(after_ms=10_000) == []
    assert scenario.device(0, 24_576) == []
    assert scenario.happens(policy()) == []
