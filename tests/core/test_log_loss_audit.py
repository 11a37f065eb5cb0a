"""Entries of the log are gone: the auditor sees who was believed, granted or denied without right."""

from __future__ import annotations

from typing import Any

import pytest

from gpuboss.events import (
    EventRejected,
    LeaseDenied,
    LeaseGranted,
    LeaseReasserted,
    LeaseRequested,
    LeaseRevoked,
)
from tests.core.auditor import Audit, audit
from tests.core.lossy import (
    LOST_FENCE,
    RECOVERY_MS,
    Lossy,
    reasserted,
    recovering,
    recovery,
)
from tests.core.scenario import (
    NODE,
    SERVICE,
    START_MS,
    padded,
    session_lost,
)

# ---------------------------------------------------------------- the auditor


def test_the_auditor_has_nothing_against_a_recovery():
    scenario = recovery()
    assert audit(scenario.entries) == []
    standings = {lease_id.rstrip("_"): each.standing for lease_id, each in Audit(scenario.entries).accounts.items()}
    assert standings["alone"] == "reclaiming", "it knows of the leases that were taken over, and of their ends"
    assert standings["pair"] == "held"


def lied(*decisions: Any, loses: bool = True, after_ms: int = 0) -> list[str]:
    """What the auditor says of a log in which `a` asks, the end is near or not, and the scheduler decides this."""
    scenario = Lossy(24_576)
    if loses:
        scenario.loses()
    scenario.write(LeaseRequested(padded("a"), SERVICE, 8_192))
    cause = scenario.entries[-1].id
    scenario.now_ms += after_ms
    for decision in decisions:
        scenario.stamp(decision(cause))
    scenario.append(b"nothing", b"at all")
    scenario.stamp(EventRejected(scenario.entries[-1].id, "malformed", "so it is", cause=scenario.entries[-1].id))
    return audit(scenario.entries)


def grant_of_a(cause: str, fence: int = LOST_FENCE + 1) -> LeaseGranted:
    """A grant that would be right but for the recovery."""
    where: dict[str, Any] = {"node": NODE, "device": "cuda:0", "devices": ("cuda:0",), "uuids": ("GPU-alpha-0",)}
    when: dict[str, Any] = {"granted_at_ms": START_MS, "expires_at_ms": None, "waited_ms": 0}
    of: dict[str, Any] = {"lease_id": padded("a"), "service": SERVICE, "vram_mib": 8_192}
    return LeaseGranted(cause=cause, fence=fence, **of, **where, **when)


def denial_of_a(cause: str) -> LeaseDenied:
    """A denial that would pass but for the recovery."""
    return LeaseDenied(padded("a"), SERVICE, "impossible", "so it is", cause=cause)


def test_the_auditor_sees_a_grant_in_the_recovery():
    assert lied(grant_of_a, loses=False) == []
    assert any("still have the word" in problem for problem in lied(grant_of_a))


def test_the_auditor_sees_a_denial_in_the_recovery():
    assert lied(denial_of_a, loses=False) == []
    assert any("denies as impossible" in problem for problem in lied(denial_of_a))


@pytest.mark.parametrize("loses", [False, True])
def test_the_auditor_sees_that_who_waits_is_revoked_in_the_recovery(loses: bool) -> None:
    scenario = Lossy(24_576)
    scenario.request("holder", 24_576)
    scenario.request("a", 8_192)
    if loses:
        scenario.loses()
    scenario.write(LeaseRevoked(padded("a"), "so it is", "operator"))
    cause = scenario.entries[-1].id
    scenario.stamp(LeaseDenied(padded("a"), SERVICE, "cancelled", "so it is", cause=cause))
    assert any("denies as cancelled" in problem for problem in audit(scenario.entries)) is loses


def taken_over(*said: LeaseReasserted, loses: bool = True) -> list[str]:
    """What the auditor says of a scheduler that believes all this without a word."""
    scenario = Lossy(24_576)
    scenario.request("over", 1)
    scenario.release("over")
    scenario.request("held", 1)
    scenario.happens(session_lost("dead"))
    if loses:
        scenario.loses()
    for each in said:
        scenario.write(each)
    scenario.append(b"nothing", b"at all")
    scenario.stamp(EventRejected(scenario.entries[-1].id, "malformed", "so it is", cause=scenario.entries[-1].id))
    return audit(scenario.entries)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("which is over", reasserted("over")),
        ("which is held", reasserted("held", service="stranger")),
        ("nobody lives", reasserted("a", session="dead")),
        ("nobody lives", reasserted("a", state="reclaiming")),
        ("cannot be", reasserted("a", 7)),
        ("cannot be", reasserted("a", devices=[])),
        ("cannot be", reasserted("a", 0, 0)),
    ],
)
def test_the_auditor_sees_who_should_not_have_been_believed(words, said):
    assert taken_over(reasserted("a"), reasserted("held")) == []
    assert any(words in problem for problem in taken_over(said))


def test_the_auditor_sees_who_was_believed_though_nothing_was_lost():
    assert any("nothing was lost" in problem for problem in taken_over(reasserted("a"), loses=False))


def test_the_auditor_sees_a_grant_where_leases_taken_over_leave_no_room():
    scenario = recovering()
    scenario.reasserts("b", vram_mib=20_000)
    scenario.tick(RECOVERY_MS)
    scenario.write(LeaseRequested(padded("a"), SERVICE, 8_192))
    granted = grant_of_a(scenario.entries[-1].id)
    scenario.stamp(granted)
    assert any("promises 28192 MiB" in problem for problem in audit(scenario.entries))


def test_the_auditor_sees_a_fence_that_was_said_already():
    scenario = recovering()
    scenario.reasserts("b", vram_mib=1, fence=LOST_FENCE + 1)
    scenario.write(LeaseRequested(padded("a"), SERVICE, 8_192))
    scenario.stamp(grant_of_a(scenario.entries[-1].id))
    assert any("a fence or a time that does not grow" in problem for problem in audit(scenario.entries))
