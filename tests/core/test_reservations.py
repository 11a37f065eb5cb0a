"""Reservations: where and by when who has no place will start, and who may pass it without delaying that."""

import pytest
from msgspec.structs import replace

from gpuboss.events import LogLost, SchedulerElected
from tests.core.reserving import kept, with_rules
from tests.core.scenario import Scenario, device_lost, jumped, policy, renewed

# ---------------------------------------------------------------- where, and by when


def test_what_is_reserved_is_the_device_on_which_it_starts_earliest():
    scenario = Scenario(24_576, 24_576)
    scenario.request("a", 20_000, device="cuda:0", ttl_ms=100)
    scenario.request("b", 10_000, device="cuda:1", ttl_ms=500)
    scenario.request("large", 22_000)
    assert kept(scenario) == {"large": ("cuda:0", 100)}
    assert scenario.request("on-0", 4_000, device="cuda:0") == [], "there is room, but only until `large` comes"
    assert scenario.request("any", 4_000) == ["granted any on cuda:1"]
    assert scenario.tick(after_ms=100) == ["ended a: expired, freed", "granted large on cuda:0"]


def test_of_equally_early_ones_it_is_the_one_on_which_least_is_left_over_then_the_first():
    scenario = Scenario(24_576, 20_000, 20_000)
    for number, size_mib in enumerate((24_576, 20_000, 20_000)):
        scenario.request(f"a-{number}", size_mib, device=f"cuda:{number}", ttl_ms=100)
    scenario.request("large", 18_000)
    assert kept(scenario) == {"large": ("cuda:1", 100)}


def test_it_stays_where_it_is_as_long_as_nothing_is_earlier():
    scenario = Scenario(24_576, 24_576)
    scenario.request("a", 20_000, device="cuda:0", ttl_ms=100)
    scenario.request("b", 21_000, device="cuda:1", ttl_ms=100)
    scenario.request("large", 22_000)
    assert kept(scenario) == {"large": ("cuda:0", 100)}
    assert scenario.request("c", 2_000) == ["granted c on cuda:1"], "where now less is left over at that time"
    scenario.device(1, 24_576)
    assert kept(scenario) == {"large": ("cuda:0", 100)}
    assert scenario.request("d", 1_500) == ["granted d on cuda:1"]
    scenario.release("b")
    assert kept(scenario) == {"large": ("cuda:0", 100)}, "`c` and `d` have no end"


def test_it_moves_where_it_can_start_earlier():
    scenario = Scenario(24_576, 24_576)
    scenario.request("a", 20_000, device="cuda:0", ttl_ms=100)
    scenario.request("b", 20_000, device="cuda:1", ttl_ms=200)
    scenario.request("c", 4_000, device="cuda:1", ttl_ms=50)
    scenario.request("large", 24_576)
    assert kept(scenario) == {"large": ("cuda:0", 100)}
    scenario.release("b")
    assert kept(scenario) == {"large": ("cuda:1", 50)}


def test_who_wants_to_be_alone_starts_when_all_have_ended_and_leaves_nothing_over():
    scenario = Scenario(24_576)
    scenario.request("a", 1_000, ttl_ms=100)
    scenario.request("b", 1_000, ttl_ms=50)
    scenario.request("alone", 1, exclusive=True)
    assert kept(scenario) == {"alone": ("cuda:0", 100)}
    assert scenario.request("small", 1) == []
    assert scenario.request("short", 1, ttl_ms=100) == ["granted short on cuda:0"]


def test_beside_an_exclusive_lease_nobody_starts_before_its_end():
    scenario = Scenario(24_576)
    scenario.request("alone", 1, exclusive=True, ttl_ms=100)
    scenario.request("small", 1)
    assert kept(scenario) == {"small": ("cuda:0", 100)}


def test_several_devices_are_those_of_one_node_and_all_of_them_wait_for_the_last():
    scenario = Scenario(24_576, 24_576, 24_576)
    scenario.device(0, 24_576, "beta")
    scenario.device(1, 24_576, "beta")
    for node, number, ttl_ms in (
        ("alpha", 0, 900),
        ("alpha", 1, 100),
        ("alpha", 2, 700),
        ("beta", 0, 1),
        ("beta", 1, 800),
    ):
        scenario.request(f"{node}-{number}", 20_000, device=f"GPU-{node}-{number}", ttl_ms=ttl_ms)
    scenario.request("gang", 24_000, gpus=2)
    assert kept(scenario) == {"gang": ("cuda:1+cuda:2", 700)}
    assert scenario.request("small", 1_000, node="alpha", ttl_ms=701) == ["granted small on cuda:0"]
    assert scenario.request("short", 1_000, device="GPU-alpha-1", ttl_ms=700) == ["granted short on cuda:1"]
    scenario.tick(after_ms=699)
    assert scenario.tick(after_ms=1)[-1] == "granted gang on cuda:1+cuda:2"


def test_what_must_come_back_includes_the_lock_delay():
    scenario = Scenario(24_576, lock_delay_ms=1_000)
    scenario.request("a", 20_000, ttl_ms=100)
    scenario.request("large", 24_576)
    assert kept(scenario) == {"large": ("cuda:0", 1_100)}
    assert scenario.request("late", 1, ttl_ms=101) == []
    assert scenario.request("short", 1, ttl_ms=100) == ["granted short on cuda:0"]
    scenario.revoke("a")
    assert kept(scenario) == {"large": ("cuda:0", 1_100)}, "`short`"


def test_what_is_asked_back_is_back_at_its_deadline():
    scenario = Scenario(24_576)
    scenario.request("a", 20_000)
    scenario.request("large", 24_576)
    assert kept(scenario) == {}
    scenario.revoke("a", grace_ms=100)
    assert kept(scenario) == {"large": ("cuda:0", 100)}


def test_a_device_that_is_out_of_order_is_not_reserved():
    scenario = Scenario(24_576, 24_576)
    scenario.request("a", 20_000, device="cuda:0", ttl_ms=100)
    scenario.request("b", 20_000, device="cuda:1", ttl_ms=200)
    scenario.device(0, 24_576, healthy=False)
    scenario.request("large", 24_576)
    assert kept(scenario) == {"large": ("cuda:1", 200)}


# ---------------------------------------------------------------- who may pass


def test_who_ends_before_passes_and_who_ends_later_does_not():
    scenario = Scenario(24_576)
    scenario.request("a", 20_000, ttl_ms=100)
    scenario.request("large", 24_576)
    scenario.now_ms += 40
    assert scenario.request("late", 1_000, ttl_ms=61) == []
    assert scenario.request("endless", 1_000) == []
    assert scenario.request("short", 1_000, ttl_ms=60) == ["granted short on cuda:0"]


def test_what_is_left_over_beyond_the_start_is_lent_to_anybody_and_once():
    scenario = Scenario(24_576)
    scenario.request("a", 20_000, ttl_ms=100)
    scenario.request("large", 22_576)
    assert scenario.request("b", 2_001) == []
    assert scenario.request("c", 1_500) == ["granted c on cuda:0"]
    assert scenario.request("d", 501) == []
    assert scenario.request("e", 500, ttl_ms=999) == ["granted e on cuda:0"]
    assert scenario.request("f", 1) == []
    assert scenario.request("g", 1, ttl_ms=1) == ["granted g on cuda:0"], "it ends in time, and takes nothing"
    assert scenario.tick(after_ms=100)[-1] == "granted large on cuda:0"


def test_who_is_alone_passes_only_if_it_ends_before():
    scenario = Scenario(24_576, 24_576)
    scenario.request("a", 20_000, device="cuda:0", ttl_ms=100)
    scenario.request("b", 20_000, device="cuda:1", ttl_ms=100)
    scenario.request("pair", 10_000, gpus=2)
    scenario.release("a")
    assert scenario.request("alone", 1, exclusive=True) == []
    assert scenario.request("brief", 1, exclusive=True, ttl_ms=100) == ["granted brief on cuda:0"]


def test_reservations_hold_up_each_other_s_devices_for_as_many_as_the_rules_say():
    scenario = with_rules(24_576, 24_576, reservations=1)
    scenario.request("a", 20_000, device="cuda:0", ttl_ms=100)
    scenario.request("b", 20_000, device="cuda:1", ttl_ms=100)
    scenario.request("large", 24_576)
    scenario.request("other", 24_575)
    assert kept(scenario) == {"large": ("cuda:0", 100)}
    scenario.happens(replace(policy(), reservations=2))
    assert kept(scenario) == {"large": ("cuda:0", 100), "other": ("cuda:1", 100)}
    scenario.happens(replace(policy(), reservations=0))
    assert kept(scenario) == {}
    assert scenario.request("small", 1)[-1] == "granted small on cuda:0"


def test_one_of_a_shape_has_a_reservation_and_the_flood_goes_around_it():
    scenario = Scenario(24_576, 24_576)
    scenario.request("x", 20_000, device="cuda:0", ttl_ms=1_000)
    scenario.request("y", 20_000, device="cuda:1", ttl_ms=1_000)
    for name in ("a", "b", "c"):
        scenario.request(name, 24_576)
    assert kept(scenario) == {"a": ("cuda:0", 1_000)}
    assert scenario.request("small", 4_000) == ["granted small on cuda:1"]


def test_what_was_kept_is_there_for_others_when_who_waited_is_gone():
    for ending in (
        lambda scenario: scenario.release("large"),
        lambda scenario: scenario.revoke("large"),
        lambda scenario: scenario.tick(after_ms=50),
    ):
        scenario = Scenario(24_576)
        scenario.request("a", 10_000, ttl_ms=10_000)
        scenario.request("large", 24_576, wait_ms=50)
        assert scenario.request("small", 10_000) == []
        assert ending(scenario)[1:] == ["granted small on cuda:0"]


@pytest.mark.parametrize(("order", "first"), [("key", "long"), ("short", "brief")])
def test_those_who_pass_are_served_by_their_keys_or_shortest_first(order, first):
    scenario = with_rules(24_576, backfill_order=order)
    scenario.request("a", 14_576, ttl_ms=1_000)
    scenario.request("b", 10_000, ttl_ms=1_000)
    scenario.request("large", 24_576)
    scenario.request("endless", 10_000)
    scenario.request("long", 10_000, ttl_ms=900)
    scenario.request("brief", 10_000, ttl_ms=800)
    assert scenario.release("b")[1:] == [f"granted {first} on cuda:0"]


def test_shortest_first_holds_for_those_who_pass_and_for_nobody_before_them():
    scenario = with_rules(24_576, backfill_order="short")
    scenario.request("a", 24_576, ttl_ms=1_000)
    scenario.request("long", 10_000, ttl_ms=900)
    scenario.request("large", 24_576, ttl_ms=800)
    scenario.request("brief", 10_000, ttl_ms=700)
    scenario.request("briefer", 10_000, ttl_ms=600)
    assert scenario.release("a")[1:] == ["granted long on cuda:0", "granted briefer on cuda:0"]


def test_shortest_first_takes_nothing_from_who_has_a_reservation_behind_the_first():
    scenario = with_rules(24_576, 24_576, backfill_order="short")
    scenario.request("a", 20_000, device="cuda:0", ttl_ms=900)
    scenario.request("b", 20_000, device="cuda:1", ttl_ms=800)
    scenario.request("first", 24_576, device="cuda:0")
    scenario.request("second", 24_000, device="cuda:1")
    scenario.request("brief", 10_000, device="cuda:1", ttl_ms=900)
    assert scenario.release("b")[1:] == ["granted second on cuda:1"]


# ---------------------------------------------------------------- renewals


def test_a_renewal_that_would_void_a_reservation_is_rejected_with_the_reason():
    scenario = Scenario(24_576)
    scenario.request("a", 20_000, ttl_ms=100)
    scenario.request("large", 24_576)
    assert scenario.says(renewed("a", 101)) == ["rejected a: reserved"]
    for words in ("101 ms", "large___", str(scenario.state.now_ms + 100)):
        assert words in scenario.last.detail
    assert scenario.says(renewed("a", 100)) == ["extended a by 100 ms"]
    scenario.now_ms += 60
    assert scenario.says(renewed("a", 41)) == ["rejected a: reserved"]
    assert scenario.says(renewed("a", 30)) == ["extended a by 30 ms"], "it ends even earlier"
    assert kept(scenario) == {"large": ("cuda:0", 30)}
    assert scenario.says(renewed("a", 31)) == ["rejected a: reserved"]


def test_a_renewal_is_granted_where_there_is_room_beside_who_comes():
    scenario = Scenario(24_576)
    scenario.request("a", 2_000, ttl_ms=100)
    scenario.request("b", 20_000, ttl_ms=100)
    scenario.request("large", 22_000)
    assert scenario.says(renewed("a", 9_000)) == ["extended a by 9000 ms"]
    assert scenario.says(renewed("b", 9_000)) == ["rejected b: reserved"]
    assert kept(scenario) == {"large": ("cuda:0", 100)}


def test_of_one_that_wants_to_be_alone_there_is_no_room_beside():
    scenario = Scenario(24_576)
    scenario.request("a", 1, ttl_ms=100)
    scenario.request("alone", 1, exclusive=True)
    assert scenario.says(renewed("a", 101)) == ["rejected a: reserved"]


def test_a_lease_that_ends_after_the_start_anyway_may_be_renewed():
    scenario = Scenario(24_576)
    scenario.request("a", 4_000, ttl_ms=900)
    scenario.request("b", 20_000, ttl_ms=100)
    scenario.request("large", 20_000)
    assert scenario.says(renewed("a", 9_000)) == ["extended a by 9000 ms"]


def test_where_devices_are_emptied_nothing_that_is_in_the_way_is_renewed():
    scenario = with_rules(24_576, 24_576, starve_ms=100)
    scenario.request("endless-0", 10_000, device="cuda:0")
    scenario.request("a", 4_000, device="cuda:0", ttl_ms=900)
    scenario.request("b", 4_000, device="cuda:1", ttl_ms=900)
    scenario.request("gang", 15_000, gpus=2)
    scenario.tick(after_ms=100)
    assert kept(scenario) == {"gang": ("cuda:1+cuda:0", None)}
    assert scenario.says(renewed("a", 9_000)) == ["rejected a: reserved"]
    assert scenario.says(renewed("b", 9_000)) == ["extended b by 9000 ms"], "there is room beside it already"


# ---------------------------------------------------------------- promises


def promised(scenario: Scenario) -> dict[str, int]:
    """Who is promised a start, and in how many ms."""
    now_ms = scenario.state.now_ms
    return {
        each.waiting.request.lease_id.rstrip("_"): each.promised_ms - now_ms
        for each in scenario.state.reservations.in_order
        if each.promised_ms is not None
    }


def waits(lock_delay_ms: int = 0) -> Scenario:
    """Two devices; `large` is promised cuda:0 in 100 ms."""
    scenario = Scenario(24_576, 24_576, lock_delay_ms=lock_delay_ms)
    scenario.request("a", 20_000, device="cuda:0", ttl_ms=100)
    scenario.request("b", 20_000, device="cuda:1", ttl_ms=200)
    scenario.request("large", 24_576)
    assert promised(scenario) == {"large": 100 + lock_delay_ms}
    return scenario


def test_only_the_first_is_promised_something():
    scenario = waits()
    scenario.request("second", 24_575)
    assert list(kept(scenario)) == ["large", "second"]
    assert promised(scenario) == {"large": 100}


def test_a_promise_moves_for_one_that_comes_before_and_that_is_said():
    scenario = waits()
    told = scenario.request("first", 24_576, priority="high", device="cuda:0")
    assert told == ["promised large nothing any more"]
    assert scenario.last.was_ms == scenario.state.now_ms + 100
    assert promised(scenario) == {"first": 100}
    assert kept(scenario) == {"first": ("cuda:0", 100), "large": ("cuda:1", 200)}


def test_a_promise_stays_while_one_that_comes_before_does_not_touch_it():
    scenario = waits()
    assert scenario.request("first", 24_576, priority="high", device="cuda:1") == []
    assert promised(scenario) == {"first": 200, "large": 100}
    assert scenario.release("first") == ["denied first: cancelled"]
    assert promised(scenario) == {"large": 100}


def test_a_promise_moves_with_what_is_outside_the_rules():
    for outside, told in (
        (lambda s: s.device(0, 24_576, foreign_mib=1), "promised large a start in 200 ms"),
        (lambda s: s.device(0, 24_576, healthy=False), "promised large a start in 200 ms"),
        (lambda s: s.happens(device_lost(0)), "promised large a start in 200 ms"),
        (lambda s: s.happens(policy(lock_delay_ms=50)), "promised large a start in 150 ms"),
        (lambda s: s.happens(replace(policy(), reservations=0)), "promised large nothing any more"),
    ):
        scenario = waits()
        assert outside(scenario)[-1] == told


def test_a_promise_is_taken_back_when_entries_of_the_log_are_gone():
    scenario = waits()
    lost = SchedulerElected("next", "0", 2, "log-2", LogLost(scenario.entries[-1].id, 5))
    assert scenario.happens(lost) == ["promised large nothing any more"]
    assert kept(scenario) == {}
    assert scenario.says(renewed("a", 9_000)) == ["extended a by 9000 ms"]


def test_a_promise_moves_with_the_server_s_clock():
    scenario = waits()
    scenario.now_ms += 1
    assert scenario.happens(jumped(scenario.now_ms, 1_000)) == ["promised large a start in 1099 ms"]


def test_nothing_is_said_of_a_promise_that_moves_ahead_nor_of_one_that_is_kept():
    scenario = waits()
    scenario.request("c", 1, ttl_ms=50, device="cuda:0")
    assert scenario.release("a") == ["ended a: released, freed"]
    assert promised(scenario) == {"large": 50}
    assert scenario.release("c") == ["ended c: released, freed", "granted large on cuda:0"]
