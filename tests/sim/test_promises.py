"""The account that is kept of a log while it is written: what it sees."""

import json
from typing import Any

import pytest

from tests.sim.promises import Promises


def blamed(*entries: tuple[str, dict[str, Any]]) -> list[str]:
    """What is wrong with a log of these entries, numbered as one scheduler's."""
    problems: list[str] = []
    promises = Promises(problems.append, set(), set())
    for seq, (kind, data) in enumerate(entries, start=1):
        stamped: dict[str, Any] = {"epoch": 2 if "lost" in data else promises.epoch or 1, "seq": seq} | data
        promises.take(f"{seq}-0", [b"type", kind.encode(), b"data", json.dumps(stamped).encode()])
    return problems


ELECTED: tuple[str, dict[str, Any]] = ("SchedulerElected", {"scheduler": "a", "incarnation": "log-1"})
LOST: tuple[str, dict[str, Any]] = (
    "SchedulerElected",
    {"scheduler": "b", "incarnation": "log-2", "lost": {"last_id": "9-0", "fence": 9}},
)
ENDED: tuple[str, dict[str, Any]] = ("LeaseEnded", {"lease_id": "a", "freed": True})


def test_a_lease_that_ended_before_a_loss_does_not_end_once_more() -> None:
    assert blamed(ELECTED, ENDED, LOST, ENDED) == ["a had ended, and is believed to be held once more"]


@pytest.mark.parametrize("seq", [2, 7])
def test_what_stands_behind_a_gap_nobody_knows_after_a_loss(seq: int) -> None:
    ended: tuple[str, dict[str, Any]] = ("LeaseEnded", {"lease_id": "a", "freed": True, "seq": seq})
    problems: list[str] = []
    promises = Promises(problems.append, set(), set(), has_gap=True)
    for number, (kind, data) in enumerate((ELECTED, ended), start=1):
        stamped: dict[str, Any] = {"epoch": 1, "seq": number} | data
        promises.take(f"{number}-0", [b"type", kind.encode(), b"data", json.dumps(stamped).encode()])
    assert list(promises._over) == (["a"] if seq == 2 else [])
