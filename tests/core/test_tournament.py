"""Whoever joins and leaves: a search finds all to whom something may be lent, in the order of the queue."""

from __future__ import annotations

import random

import pytest

from gpuboss.core.fronts import Fronts, wish_of
from gpuboss.core.tournament import ANYTHING, Branch, Lendable, Search
from gpuboss.core.waitlist import NEVER_MS, Waiting, Waitlist, shape_of
from gpuboss.events import LeaseRequested

SIZES_MIB = (1, 2, 15, 16, 17, 255, 256, 4_096, 4_097, 81_920, 16_777_216)
LIVES_MS = (None, 1, 2, 3, 7, 1_000, 1_001, 1_023, 1_024, 60_000, 2**53 - 1)
WISHES = (("cuda:0", None, 1), (None, None, 1), (None, "alpha", 2), (None, None, 8))


def someone(draw: random.Random, number: int) -> Waiting:
    """Somebody who joins the queue, of whatever shape and class."""
    device, node, gpus = draw.choice(WISHES)
    request = LeaseRequested(
        f"lease-{number:06}",
        "imajin",
        draw.choice(SIZES_MIB),
        device=device,
        node=node,
        gpus=gpus,
        exclusive=draw.random() < 0.2,
        ttl_ms=draw.choice(LIVES_MS) if draw.random() < 0.7 else draw.randint(1, 5_000),
    )
    return Waiting(draw.randrange(50), number, request, shape_of(request, request.priority, {}), 0, None, 0)


def found_by(search: Search) -> list[Waiting]:
    """All whom a search finds."""
    return list(iter(search.next, None))


@pytest.mark.parametrize("seed", range(12))
def test_a_search_finds_all_to_whom_it_may_be_lent_in_their_order(seed: int) -> None:
    draw, fronts = random.Random(seed), Fronts()
    waitlist = Waitlist(fronts.follow)
    most = draw.choice((3, 30, 300))
    for number in range(700):
        waiting = list(waitlist.by_id.values())
        if len(waiting) > draw.randrange(most) or number > 600:
            for each in draw.sample(waiting, min(len(waiting), draw.randint(1, 3))):
                waitlist.remove(each)
        if number <= 600:
            waitlist.add(someone(draw, number))
        firsts = sorted(waitlist.of_shape(shape)[0] for shape in waitlist.shapes())
        assert found_by(Search(fronts.tree.root)) == firsts
        wish = wish_of(someone(draw, 0).shape)
        mine = [each for each in firsts if wish_of(each.shape) == wish]
        lendable: list[Lendable] = [
            (draw.choice(SIZES_MIB), draw.choice((0, 1, 1_000, 1_023, 1_024, 5_000, NEVER_MS))) for _ in range(2)
        ]
        front = fronts.by_wish.get(wish)
        assert found_by(Search(None if front is None else front.branch, lendable)) == [
            each
            for each in mine
            if any(each.shape.vram_mib <= most_mib and each.life_ms <= most_ms for most_mib, most_ms in lendable)
        ]
        if front is not None:
            sizes = [each.shape.vram_mib for each in mine]
            assert (front.least_mib, front.largest_mib()) == (min(sizes), max(sizes))
    for each in list(waitlist.by_id.values()):
        waitlist.remove(each)
    assert fronts.tree.root is None
    assert not fronts.by_wish


@pytest.mark.parametrize("seed", range(12))
def test_each_branch_knows_all_that_is_below_it_and_none_is_left_that_parts_nobody(seed: int) -> None:
    draw, fronts = random.Random(seed), Fronts()
    waitlist = Waitlist(fronts.follow)
    for number in range(250):
        waitlist.add(someone(draw, number))
        if draw.random() < number / 250:
            waitlist.remove(draw.choice(list(waitlist.by_id.values())))
        for branch in fronts.tree.branches():
            assert branch.first is min(branch.firsts)
            assert branch.firsts == [min(all_in(there)) for there in branch.below]
            assert branch.digits.bit_count() == len(branch.below)
        firsts = [each for each in waitlist.by_id.values() if each.is_first]
        for front in fronts.by_wish.values():
            mine = all_in(front.branch)
            assert sorted(mine) == sorted(each for each in firsts if wish_of(each.shape) == front.wish)
            branches = [front.branch]
            for branch in branches:
                shortest_ms = min(each.life_ms for each in all_in(branch))  # in a crowd they are a fifth apart at most
                assert shortest_ms * 0.8 <= branch.shortest_ms <= shortest_ms
                branches += [each for each in branch.below if isinstance(each, Branch)]
            assert all(len(all_in(branch)) > 1 for branch in branches[1:])


def all_in(there: Branch | list[Waiting] | Waiting) -> list[Waiting]:
    """All who stand there or below."""
    if isinstance(there, Branch):
        return [each for below in there.below for each in all_in(below)]
    return [each for each in there if each.is_first] if isinstance(there, list) else [there]


def test_a_search_looks_down_only_where_somebody_may_be_lent_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand who are too large, or live too long, and one behind them all who is and does not."""
    draw, fronts = random.Random(1), Fronts()
    waitlist = Waitlist(fronts.follow)
    for number in range(10_000):
        request = LeaseRequested(
            f"lease-{number:06}", "imajin", draw.randint(1_000, 80_000), ttl_ms=draw.randint(10**6, 10**8)
        )
        waitlist.add(Waiting(number, number, request, shape_of(request, request.priority, {}), 0, None, 0))
    small = LeaseRequested("lease-small", "imajin", 900, ttl_ms=10**7)
    short = LeaseRequested("lease-short", "imajin", 70_000, ttl_ms=10**5)
    for number, request in enumerate((small, short), start=10_000):
        waitlist.add(Waiting(number, number, request, shape_of(request, request.priority, {}), 0, None, 0))
    looked: list[int] = []
    small_enough = Search._small_enough

    def counted(search: Search, branch: Branch, path: int) -> tuple[int, ...]:
        looked.append(path)
        return small_enough(search, branch, path)

    monkeypatch.setattr(Search, "_small_enough", counted)
    root = fronts.by_wish[wish_of(shape_of(small, small.priority, {}))].branch
    assert found_by(Search(root, [(950, NEVER_MS)])) == [waitlist.by_id["lease-small"]]
    assert found_by(Search(root, [(80_000, 200_000)])) == [waitlist.by_id["lease-short"]]
    assert found_by(Search(root, [(899, NEVER_MS), (80_000, 99_999)])) == []
    assert len(looked) < 40
    assert len(found_by(Search(root, ANYTHING))) == len(list(waitlist.shapes()))
