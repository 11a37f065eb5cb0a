"""What answers do to the desk: the whole of a client's judgement, without Redis and without a clock."""

import pytest

from gpuboss.client.answers import settle, take
from gpuboss.client.desk import Ask, sessions_in_use
from gpuboss.client.lease import Lease
from gpuboss.client.link import Look
from gpuboss.client.replies import read_reply
from gpuboss.errors import GPUBossError, LeaseDenied, LeaseImpossible, LeaseLost, LeaseTimeout
from tests.client.clerk import NOW_S, Clerk


def test_a_grant_answers_the_request_with_a_lease(clerk: Clerk) -> None:
    lease = clerk.hold("lease-01", devices=("cuda:1", "cuda:2"), uuids=("GPU-1", "GPU-2"), vram_mib=8192)
    assert str(lease) == lease.lease_id == "lease-01"
    assert (lease.node, lease.device, lease.devices) == ("node-a", "cuda:1", ["cuda:1", "cuda:2"])
    assert (lease.uuids, lease.vram_mib, lease.expires_at_ms, lease.fence) == (["GPU-1", "GPU-2"], 8192, None, 7)
    assert clerk.desk.waiting == {}
    assert list(clerk.desk.held) == ["lease-01"]


def test_leases_are_equal_by_id(clerk: Clerk) -> None:
    lease = clerk.hold("lease-01")
    twin = Lease("lease-01", node="elsewhere", devices=["cuda:9"], uuids=[], vram_mib=1)
    assert lease == twin
    assert len({lease, twin, clerk.hold("lease-02")}) == 2
    assert lease != "lease-01"


def test_another_sessions_answers_do_nothing(clerk: Clerk) -> None:
    clerk.ask("lease-01")
    for session in ("session-of-a-twin", None):
        clerk.grant("lease-01", session=session)
        clerk.grant("lease-99", session=session)
    assert clerk.told["lease-01"] == []
    assert settle(clerk.desk) == []


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("timeout", LeaseTimeout),
        ("impossible", LeaseImpossible),
        ("cancelled", LeaseDenied),
        ("quota", LeaseDenied),
        ("a reason of a later version", LeaseDenied),
    ],
)
def test_a_denial_is_told_by_its_reason(clerk: Clerk, reason: str, error: type[LeaseDenied]) -> None:
    clerk.ask("lease-01")
    clerk.hear("LeaseDenied", lease_id="lease-01", reason=reason, detail="24576 MiB at most")
    [told] = clerk.told["lease-01"]
    assert type(told) is error
    assert (told.lease_id, told.reason, told.detail) == ("lease-01", reason, "24576 MiB at most")
    assert clerk.desk.is_empty


def test_a_rejected_request_is_denied_with_the_reason(clerk: Clerk) -> None:
    clerk.ask("lease-01")
    clerk.hear("EventRejected", lease_id="lease-01", reason="invalid", detail="gpus: at most 1024")
    [told] = clerk.told["lease-01"]
    assert type(told) is LeaseDenied
    assert (told.reason, told.detail) == ("invalid", "gpus: at most 1024")


def test_somebodys_mistaken_renewal_does_not_end_a_wait(clerk: Clerk) -> None:
    clerk.ask("lease-01")
    clerk.hear("EventRejected", lease_id="lease-01", reason="unknown_lease")
    assert clerk.told["lease-01"] == []


def test_a_grant_that_nobody_waits_for_is_given_back_once(clerk: Clerk) -> None:
    clerk.grant("lease-99")
    assert settle(clerk.desk) == ["lease-99"]
    clerk.grant("lease-99")
    assert settle(clerk.desk) == []


def test_an_old_grant_that_has_ended_is_not_given_back(clerk: Clerk) -> None:
    clerk.grant("lease-99")
    clerk.hear("LeaseEnded", lease_id="lease-99", reason="released")
    assert settle(clerk.desk) == []


def test_what_is_on_its_way_back_is_not_given_back_again(clerk: Clerk) -> None:
    clerk.ask("lease-01")
    clerk.desk.leave("lease-01")
    clerk.grant("lease-01")
    assert settle(clerk.desk) == []
    assert clerk.told["lease-01"] == []
    clerk.hear("LeaseEnded", lease_id="lease-01", reason="released")
    assert clerk.desk.is_empty


def test_only_so_many_that_leave_are_remembered(clerk: Clerk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuboss.client.desk.LEAVING_MAX", 2)
    for lease_id in ("lease-01", "lease-02", "lease-03"):
        clerk.desk.leave(lease_id)
    assert list(clerk.desk.leaving) == ["lease-02", "lease-03"]


@pytest.mark.parametrize("reason", ["revoked", "expired", "session_lost", "device_lost", "released"])
def test_a_lease_that_others_end_is_lost(clerk: Clerk, reason: str) -> None:
    lease = clerk.hold("lease-01")
    heard: list[str | None] = []
    lease.when_lost(lambda: heard.append(lease.lost_reason))
    clerk.hear("LeaseEnded", lease_id="lease-01", reason=reason)
    assert lease.is_lost
    assert lease.lost_reason == reason
    assert heard == [reason]
    assert clerk.desk.is_empty


def test_a_lease_that_is_over_when_its_grant_is_read_is_told_so(clerk: Clerk) -> None:
    clerk.ask("lease-01")
    clerk.hear("LeaseEnded", lease_id="lease-01", reason="expired")
    [told] = clerk.told["lease-01"]
    assert isinstance(told, LeaseLost)
    assert told.reason == "expired"


def test_a_grant_repeated_changes_nothing(clerk: Clerk) -> None:
    lease = clerk.hold("lease-01")
    clerk.grant("lease-01")
    assert not lease.is_lost
    assert settle(clerk.desk) == []
    assert clerk.told["lease-01"] == [lease]


def test_what_a_log_that_forgot_it_grants_anew_is_lost_and_given_back_once_unused(
    clerk: Clerk,
) -> None:
    lease = clerk.hold("lease-01", fence=7)
    clerk.grant("lease-01", device="cuda:1", fence=8)
    assert lease.lost_reason == "revoked"
    assert settle(clerk.desk) == [], "it may be on the same device, where we still are"
    assert list(clerk.desk.given_up) == ["lease-01"]


@pytest.mark.parametrize("reason", ["unknown_lease", "not_owner"])
def test_a_lease_that_the_log_disowns_is_lost(clerk: Clerk, reason: str) -> None:
    lease = clerk.hold("lease-01")
    clerk.hear("EventRejected", lease_id="lease-01", reason=reason, session=None)
    assert lease.lost_reason == "revoked"


def test_a_lost_session_is_followed_by_a_new_one_and_its_answers_still_count(clerk: Clerk) -> None:
    lease = clerk.hold("lease-01")
    clerk.ask("lease-02")
    clerk.hear("LeaseDenied", lease_id="lease-02", reason="session_lost")
    assert clerk.desk.session == "session-2"
    clerk.hear("LeaseEnded", lease_id="lease-01", reason="session_lost", session="session-1")
    assert lease.lost_reason == "session_lost"
    assert clerk.desk.session == "session-2"


def test_with_a_session_of_which_one_end_is_told_everything_under_it_is_lost(clerk: Clerk) -> None:
    one, two = clerk.hold("lease-01"), clerk.hold("lease-02")
    clerk.hear("LeaseEnded", lease_id="lease-01", reason="session_lost")
    later = clerk.hold("lease-03")
    assert (one.lost_reason, two.lost_reason, later.lost_reason) == ("session_lost", "session_lost", None)
    assert list(clerk.desk.held) == ["lease-03"]


def test_sessions_are_in_use_while_something_is_open_under_them_and_they_are_not_known_to_be_lost(clerk: Clerk) -> None:
    assert sessions_in_use(clerk.desk) == ["session-1"]
    clerk.hold("lease-01")
    clerk.desk.renew_session()
    clerk.ask("lease-02")
    clerk.desk.renew_session()
    assert sessions_in_use(clerk.desk) == ["session-3", "session-2", "session-1"]
    clerk.desk.leave("lease-01")
    assert sessions_in_use(clerk.desk) == ["session-3", "session-2"]
    clerk.hear("LeaseDenied", lease_id="of-before", reason="session_lost", session="session-2")
    assert sessions_in_use(clerk.desk) == ["session-3"]


def test_a_grant_that_is_read_when_trust_is_over_is_passed_over(clerk: Clerk) -> None:
    clerk.desk.trust.begin(Look(NOW_S - 10, 0, False, 14_000, 0, "first"))
    clerk.ask("lease-01")
    clerk.grant("lease-01")
    assert clerk.told["lease-01"] == []
    assert list(clerk.desk.waiting) == ["lease-01"]
    assert settle(clerk.desk) == []
    clerk.desk.trust.begin(Look(NOW_S - 9, 0, False, 14_000, 0, "first"))
    clerk.grant("lease-01")
    assert list(clerk.desk.held) == ["lease-01"]


# ---------------------------------------------------------------- the end of a lease


def test_a_lease_ends_by_our_own_clock_counted_from_receipt(clerk: Clerk) -> None:
    lease = clerk.hold("lease-01", now_ms=50_000, expires_at_ms=52_000)
    other = clerk.hold("lease-02")
    assert clerk.desk.next_expiry_s() == NOW_S + 2
    clerk.desk.expire(NOW_S + 1.9)
    assert not lease.is_lost
    clerk.desk.expire(NOW_S + 2)
    assert lease.lost_reason == "expired"
    assert clerk.desk.next_expiry_s() is None
    assert not other.is_lost


def test_a_renewal_moves_the_end(clerk: Clerk) -> None:
    lease = clerk.hold("lease-01", now_ms=50_000, expires_at_ms=52_000)
    clerk.hear("LeaseExtended", lease_id="lease-01", cause="1-1", now_ms=51_000, expires_at_ms=61_000)
    assert lease.expires_at_ms == 61_000
    assert clerk.desk.next_expiry_s() == NOW_S + 10
    clerk.desk.expire(NOW_S + 9)
    assert not lease.is_lost


def test_what_ended_by_itself_and_is_granted_again_is_not_given_back_while_it_may_be_in_use(clerk: Clerk) -> None:
    lease = clerk.hold("lease-01", expires_at_ms=12_000, now_ms=10_000)
    clerk.desk.expire(NOW_S + 2)
    assert lease.lost_reason == "expired"
    clerk.grant("lease-01", expires_at_ms=12_000, now_ms=10_000)  # the answer to a question that was repeated before
    assert settle(clerk.desk) == []
    assert list(clerk.desk.given_up) == ["lease-01"]
    clerk.hear("LeaseEnded", lease_id="lease-01", reason="expired")
    assert not clerk.desk.given_up
    assert clerk.desk.is_empty


def test_a_grant_read_late_is_corrected_by_its_repetition(clerk: Clerk) -> None:
    clerk.hold("lease-01", now_ms=50_000, expires_at_ms=52_000)
    clerk.grant("lease-01", now_ms=51_500, expires_at_ms=52_000)
    assert clerk.desk.next_expiry_s() == NOW_S + 0.5


@pytest.mark.parametrize("kind", ["LeaseGranted", "LeaseExtended"])
@pytest.mark.parametrize(("now_ms", "expires_at_ms"), [(50_000, 99_000), (51_000, 61_000)])
def test_an_old_word_read_again_prolongs_nothing(clerk: Clerk, kind: str, now_ms: int, expires_at_ms: int) -> None:
    clerk.hold("lease-01", now_ms=50_000, expires_at_ms=52_000)
    clerk.hear("LeaseExtended", lease_id="lease-01", cause="1-1", now_ms=51_000, expires_at_ms=61_000)
    again = {"lease_id": "lease-01", "device": "cuda:0", "fence": 7}
    clerk.hear(kind, NOW_S + 5, now_ms=now_ms, expires_at_ms=expires_at_ms, **again)
    assert clerk.desk.next_expiry_s() == NOW_S + 10


def test_a_request_to_yield_is_a_deadline_on_our_own_clock(clerk: Clerk) -> None:
    lease = clerk.hold("lease-01")
    clerk.hear("YieldRequested", lease_id="lease-01", now_ms=50_000, deadline_ms=65_000)
    assert lease.deadline == NOW_S + 15
    clerk.hear("YieldRequested", NOW_S + 3, lease_id="lease-01", now_ms=50_000, deadline_ms=65_000)
    assert lease.deadline == NOW_S + 15


# ---------------------------------------------------------------- renewals


def test_renewals_are_answered_in_their_order_and_each_once(clerk: Clerk) -> None:
    clerk.hold("lease-01")
    told: list[tuple[str, GPUBossError | None]] = []
    held = clerk.desk.held["lease-01"]
    held.asked += [
        Ask("extended", lambda answer: told.append(("first", answer))),
        Ask("extended", lambda answer: told.append(("second", answer))),
    ]
    clerk.hear("LeaseExtended", lease_id="lease-01", cause="5-0", now_ms=1, expires_at_ms=9)
    clerk.hear("LeaseExtended", lease_id="lease-01", cause="5-0", now_ms=1, expires_at_ms=9)  # read again
    assert told == [("first", None)]
    clerk.hear("EventRejected", lease_id="lease-01", cause="5-1", reason="reserved", detail="somebody waits for it")
    assert told[1][0] == "second"
    assert isinstance(told[1][1], LeaseDenied)
    assert told[1][1].reason == "reserved"


def test_a_renewal_of_a_lease_that_ends_is_told_so(clerk: Clerk) -> None:
    clerk.hold("lease-01")
    told: list[GPUBossError | None] = []
    clerk.desk.held["lease-01"].asked.append(Ask("extended", told.append))
    clerk.hear("LeaseEnded", lease_id="lease-01", reason="revoked")
    assert isinstance(told[0], LeaseLost)


# ---------------------------------------------------------------- what is no answer


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"type": b"LeaseGranted"},
        {b"type": b"LeaseGranted", b"data": b"{"},
        {b"type": b"LeaseGranted", b"data": b'{"lease_id": 5}'},
        {b"type": b"\xff", b"data": b"{}"},
        {b"type": b"LeaseGranted", b"data": b"[" * 100_000},
    ],
)
def test_what_no_scheduler_can_have_written_is_skipped(fields: dict[bytes, bytes]) -> None:
    assert read_reply(fields) is None


def test_unknown_fields_and_types_are_skipped(clerk: Clerk) -> None:
    told = read_reply({b"type": b"LeaseGlorified", b"data": b'{"lease_id": "lease-01", "glory": {"x": [1]}}'})
    assert told is not None
    kind, reply = told
    clerk.ask("lease-01")
    take(clerk.desk, kind, reply, NOW_S)
    assert clerk.told["lease-01"] == []


def test_a_grant_of_no_device_is_none(clerk: Clerk) -> None:
    clerk.ask("lease-01")
    clerk.grant("lease-01", device="")
    assert clerk.told["lease-01"] == []
