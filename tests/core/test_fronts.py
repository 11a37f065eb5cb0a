"""What a long queue costs those who have nothing to do with it: looks, not time, are counted."""

from typing import Any

import pytest

from gpuboss.core import granting
from gpuboss.core.explain import explain_first
from gpuboss.core.fronts import STALE_MIN
from gpuboss.core.placement import place
from gpuboss.core.projections import BLOCKERS_SHOWN, queue_row
from gpuboss.core.waitlist import GONE_MIN
from tests.core.scenario import Scenario, padded

CARD_MIB = 24_576
MANY = 500


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every shape for which the grant pass looks for a place."""
    seen: list[Any] = []

    def counted(shape: Any, allowed: Any) -> Any:
        seen.append(shape)
        return place(shape, allowed)

    monkeypatch.setattr(granting, "place", counted)
    return seen


def backlog() -> Scenario:
    """Two cards, the first wholly held, and requests of very many sizes that want that one."""
    given = Scenario(CARD_MIB, CARD_MIB)
    given.request("holder", CARD_MIB, device="cuda:0")
    for size_mib in range(1, MANY + 1):
        given.request(f"size{size_mib:05}", size_mib, device="cuda:0")
    return given


def test_a_pass_does_not_look_at_sizes_that_have_no_place(looks: list[Any]) -> None:
    given = backlog()
    given.tick()
    looks.clear()
    assert given.request("other", 8_192, device="cuda:1") == ["granted other on cuda:1"]
    assert given.release("other") == ["ended other: released, freed"]
    assert len(looks) <= 6


def test_all_who_have_a_place_get_it_in_their_order_all_the_same() -> None:
    given = backlog()
    told = given.release("holder")[1:]
    assert told == [f"granted size{size_mib:05} on cuda:0" for size_mib in range(1, len(told) + 1)]
    assert len(told) == 221  # 1 + 2 + ... + 221 MiB fit, and the next does not


def test_a_restart_looks_at_all_once_and_then_at_few(looks: list[Any]) -> None:
    given = backlog()
    given.restart()
    given.request("first", 8_192, device="cuda:1")
    looks.clear()
    given.request("other", 8_192, device="cuda:1")
    assert len(looks) <= 4


def test_asking_and_taking_back_behind_one_who_waits_leaves_nothing_behind() -> None:
    given = Scenario(CARD_MIB)
    given.request("holder", CARD_MIB)
    given.request("waits", 1)
    for number in range(2 * GONE_MIN):
        given.request(f"gone{number:05}", 1)
        given.release(f"gone{number:05}")
        given.request(f"high{number:05}", 1, priority="high")
        given.release(f"high{number:05}")
    heaps = [heap for heap in given.state.waitlist._heaps.values() if isinstance(heap, list)]
    assert sum(len(heap) for heap in heaps) <= GONE_MIN + 2


def test_lives_that_come_and_go_behind_one_who_waits_leave_nothing_behind() -> None:
    given = Scenario(CARD_MIB)
    given.request("holder", CARD_MIB)
    given.request("waits", 1, ttl_ms=1_048_576)
    for number in range(2 * STALE_MIN):  # each another life, and all of one leaf
        given.request(f"gone{number:05}", 1, ttl_ms=1_048_577 + number)
        given.release(f"gone{number:05}")
    fronts = given.state.fronts
    crowds = [each for branch in fronts.tree.branches() for each in branch.below if isinstance(each, list)]
    assert sum(map(len, crowds)) <= STALE_MIN + 2
    given.release("waits")
    assert not fronts.by_wish
    assert fronts.tree.root is None


def test_a_row_of_the_queue_names_the_first_few_of_those_in_the_way() -> None:
    given = Scenario(CARD_MIB)
    for number in range(2 * BLOCKERS_SHOWN):
        given.request(f"small{number:03}", 768)
    given.request("large", CARD_MIB)
    why = explain_first(given.state)[padded("large")]
    assert len(why.blocked_by) == 2 * BLOCKERS_SHOWN
    assert queue_row(given.state.waitlist.by_id[padded("large")], why).blocked_by == why.blocked_by[:BLOCKERS_SHOWN]


def test_what_was_kept_on_a_device_out_of_order_is_chosen_anew_by_all_who_had_it() -> None:
    given = Scenario(CARD_MIB, CARD_MIB, 4_096)
    given.request("on_first", 20_000)
    given.request("on_other", 20_480)
    given.request("rest", 4_096, device="cuda:1")
    for name, priority, size_mib in (("last", "low", 24_000), ("second", "normal", 24_001), ("first", "high", 24_002)):
        given.request(name, size_mib, priority=priority)  # each comes first, and has the first card kept free
    given.device(0, CARD_MIB, healthy=False)
    given.device(0, CARD_MIB)
    given.release("on_other")
    given.release("first")
    given.release("second")
    assert given.request("small", 4_096, priority="low") == ["granted small on cuda:2"]
    assert given.request("next", 4_096, priority="low") == ["granted next on cuda:0"], "the other card lacks less"
