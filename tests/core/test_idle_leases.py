"""Idle leases: they are kept until somebody needs their room, and then asked back at once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest
from msgspec.structs import replace

from gpuboss.core.explain import explain
from gpuboss.events import LeaseIdled, LeaseResumed
from tests.core.reserving import with_rules
from tests.core.scenario import (
    Scenario,
    idled,
    padded,
    policy,
    reclaimed,
    resumed,
)
from tests.core.warm import GRACE_MS, free_and_held, warm

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
