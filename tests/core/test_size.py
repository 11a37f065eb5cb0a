"""What a decision costs while the queue grows: nodes, places and reservations are counted, not time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gpuboss.core import granting
from gpuboss.core.outlook import Outlook
from gpuboss.core.tournament import Search
from scripts.bench_size import Farm, fill, refills, submits

FEW, MANY, DEVICES, ROUNDS = 1_000, 10_000, 100, 60


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every place and reservation that is looked for, every node of the tree that is opened, every profile made."""
    seen: list[str] = []

    def count(owner: Any, name: str) -> None:
        counted: Callable[..., Any] = getattr(owner, name)

        def counting(*given: Any, **named: Any) -> Any:
            seen.append(name)
            return counted(*given, **named)

        monkeypatch.setattr(owner, name, counting)

    for owner, name in ((granting, "place"), (granting, "reserve"), (Search, "_small_enough"), (Outlook, "_profile")):
        count(owner, name)
    return seen


def test_ten_times_as_many_who_wait_cost_a_decision_hardly_more(looks: list[str]) -> None:
    farm = Farm(DEVICES)
    of_submits, of_refills = [], []
    for waiting in (FEW, MANY):
        fill(farm, waiting)
        looks.clear()
        submits(farm, ROUNDS)
        of_submits.append(len(looks) / ROUNDS)
        looks.clear()
        refills(farm, ROUNDS)
        of_refills.append(len(looks) / ROUNDS)
    assert of_submits[1] <= 2 * of_submits[0] + 2, of_submits
    assert of_refills[1] <= 2 * of_refills[0] + 10, of_refills


def test_a_release_makes_the_profiles_of_its_own_devices_alone(looks: list[str]) -> None:
    farm = Farm(DEVICES)
    fill(farm, FEW)
    refills(farm, 5)
    looks.clear()
    refills(farm, ROUNDS)
    assert looks.count("_profile") < 40 * ROUNDS
    assert looks.count("reserve") <= farm.state.policy.reservations * ROUNDS
