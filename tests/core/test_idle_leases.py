"""Idle leases: they are kept until somebody needs their room, and then asked back at once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
from msgspec.structs import replace

from gpuboss.core.adoption import adopt_input
from gpuboss.core.explain import explain
from gpuboss.core.projections import device_row
from gpuboss.events import LeaseIdled, LeaseReasserted, LeaseReleased, LeaseResumed, LogLost, SchedulerElected
from tests.core.reserving import kept, with_rules
from tests.core.scenario import (
    NODE,
    START_MS,
    Scenario,
    device_lost,
    idled,
    padded,
    policy,
    reclaimed,
    renewed,
    resumed,
    session_lost,
)

GRACE_MS = 15_000


def warm(*leases: tuple[str, int], devices: int = 1, reload_ms: int = 100, **fields: Any) -> Scenario:
    """Idle leases, by name and size, on devices of 24,576 MiB; further fields as in `LeaseRequested`."""
    scenario = Scenario(*[24_576] * devices)
    for name, vram_mib in leases:
        scenario.request(name, vram_mib, reclaimable=True, **fields)
        scenario.says(idled(name, reload_ms))
    return scenario


def free_and_held(scenario: Scenario) -> list[tuple[int, int]]:
    """Of each device, what is free and what is held."""
    return [(device.free_mib, device.hold_mib) for device in scenario.state.ledger.ordered_devices()]


# ---------------------------------------------------------------- asked back, and granted


def test_an_idle_lease_is_asked_back_for_who_waits_and_its_room_is_granted_once_it_is_given_back():
    given = warm(("warm", 20_000))
    assert given.request("b", 8_192) == ["asked back warm within 15000 ms for b"]
    assert given.last.for_ == padded("b")
    assert given.release("warm") == ["ended warm: yielded, freed", "granted b on cuda:0"]


def test_a_lease_that_becomes_idle_is_asked_back_for_who_waits_already():
    given = Scenario(24_576)
    given.request("warm", 20_000, reclaimable=True)
    given.request("b", 8_192)
    assert given.says(idled("warm")) == ["changed warm to idle", "asked back warm within 15000 ms for b"]


def test_who_does_not_give_it_back_loses_it_at_the_deadline():
    given = warm(("warm", 20_000))
    given.request("b", 8_192)
    assert given.tick(after_ms=GRACE_MS - 1) == []
    assert given.tick(after_ms=1) == ["ended warm: revoked, freed", "granted b on cuda:0"]


def test_where_memory_lingers_it_is_granted_when_it_is_back():
    given = Scenario(24_576, lock_delay_ms=60_000)
    given.request("warm", 20_000, reclaimable=True)
    given.says(idled("warm"))
    given.request("b", 8_192)
    found = explain(given.state, given.state.waitlist.by_id[padded("b")])
    assert found.starts_by_ms == given.state.now_ms + GRACE_MS + 60_000
    assert given.tick(after_ms=GRACE_MS) == ["ended warm: revoked, reclaiming"]
    assert given.request("c", 4_576) == ["granted c on cuda:0"], "without that there is enough when it is back"
    assert given.happens(reclaimed("warm")) == ["granted b on cuda:0"]


@pytest.mark.parametrize(("asks", "asked"), [("low", False), ("normal", True), ("high", True)])
def test_it_is_asked_back_for_its_class_and_above(asks, asked):
    given = warm(("warm", 20_000))
    assert bool(given.request("b", 8_192, priority=asks)) is asked


def test_for_a_higher_class_also_where_a_lower_one_of_the_same_size_comes_first():
    given = warm(("warm", 20_000), priority="normal")
    given.request("old", 8_192, priority="low")
    given.now_ms += 7_200_000
    assert given.request("high", 8_192, priority="high") == ["asked back warm within 15000 ms for high"]


def test_nobody_is_asked_back_where_the_policy_is_off_or_there_is_room():
    given = warm(("warm", 12_000))
    assert given.request("fits", 12_000) == ["granted fits on cuda:0"]
    given.happens(replace(policy(), preemption="off"))
    assert given.request("b", 12_000) == []
    assert given.happens(policy()) == ["asked back warm within 15000 ms for b"]


def test_a_plan_that_has_begun_goes_on_when_the_policy_is_off():
    given = warm(("warm", 20_000))
    given.request("b", 8_192)
    given.happens(replace(policy(), preemption="off"))
    assert given.request("c", 8_192, priority="high") == []
    assert given.release("warm") == ["ended warm: yielded, freed", "granted c on cuda:0", "granted b on cuda:0"]


def test_leases_that_are_held_are_not_asked_back_nor_ones_that_would_not_suffice():
    given = warm(("warm", 8_192))
    given.request("held", 16_384)
    assert given.request("b", 8_193) == []


def test_those_beyond_the_reservations_are_looked_at_too():
    given = with_rules(24_576, 24_576, reservations=1)
    given.request("held", 24_576, device="cuda:0")
    given.request("warm", 24_576, device="cuda:1", reclaimable=True)
    given.request("first", 10_000, device="cuda:0")
    given.request("second", 20_000, device="cuda:0")
    given.request("third", 24_576, device="cuda:1")
    assert given.says(idled("warm")) == ["changed warm to idle", "asked back warm within 15000 ms for third"]


def test_several_of_one_size_have_their_own_asked_back_at_once():
    given = warm(("warm-0", 24_576), ("warm-1", 24_576), devices=2)
    assert given.request("a", 8_192) == ["asked back warm-0 within 15000 ms for a"]
    assert given.request("b", 8_192) == ["asked back warm-1 within 15000 ms for b"]


def test_a_device_has_one_plan_at_a_time():
    given = warm(("warm-0", 12_288), ("warm-1", 12_288))
    assert given.request("a", 12_288) == ["asked back warm-0 within 15000 ms for a"]
    assert given.request("b", 12_288) == []
    assert given.release("warm-0") == [
        "ended warm-0: yielded, freed",
        "granted a on cuda:0",
        "asked back warm-1 within 15000 ms for b",
    ]


# ---------------------------------------------------------------- which one


def test_the_one_that_is_cheapest_to_load_again_for_its_size_goes_first():
    given = Scenario(24_576)
    for name, vram_mib, reload_ms in (("dear", 8_192, 900), ("cheap", 8_192, 100), ("dense", 8_192, 500)):
        given.request(name, vram_mib, reclaimable=True)
        given.says(idled(name, reload_ms))
    assert given.request("b", 8_192) == ["asked back cheap within 15000 ms for b"]


def test_a_large_one_goes_before_a_small_one_that_costs_the_same():
    given = warm(("small", 4_000), ("large", 16_000))
    assert given.request("b", 6_000) == ["asked back large within 15000 ms for b"]


def test_one_that_is_used_more_stays():
    given = warm(("used", 12_288), ("unused", 12_288))
    for _ in range(2):
        given.says(resumed("used"))
        given.says(idled("used", 100))
    assert given.request("b", 8_192) == ["asked back unused within 15000 ms for b"]


def test_what_was_dear_ages_while_it_is_not_used():
    given = Scenario(24_576)
    given.request("dear", 12_288, reclaimable=True)
    given.says(idled("dear", 250))
    for number in range(3):
        name = f"cheap-{number}"
        given.request(name, 12_288, reclaimable=True)
        given.says(idled(name, 100))
        told = given.request(f"b-{number}", 12_288)
        if told != [f"asked back {name} within 15000 ms for b-{number}"]:
            assert told == [f"asked back dear within 15000 ms for b-{number}"]
            assert number == 2, "with the floor at 200 the new one is worth 300, and the old one 250"
            return
        given.release(name)
        given.release(f"b-{number}")
    raise AssertionError("it never aged")


def test_no_more_are_asked_than_are_needed():
    given = warm(("a", 4_000), ("b", 6_000), ("c", 14_000), reload_ms=1_000)
    given.says(idled("a", 1))
    given.says(idled("b", 10))
    assert given.request("needs-c", 14_500) == ["asked back c within 15000 ms for needs-c"]
    given = warm(("a", 4_000), ("b", 6_000), ("c", 14_000), reload_ms=1_000)
    given.says(idled("a", 1))
    given.says(idled("b", 10))
    assert [each.partition(" within")[0] for each in given.request("needs-two", 19_000)] == [
        "asked back b",
        "asked back c",
    ]


def test_of_several_devices_the_cheapest():
    given = warm(("warm-0", 24_576), devices=2, reload_ms=900)
    given.request("warm-1", 24_576, reclaimable=True)
    given.says(idled("warm-1", 100))
    assert given.request("b", 1) == ["asked back warm-1 within 15000 ms for b"]
    assert given.request("c", 1) == ["asked back warm-0 within 15000 ms for c"]


# ---------------------------------------------------------------- gangs, and who wants to be alone


def test_a_gang_has_all_its_devices_or_asks_for_nothing():
    given = warm(("warm-0", 20_000), devices=3)
    given.request("held-1", 20_000, device="cuda:1")
    given.request("held-2", 20_000, device="cuda:2", reclaimable=True)
    assert given.request("gang", 8_192, gpus=2) == []
    told = given.says(idled("held-2"))
    assert told[1:] == [f"asked back {name} within 15000 ms for gang" for name in ("held-2", "warm-0")]
    assert given.release("warm-0") == ["ended warm-0: yielded, freed"]
    assert free_and_held(given) == [(16_384, 8_192), (4_576, 0), (4_576, 0)]
    assert given.release("held-2") == ["ended held-2: yielded, freed", "granted gang on cuda:0+cuda:2"]


def test_a_gang_holds_the_room_that_it_has_already():
    given = warm(("warm-0", 20_000), devices=2)
    assert given.request("gang", 24_576, gpus=2) == ["asked back warm-0 within 15000 ms for gang"]
    assert free_and_held(given) == [(0, 4_576), (0, 24_576)]
    assert given.request("b", 1, ttl_ms=1) == []
    assert given.request("alone", 1, exclusive=True, priority="high") == []
    assert given.release("warm-0") == ["ended warm-0: yielded, freed", "granted gang on cuda:0+cuda:1"]


def test_who_wants_to_be_alone_has_all_of_a_device_asked_back():
    given = warm(("a", 4_000), ("b", 6_000))
    assert len(given.request("alone", 1, exclusive=True)) == 2
    assert given.release("a") == ["ended a: yielded, freed"]
    assert given.request("c", 1) == []
    assert given.release("b") == ["ended b: yielded, freed", "granted alone on cuda:0"]


def test_nothing_is_asked_for_who_wants_to_be_alone_beside_one_that_is_held():
    given = warm(("a", 4_000))
    given.request("held", 1)
    assert given.request("alone", 1, exclusive=True) == []


def test_an_exclusive_lease_that_is_idle_goes_however_small_it_is():
    given = warm(("alone", 1), exclusive=True)
    assert given.request("b", 1) == ["asked back alone within 15000 ms for b"]


def test_a_pinned_request_has_them_asked_back_where_it_is_pinned_to():
    given = warm(("warm-0", 24_576), ("warm-1", 24_576), devices=2)
    assert given.request("b", 1, device="cuda:1") == ["asked back warm-1 within 15000 ms for b"]


# ---------------------------------------------------------------- what is held


def test_what_is_held_is_granted_to_nobody_else_not_even_to_who_comes_before():
    given = warm(("a", 12_000), ("b", 12_000))
    given.request("gang-less", 24_000)
    given.release("a")
    assert free_and_held(given) == [(576, 12_000)]
    assert given.request("high", 12_000, priority="high") == []
    assert given.request("brief", 577, ttl_ms=1) == []
    assert given.request("fits", 576) == ["granted fits on cuda:0"]
    assert given.release("b") == ["ended b: yielded, freed", "granted gang-less on cuda:0"]


def test_what_comes_back_beyond_the_need_is_for_others_once_all_is_there():
    given = warm(("warm-0", 20_000), ("warm-1", 24_576), devices=2)
    given.request("gang", 8_000, gpus=2)
    given.request("b", 12_000)
    assert free_and_held(given) == [(4_576, 0), (0, 0)]
    assert given.release("warm-0") == ["ended warm-0: yielded, freed", "granted b on cuda:0"]
    assert free_and_held(given) == [(4_576, 8_000), (0, 0)]


def test_the_row_of_a_device_is_without_what_is_held():
    given = warm(("a", 12_000), ("b", 12_000))
    given.request("both", 24_000)
    given.release("a")
    [device] = given.state.ledger.ordered_devices()
    assert device_row(device).free_mib == 576


def test_others_may_renew_beside_a_plan_and_delay_nobody():
    given = Scenario(24_576)
    given.request("bounded", 4_000, ttl_ms=1_000)
    given.request("warm", 20_000, reclaimable=True)
    given.says(idled("warm"))
    given.request("b", 20_000)
    assert given.says(renewed("bounded", 100_000)) == ["extended bounded by 100000 ms"]
    assert given.says(renewed("warm", 100_000)) == ["rejected warm: yielding"]
    assert given.release("warm") == ["ended warm: yielded, freed", "granted b on cuda:0"]


# ---------------------------------------------------------------- resuming


STEPS: dict[str, Callable[[Scenario], list[str]]] = {
    "resume": lambda given: given.says(resumed("warm")),
    "ask": lambda given: given.request("b", 8_192),
    "idle-again": lambda given: given.says(idled("warm")),
}


def test_resuming_and_being_asked_back_exclude_one_another_in_every_order():
    """Who resumes first uses it, and nobody who was asked is ever told that it may."""
    for order in permutations(STEPS):
        given = warm(("warm", 20_000))
        states = ["idle"]
        for what in order:
            told = STEPS[what](given)
            lease = given.state.ledger.leases[padded("warm")]
            assert not (states[-1] == "yielding" and lease.state != "yielding"), order
            if states[-1] == "yielding":
                assert told == ["rejected warm: yielding"], order
            states.append(lease.state)
        resumes = order.index("resume") < order.index("ask") and order.index("idle-again") < order.index("resume")
        assert states[-1] == ("held" if resumes else "yielding"), order


def test_in_one_batch_the_log_decides_who_was_first():
    for first, second, told in (
        (LeaseResumed, None, ["changed warm to held"]),
        (None, LeaseResumed, ["asked back warm within 15000 ms for b", "rejected warm: yielding"]),
    ):
        given = warm(("warm", 20_000))
        if first is not None:
            given.write(first(padded("warm"), "imajin"))
        told_now = given.request("b", 8_192) if second is None else []
        if second is not None:
            given.append(b"type", b"LeaseRequested", b"data", b'{"lease_id":"b_______","service":"x","vram_mib":8192}')
            told_now = given.says(second(padded("warm"), "imajin"))
        assert told_now == told


def test_after_a_plan_is_dissolved_what_was_asked_is_not_revived():
    given = warm(("warm", 20_000))
    given.request("b", 8_192)
    assert given.release("b") == ["denied b: cancelled"]
    assert free_and_held(given) == [(4_576, 0)]
    assert given.says(resumed("warm")) == ["rejected warm: yielding"]
    assert given.says(LeaseIdled(padded("warm"), "imajin")) == ["rejected warm: yielding"]
    assert given.release("warm") == ["ended warm: yielded, freed"]


# ---------------------------------------------------------------- what comes between


WAYS_TO_GO: dict[str, tuple[Callable[[Scenario], list[str]], str]] = {
    "cancelled": (lambda given: given.release("b"), "denied b: cancelled"),
    "revoked": (lambda given: given.revoke("b"), "denied b: cancelled"),
    "timed out": (lambda given: given.tick(after_ms=500), "denied b: timeout"),
    "session lost": (lambda given: given.happens(session_lost("s")), "denied b: session_lost"),
}


@pytest.mark.parametrize(("go", "told"), WAYS_TO_GO.values(), ids=WAYS_TO_GO)
def test_who_is_gone_has_its_plan_dissolved_and_the_room_is_for_all(go, told):
    given = warm(("a", 12_000), ("warm", 12_000))
    given.request("b", 24_000, wait_ms=500, session="s")
    given.request("low", 12_000, priority="low")
    given.release("a")
    assert go(given) == [told, "granted low on cuda:0"]
    assert given.state.planned == {}
    given.restart()
    assert given.request("c", 12_000, priority="low") == []
    assert given.release("warm") == ["ended warm: yielded, freed", "granted c on cuda:0"]


def test_who_has_a_place_elsewhere_takes_it_and_leaves_what_was_asked_to_others():
    given = warm(("warm", 20_000), devices=2)
    given.request("held", 24_576, device="cuda:1")
    given.request("b", 8_192)
    assert given.release("held") == ["ended held: released, freed", "granted b on cuda:1"]
    assert given.request("c", 24_576, priority="low") == []
    assert given.release("warm") == ["ended warm: yielded, freed", "granted c on cuda:0"]


def test_what_was_held_for_who_has_a_place_elsewhere_is_granted_in_the_same_turn():
    given = with_rules(24_576, 16_384, reservations=0)
    given.request("warm", 8_192, device="cuda:0", reclaimable=True)
    given.request("other", 8_192, device="cuda:0")
    given.request("full", 16_384, device="cuda:1")
    given.says(idled("warm"))
    assert given.request("b", 16_384) == ["asked back warm within 15000 ms for b"]
    assert given.request("small", 4_096) == []
    told = ["ended full: released, freed", "granted b on cuda:1", "granted small on cuda:0"]
    assert given.release("full") == told


def test_what_goes_already_is_enough_for_another():
    given = warm(("warm-0", 12_288), ("warm-1", 12_288))
    given.request("b", 12_288)
    given.release("b")
    assert given.request("c", 12_288) == []
    assert given.release("warm-0") == ["ended warm-0: yielded, freed", "granted c on cuda:0"]


def test_what_goes_already_is_counted_before_others_are_asked():
    given = warm(("warm-0", 12_288), ("warm-1", 12_288), reload_ms=100)
    given.request("b", 12_288)
    given.release("b")
    assert given.request("d", 24_576) == ["asked back warm-1 within 15000 ms for d"]


def test_when_somebody_takes_the_room_beside_what_goes_others_are_asked():
    given = with_rules(24_576, reservations=0)
    given.request("going", 8_192)
    given.request("warm", 8_192, reclaimable=True)
    given.says(idled("warm"))
    given.revoke("going", grace_ms=1_000)
    assert given.request("b", 16_384) == []
    assert given.request("c", 8_192) == ["granted c on cuda:0", "asked back warm within 15000 ms for b"]


def test_when_what_goes_does_not_come_back_in_time_others_are_asked():
    given = Scenario(24_576, lock_delay_ms=60_000)
    for name in ("warm-0", "warm-1"):
        given.request(name, 12_288, reclaimable=True)
        given.says(idled(name))
    given.request("b", 12_288)
    given.release("b")
    assert given.request("c", 12_288) == []
    assert given.tick(after_ms=GRACE_MS) == [
        "ended warm-0: revoked, reclaiming",
        "asked back warm-1 within 15000 ms for c",
    ]


def test_a_device_that_is_lost_or_out_of_order_dissolves_the_plan_and_another_may_begin():
    for happens in (
        lambda given: given.happens(device_lost(0)),
        lambda given: given.device(0, 24_576, healthy=False),
        lambda given: given.device(0, 24_576, foreign_mib=20_000),
    ):
        given = warm(("warm-0", 24_576), ("warm-1", 24_576), devices=2)
        given.request("b", 8_192)
        assert happens(given)[-1] == "asked back warm-1 within 15000 ms for b"
        given.restart()
        assert given.release("warm-1") == ["ended warm-1: yielded, freed", "granted b on cuda:1"]


def test_what_does_not_matter_to_a_plan_does_not_dissolve_it():
    given = warm(("warm", 20_000))
    given.request("b", 8_192)
    assert given.device(0, 24_576, foreign_mib=16_384) == []
    assert given.device(0, 24_576, foreign_mib=16_385) == ["promised b nothing any more"]
    assert given.state.planned == {}, "it would not fit when all is back"


@pytest.mark.parametrize("before", range(4))
def test_a_restart_in_the_middle_changes_nothing(before):
    given, told = warm(("warm-0", 20_000), ("warm-1", 20_000), devices=2), []
    steps: list[Callable[[], list[str]]] = [
        lambda: given.request("gang", 8_192, gpus=2),
        lambda: given.release("warm-0"),
        lambda: given.request("c", 4_000, priority="high"),
        lambda: given.release("warm-1"),
    ]
    for number, step in enumerate(steps):
        if number == before:
            given.restart()
        told += step()
    assert told == [
        "asked back warm-0 within 15000 ms for gang",
        "asked back warm-1 within 15000 ms for gang",
        "ended warm-0: yielded, freed",
        "granted c on cuda:1",
        "ended warm-1: yielded, freed",
        "granted gang on cuda:0+cuda:1",
    ]


def test_where_entries_of_the_log_are_lost_nothing_is_held_any_more():
    given = warm(("warm", 20_000))
    given.request("b", 4_576, service="other")
    given.request("c", 8_192)
    given.happens(SchedulerElected("next", "0", 1, "log-2", LogLost(given.entries[-1].id, 9)))
    assert given.state.planned == {}
    assert free_and_held(given) == [(0, 0)]
    said = LeaseReasserted(padded("c"), "imajin", NODE, "cuda:0", ["cuda:0"], 8_192, "normal", "held", START_MS, 10)
    assert given.says(said) == ["again granted c on cuda:0"]


def test_other_rules_hold_nothing_of_what_ours_asked_back():
    given = warm(("warm", 20_000))
    given.request("b", 8_192)
    adopt_input(given.state, f"{given.now_ms}-99", LeaseReleased(padded("warm"), "imajin"), by_scheduler=False)
    assert given.state.planned == {}
    assert free_and_held(given) == [(4_576, 0)]


# ---------------------------------------------------------------- beside reservations


def test_a_plan_does_not_delay_a_start_that_is_reserved():
    given = Scenario(24_576)
    given.request("bounded", 12_000, ttl_ms=1_000)
    given.request("warm", 12_000, reclaimable=True)
    given.request("first", 12_500)
    assert kept(given) == {"first": ("cuda:0", 1_000)}
    given.says(idled("warm"))
    assert given.state.ledger.leases[padded("warm")].state == "yielding"
    given = Scenario(24_576)
    given.request("bounded", 12_000, ttl_ms=1_000)
    given.request("warm", 12_000, reclaimable=True, priority="normal")
    given.request("first", 12_500, priority="low")
    given.now_ms += 500
    given.says(idled("warm"))
    assert kept(given) == {"first": ("cuda:0", 500)}


def test_who_wants_to_be_alone_has_nobody_asked_back_where_something_is_reserved():
    given = Scenario(24_576, 24_576)
    given.happens(policy(high=0, normal=0))
    given.request("bounded", 20_000, ttl_ms=1_000, device="cuda:0")
    given.request("warm", 2_000, device="cuda:1", reclaimable=True)
    given.request("gang", 8_192, gpus=2)
    given.says(idled("warm"))
    assert given.request("alone", 1, exclusive=True, device="cuda:1") == []
    assert kept(given)["gang"] == ("cuda:1+cuda:0", 1_000)


def test_who_comes_later_counts_on_no_lease_whose_end_a_reservation_counts_on():
    given = Scenario(24_576)
    given.request("warm", 12_000, ttl_ms=1_000, reclaimable=True, priority="high")
    given.request("held", 12_000)
    given.request("first", 12_500, priority="low")
    given.now_ms += 600
    given.says(idled("warm"))
    given.happens(policy(high=0, normal=0))
    assert given.request("later", 1_000, priority="high") == []
    assert kept(given)["first"] == ("cuda:0", 400)


def test_who_wants_to_be_alone_counts_on_no_device_that_is_held_for_another():
    given = warm(("warm", 20_000))
    given.request("b", 8_192)
    given.request("alone", 1, exclusive=True)
    assert kept(given) == {"b": ("", GRACE_MS)}


def test_what_is_left_over_beside_a_reservation_is_without_what_is_held_in_the_end():
    given = with_rules(24_576, grace_ms=300)
    given.request("bounded", 12_000, ttl_ms=1_000)
    given.request("warm", 12_000, reclaimable=True)
    given.says(idled("warm"))
    given.request("b", 12_000)
    given.request("c", 12_000, ttl_ms=7)
    assert kept(given) == {"b": ("", 300), "c": ("cuda:0", 1_000)}
    [_, reservation] = given.state.reservations.in_order
    assert reservation.extra_mib == [576]


def test_who_passes_shortest_first_has_its_place_before_room_is_held_for_who_comes_later():
    given = with_rules(24_576, 24_576, backfill_order="short")
    given.request("bounded", 24_576, ttl_ms=60_000, device="cuda:0")
    given.request("warm", 12_000, device="cuda:1", reclaimable=True)
    given.says(idled("warm"))
    given.device(1, 24_576, healthy=False)
    given.request("first", 24_576, device="cuda:0")
    given.request("passes", 12_576, ttl_ms=500, device="cuda:1")
    given.request("later", 24_000, device="cuda:1")
    assert given.device(1, 24_576) == ["granted passes on cuda:1"]


# ---------------------------------------------------------------- why


def test_who_waits_for_what_was_asked_back_is_told_so():
    given = warm(("warm", 20_000))
    given.request("b", 8_192)
    found = explain(given.state, given.state.waitlist.by_id[padded("b")])
    assert (found.place, found.reason, found.blocked_by) == (1, "no_room", [padded("warm")])
    assert found.starts_by_ms == given.state.now_ms + GRACE_MS
    assert "asked back" in found.detail
    assert "15000 ms" in found.detail


def test_who_waits_behind_a_hold_is_told_for_whom_it_is_held():
    given = warm(("warm", 20_000), devices=2)
    given.request("gang", 24_576, gpus=2)
    given.request("b", 24_576, device="cuda:1")
    found = explain(given.state, given.state.waitlist.by_id[padded("b")])
    assert (found.reason, found.blocked_by) == ("reserved_for", [padded("gang")])
