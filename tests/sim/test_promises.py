"""The account that is kept of a log while it is written: what it sees."""

import json
from typing import Any

import pytest

from tests.sim.promises import Promises


def blamed(*entries: tuple[str, dict[str, Any]], limits_mib: dict[str, int] | None = None) -> list[str]:
    """What is wrong with a log of these entries, numbered as one scheduler's."""
    problems: list[str] = []
    promises = Promises(problems.append, set(), set(), limits_mib=limits_mib)
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


@pytest.mark.parametrize("moves", [False, True])
def test_a_grant_behind_a_gap_that_moves_to_behind_the_election_was_none(moves: bool) -> None:
    problems: list[str] = []
    promises = Promises(problems.append, set(), set(), has_gap=True)
    grant = granted("lost", 6_000, 1)
    stale = grant[0], grant[1] | {"epoch": 1, "seq": 7}
    anew = LOST[0], LOST[1] | {"epoch": 2, "seq": 1}
    device = DEVICE[0], DEVICE[1] | {"epoch": 2, "seq": 2}
    other = granted("other", 6_000, 11)
    for kind, data in (
        stale,
        anew,
        device,
        *((stale,) if moves else ()),
        (other[0], other[1] | {"epoch": 2, "seq": 3}),
    ):
        promises.take("1-0", [b"type", kind.encode(), b"data", json.dumps(data).encode()])
    assert problems == ([] if moves else ["S1: 1-0 promises 12000 MiB on node/cuda:0, which has 10000"])


TOTAL_MIB = 10_000
DEVICE: tuple[str, dict[str, Any]] = (
    "DeviceObserved",
    {"node": "node", "device": "cuda:0", "total_mib": TOTAL_MIB},
)


def granted(lease_id: str, vram_mib: int, fence: int, service: str = "worker") -> tuple[str, dict[str, Any]]:
    """A grant of that much on the only device."""
    about = {"lease_id": lease_id, "service": service, "vram_mib": vram_mib, "fence": fence}
    return "LeaseGranted", {"node": "node", "devices": ["cuda:0"]} | about


def asked_back(lease_id: str, wanted_by: str | None) -> tuple[str, dict[str, Any]]:
    """A lease is asked back for a request."""
    return "YieldRequested", {"lease_id": lease_id, "for": wanted_by}


def requested(lease_id: str, vram_mib: int, **others: Any) -> tuple[str, dict[str, Any]]:
    """Somebody asks for that much."""
    return "LeaseRequested", {"lease_id": lease_id, "service": "worker", "vram_mib": vram_mib} | others


BEGUN = (ELECTED, DEVICE)
RELEASED: tuple[str, dict[str, Any]] = ("LeaseEnded", {"lease_id": "warm", "freed": True})
PLANNED = (*BEGUN, granted("warm", 6_000, 1), requested("large", 8_000), asked_back("warm", "large"))


@pytest.mark.parametrize("kind", ["LeaseStateChanged", "YieldRequested"])
def test_a_lease_that_was_asked_back_is_neither_revived_nor_asked_again(kind: str) -> None:
    again: tuple[str, dict[str, Any]] = (kind, {"lease_id": "warm", "state": "held", "for": None})
    assert blamed(*BEGUN, granted("warm", 6_000, 1), asked_back("warm", None), again) == [
        f"warm was asked back, and there is a {kind} of it behind that"
    ]


@pytest.mark.parametrize("given_back", [(), (RELEASED,)])
def test_what_was_asked_back_for_one_is_lent_to_no_other(given_back: tuple[tuple[str, dict[str, Any]], ...]) -> None:
    assert blamed(*PLANNED, *given_back, granted("small", 2_000, 2)) == []
    problems = blamed(*PLANNED, *given_back, granted("small", 2_001, 2))
    assert problems == [f"{len(PLANNED) + len(given_back) + 1}-0 lends on node/cuda:0 what was asked back for large"]


@pytest.mark.parametrize(
    "over",
    [
        ("LeaseDenied", {"lease_id": "large"}),
        granted("large", 8_000, 2),
        ("SchedulerElected", {"scheduler": "b", "incarnation": "log-2", "lost": {"last_id": "9-0", "fence": 9}}),
    ],
)
def test_nothing_is_held_for_who_waits_no_more(over: tuple[str, dict[str, Any]]) -> None:
    assert blamed(*PLANNED, RELEASED, over, granted("other", 10_000, 20)) == (
        [] if over[0] != "LeaseGranted" else [f"S1: 8-0 promises 18000 MiB on node/cuda:0, which has {TOTAL_MIB}"]
    )


def test_whose_service_may_hold_no_more_has_nothing_held() -> None:
    assert blamed(*PLANNED, granted("small", 2_001, 2, "other"), limits_mib={"worker": 8_000}) == []


def test_an_empty_device_is_held_for_who_shares_it_with_nobody() -> None:
    asked = requested("alone", 1_000, exclusive=True)
    log = (*BEGUN, granted("warm", 6_000, 1), asked, asked_back("warm", "alone"), granted("small", 1, 2))
    assert blamed(*log) == ["6-0 lends on node/cuda:0 what was asked back for alone"]


def test_what_was_asked_back_has_an_end() -> None:
    problems: list[str] = []
    promises = Promises(problems.append, set(), set())
    for seq, (kind, data) in enumerate((*BEGUN, granted("warm", 1, 1), asked_back("warm", None), RELEASED), start=1):
        assert promises.not_given_back() == (["warm"] if kind == "LeaseEnded" else [])
        stamped = {"epoch": 1, "seq": seq} | data
        promises.take(f"{seq}-0", [b"type", kind.encode(), b"data", json.dumps(stamped).encode()])
    assert promises.not_given_back() == problems == []


def test_no_service_is_lent_more_than_its_limit() -> None:
    log = (*BEGUN, granted("a", 3_000, 1), granted("b", 1_000, 2), granted("c", 5_000, 3, "other"))
    assert blamed(*log, limits_mib={"worker": 4_000}) == []
    assert blamed(*log, limits_mib={"worker": 3_999}) == ["4-0 lends worker 4000 MiB in all, whose limit is 3999"]


@pytest.mark.parametrize(("cause", "problems"), [("3-0", []), ("4-0", ["S1: 5-0 promises 12000 MiB on node/cuda:0"])])
def test_what_is_reasserted_counts_for_what_is_decided_behind_it(cause: str, problems: list[str]) -> None:
    held = {"lease_id": "old", "service": "worker", "node": "node", "devices": ["cuda:0"], "vram_mib": 6_000}
    grant = granted("new", 6_000, 1)
    log = (*BEGUN, requested("new", 6_000), ("LeaseReasserted", held), (grant[0], grant[1] | {"cause": cause}))
    found = blamed(*log)
    assert [problem.partition(",")[0] for problem in found] == problems
