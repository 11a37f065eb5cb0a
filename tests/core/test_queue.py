"""The order of the queue: a static key with a head start; who has no place is passed by those who come later."""

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


def test_who_waits_is_placed_elsewhere_if_room_turns_up_there_first():
    scenario = full(24_576, 24_576)
    scenario.request("large", 24_576)
    assert scenario.release("fill-1") == ["ended fill-1: released, freed", "granted large on cuda:1"]
    assert scenario.request("small", 1) == []
    assert scenario.release("fill-0") == ["ended fill-0: released, freed", "granted small on cuda:0"]


def test_who_comes_first_takes_what_is_kept_for_who_comes_later():
    scenario = Scenario(24_576)
    scenario.request("a", 20_000)
    scenario.request("later", 10_000)
    assert scenario.request("first", 4_000, priority="high") == ["granted first on cuda:0"]


def test_a_pinned_request_holds_up_nobody_who_may_go_elsewhere():
    scenario = full(24_576, 24_576)
    scenario.request("pinned", 1, device="cuda:0")
    scenario.request("any", 1)
    assert scenario.release("fill-1") == ["ended fill-1: released, freed", "granted any on cuda:1"]


def test_one_of_a_shape_blocks_for_all_of_it():
    scenario = full(24_576, 24_576)
    for name in ("a", "b", "c"):
        scenario.request(name, 24_576)
    assert scenario.request("small", 1) == []
    assert scenario.release("fill-1") == ["ended fill-1: released, freed", "granted a on cuda:1"]
    assert scenario.release("fill-0") == ["ended fill-0: released, freed", "granted b on cuda:0"]


def test_nothing_is_decided_where_nothing_changed():
    scenario = Scenario(24_576)
    scenario.request("a", 24_576)
    scenario.request("b", 1)
    assert scenario.tick(after_ms=10_000) == []
    assert scenario.device(0, 24_576) == []
    assert scenario.happens(policy()) == []
