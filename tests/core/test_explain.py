"""Why somebody waits: the place in the queue, the reason, who stands in the way, and the numbers."""

import pytest
from msgspec.structs import replace

from gpuboss.core.explain import EXPLAINED_MAX, explain, explain_first
from gpuboss.core.projections import queue_rows
from tests.core.scenario import START_MS, Scenario, padded, policy


def why(scenario: Scenario, name: str) -> tuple[int, str, list[str]]:
    """Place, reason and blockers, with short names."""
    found = explain(scenario.state, scenario.state.waitlist.by_id[padded(name)])
    assert explain_first(scenario.state)[padded(name)] == replace(found, starts_by_ms=None, is_promise=False)
    return found.place, found.reason, [lease_id.rstrip("_") for lease_id in found.blocked_by]


def test_no_room():
    scenario = Scenario(24_576)
    scenario.request("a", 10_000)
    scenario.request("b", 10_000)
    scenario.request("c", 10_000)
    assert why(scenario, "c") == (1, "no_room", ["a", "b"])
    detail = explain(scenario.state, scenario.state.waitlist.by_id[padded("c")]).detail
    assert "10000 MiB" in detail
    assert "alpha/cuda:0 has 4576 MiB free" in detail


def test_all_who_stand_in_the_way_are_named_in_one_order():
    scenario = Scenario(24_576)
    names = "hdbfacge"
    for name in names:
        scenario.request(name, 3_072)
    scenario.request("z", 1)
    assert why(scenario, "z") == (1, "no_room", sorted(names))


def test_the_pinned_device_is_full():
    scenario = Scenario(24_576, 24_576)
    scenario.request("a", 24_576, device="cuda:1")
    scenario.request("b", 1, device="cuda:1")
    assert why(scenario, "b") == (1, "pinned_device_full", ["a"])


def test_an_exclusive_lease_is_in_the_way_or_wants_to_be_alone():
    scenario = Scenario(24_576)
    scenario.request("a", 1, exclusive=True)
    scenario.request("b", 1)
    assert why(scenario, "b") == (1, "exclusive_busy", ["a"])
    scenario = Scenario(24_576)
    scenario.request("a", 1)
    scenario.request("b", 1, exclusive=True)
    assert why(scenario, "b") == (1, "exclusive_busy", ["a"])


def test_not_enough_devices_at_once():
    scenario = Scenario(24_576, 24_576)
    scenario.request("a", 24_576, device="cuda:1")
    scenario.request("gang", 1_000, gpus=2)
    assert why(scenario, "gang") == (1, "gang_incomplete", ["a"])


def test_room_that_is_kept_for_who_comes_first():
    scenario = Scenario(24_576)
    scenario.request("a", 10_000, ttl_ms=1_000)
    scenario.request("large", 24_576)
    scenario.request("small", 1)
    assert why(scenario, "large") == (1, "no_room", ["a"])
    assert why(scenario, "small") == (2, "reserved_for", ["large"])


def test_all_for_whom_something_is_kept_are_named_in_their_order():
    scenario = Scenario(24_576, 24_576)
    scenario.request("a", 1_000, device="cuda:0", ttl_ms=1_000)
    scenario.request("b", 1_000, device="cuda:1", ttl_ms=1_000)
    scenario.request("zz", 24_576, device="cuda:1")
    scenario.request("yy", 24_576, device="cuda:0")
    scenario.request("small", 1)
    assert why(scenario, "small") == (3, "reserved_for", ["zz", "yy"])


def test_devices_that_are_emptied_for_who_starved():
    scenario = Scenario(24_576)
    scenario.happens(replace(policy(), starve_ms=100))
    scenario.request("a", 1_000)
    scenario.request("large", 24_576)
    scenario.tick(after_ms=100)
    scenario.request("small", 1)
    assert why(scenario, "large") == (1, "no_room", ["a"])
    assert why(scenario, "small") == (2, "draining", ["large"])


def estimate(scenario: Scenario, name: str) -> tuple[int | None, bool]:
    """In how many ms of the beginning it starts, and whether that is promised."""
    found = explain(scenario.state, scenario.state.waitlist.by_id[padded(name)])
    return None if found.starts_by_ms is None else found.starts_by_ms - START_MS, found.is_promise


def test_the_first_is_promised_a_start_and_the_others_are_told_a_guess():
    scenario = Scenario(24_576)
    scenario.request("a", 10_000, ttl_ms=1_000)
    scenario.request("b", 10_000, ttl_ms=2_000)
    scenario.request("first", 24_576)
    scenario.request("second", 10_000)
    scenario.request("third", 24_576, device="cuda:0")
    assert estimate(scenario, "first") == (2_000, True)
    assert estimate(scenario, "second") == (1_000, False)
    assert estimate(scenario, "third") == (2_000, False)


def test_who_waits_for_a_lease_without_an_end_is_told_no_time():
    scenario = Scenario(24_576)
    scenario.request("a", 10_000)
    scenario.request("b", 24_576)
    assert estimate(scenario, "b") == (None, False)


def test_no_device_is_known_yet():
    scenario = Scenario()
    scenario.request("a", 1)
    assert why(scenario, "a") == (1, "no_room", [])


def test_places_follow_the_order_of_the_queue():
    scenario = Scenario(24_576)
    scenario.request("fill", 24_576)
    for name, priority in (("low", "low"), ("first", "normal"), ("second", "normal"), ("high", "high")):
        scenario.request(name, 1, priority=priority)
    places = {name: why(scenario, name)[0] for name in ("high", "first", "second", "low")}
    assert places == {"high": 1, "first": 2, "second": 3, "low": 4}
    assert [row.place for row in queue_rows(scenario.state).values()] == [1, 2, 3, 4]


@pytest.mark.parametrize("most", [0, 1, 2, 3, 99])
def test_only_the_first_are_explained_unasked(most):
    scenario = Scenario(24_576)
    scenario.request("fill", 24_576)
    for name in "abc":
        scenario.request(name, 1)
    assert len(explain_first(scenario.state, most)) == min(most, 3)
    assert EXPLAINED_MAX == 1_000
