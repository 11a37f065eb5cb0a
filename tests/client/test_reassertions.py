"""What a client says again: to a scheduler that may have missed it, and to a log that was begun anew."""

import msgspec
import pytest

from gpuboss.client.answers import ENDED_MAX, settle
from gpuboss.client.desk import Ask, give_up, reassertions, repetitions
from gpuboss.client.link import encoded
from gpuboss.core.door import read_event
from gpuboss.errors import GPUBossError, LeaseLost
from gpuboss.events import LeaseReasserted, LeaseReleased, LeaseRequested
from tests.client.clerk import NOW_S, Clerk


def test_everything_open_is_repeated_as_it_was_asked(clerk: Clerk) -> None:
    clerk.hold("lease-01")
    clerk.ask("lease-02")
    clerk.hold("lease-03")
    clerk.desk.leave("lease-03")
    first, *requests = repetitions(clerk.desk)
    assert first == LeaseReleased("lease-03", "painter")
    again = {request.lease_id: request for request in requests}
    assert again.keys() == {"lease-01", "lease-02"}
    assert again["lease-01"] == clerk.desk.held["lease-01"].request


def test_what_was_given_up_is_not_released_before_its_user_says_so(clerk: Clerk) -> None:
    clerk.hold("lease-01")
    give_up(clerk.desk, "lease-01", "session_lost")
    assert list(repetitions(clerk.desk)) == []
    assert list(reassertions(clerk.desk)) == []


def test_to_a_new_log_leases_are_asserted_and_not_requested_again(clerk: Clerk) -> None:
    clerk.hold("lease-01", granted_at_ms=49_000, expires_at_ms=60_000, now_ms=50_000, vram_mib=8192)
    clerk.ask("lease-02")
    said = {event.lease_id: event for event in reassertions(clerk.desk)}
    assert isinstance(said["lease-02"], LeaseRequested)
    assert said["lease-01"] == LeaseReasserted(
        lease_id="lease-01",
        service="painter",
        node="node-a",
        device="cuda:0",
        devices=["cuda:0"],
        vram_mib=8192,
        priority="normal",
        state="held",
        granted_at_ms=49_000,
        expires_at_ms=60_000,
        fence=7,
        session="session-1",
    )


def test_an_assertion_says_who_else_may_be_there_whether_it_may_be_taken_and_where_it_is_answered(clerk: Clerk) -> None:
    clerk.ask("lease-01", exclusive=True, instance="replica-1", preemptible=False)
    clerk.grant("lease-01", vram_mib=8192)
    [said] = reassertions(clerk.desk)
    assert isinstance(said, LeaseReasserted)
    assert (said.exclusive, said.instance, said.preemptible) == (True, "replica-1", False)
    assert read_event([b"type", b"LeaseReasserted", b"data", encoded(said)]) == said


@pytest.mark.parametrize("is_done", [False, True])
def test_to_a_new_log_what_the_old_one_ended_is_released_once_nobody_uses_it(clerk: Clerk, is_done: bool) -> None:
    clerk.hold("lease-01")
    clerk.hear("LeaseEnded", lease_id="lease-01", session="session-1", reason="revoked")
    assert clerk.desk.ended == {"lease-01": False}
    clerk.desk.ended["lease-01"] = is_done
    assert list(reassertions(clerk.desk)) == ([LeaseReleased("lease-01", "painter")] if is_done else [])
    assert list(clerk.desk.given_up) == ([] if is_done else ["lease-01"])
    assert clerk.desk.ended == {}


def test_to_a_new_log_what_was_released_and_ended_is_released_again(clerk: Clerk) -> None:
    clerk.hold("lease-01")
    clerk.desk.leave("lease-01")
    clerk.hear("LeaseEnded", lease_id="lease-01", session="session-1", reason="released")
    assert list(repetitions(clerk.desk)) == []
    assert list(reassertions(clerk.desk)) == [LeaseReleased("lease-01", "painter")]


def test_of_what_ended_only_the_last_is_known(clerk: Clerk) -> None:
    for number in range(ENDED_MAX + 1):
        clerk.hold(f"lease-{number:04}")
        clerk.desk.leave(f"lease-{number:04}")
        clerk.hear("LeaseEnded", lease_id=f"lease-{number:04}", reason="released")
    assert len(list(reassertions(clerk.desk))) == ENDED_MAX
    assert "lease-0000" not in clerk.desk.leaving


def test_to_a_new_log_releases_are_said_first(clerk: Clerk) -> None:
    clerk.hold("lease-01", vram_mib=8192)
    clerk.ask("lease-02")
    for lease_id in ("lease-03", "lease-04"):
        clerk.hold(lease_id)
        clerk.desk.leave(lease_id)
    clerk.hear("LeaseEnded", lease_id="lease-04", reason="released")
    *released, first, second = reassertions(clerk.desk)
    assert released == [LeaseReleased("lease-03", "painter"), LeaseReleased("lease-04", "painter")]
    assert {other.lease_id for other in (first, second)} == {"lease-01", "lease-02"}


def test_a_release_of_what_a_new_log_does_not_know_is_over(clerk: Clerk) -> None:
    clerk.hold("lease-01")
    clerk.desk.leave("lease-01")
    clerk.hear("EventRejected", lease_id="lease-01", cause="1-1", reason="unknown_lease", session=None)
    assert clerk.desk.is_empty


def test_a_lease_whose_assertion_is_answered_with_its_grant_goes_on(clerk: Clerk) -> None:
    lease = clerk.hold("lease-01", expires_at_ms=60_000, now_ms=50_000)
    list(reassertions(clerk.desk))
    clerk.grant("lease-01", expires_at_ms=60_000, now_ms=52_000)
    assert not lease.is_lost
    assert clerk.desk.next_expiry_s() == NOW_S + 8
    assert settle(clerk.desk) == []


@pytest.mark.parametrize("expires_at_ms", [None, 60_000])
def test_the_log_can_read_an_assertion_with_and_without_its_nulls(clerk: Clerk, expires_at_ms: int | None) -> None:
    clerk.hold("lease-01", granted_at_ms=49_000, expires_at_ms=expires_at_ms, now_ms=50_000, vram_mib=8192)
    [said] = reassertions(clerk.desk)
    for data in (encoded(said), msgspec.json.encode(said)):
        assert read_event([b"type", b"LeaseReasserted", b"data", data]) == said


@pytest.mark.parametrize("reason", ["unknown_lease", "not_owner", "invalid", "malformed", "too_large", "unknown_type"])
def test_a_lease_whose_assertion_is_refused_is_lost(clerk: Clerk, reason: str) -> None:
    lease = clerk.hold("lease-01")
    told: list[GPUBossError | None] = []
    clerk.desk.held["lease-01"].asked.append(Ask("extended", told.append))
    list(reassertions(clerk.desk))
    clerk.hear("EventRejected", lease_id="lease-01", cause="1-1", reason=reason)
    assert (lease.is_lost, lease.lost_reason) == (True, "revoked")
    assert [type(answer) for answer in told] == [LeaseLost]


@pytest.mark.parametrize("reason", ["invalid", "malformed"])
def test_somebodys_broken_event_about_a_lease_that_was_not_asserted_does_not_end_it(clerk: Clerk, reason: str) -> None:
    lease = clerk.hold("lease-01")
    clerk.hear("EventRejected", lease_id="lease-01", cause="1-1", reason=reason, session=None)
    assert not lease.is_lost
