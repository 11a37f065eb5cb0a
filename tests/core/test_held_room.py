"""The room that a plan holds until all that was asked back is there, and whatever comes between."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gpuboss.core.adoption import adopt_input
from gpuboss.core.projections import device_row
from gpuboss.events import LeaseReasserted, LeaseReleased, LogLost, SchedulerElected
from tests.core.reserving import kept, with_rules
from tests.core.scenario import (
    NODE,
    START_MS,
    Scenario,
    device_lost,
    idled,
    padded,
    policy,
    renewed,
    session_lost,
)
from tests.core.warm import GRACE_MS, free_and_held, warm

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
