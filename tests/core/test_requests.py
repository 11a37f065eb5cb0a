"""Asking: one answer a request, the same answer to the same request, and a release that may be repeated."""

import pytest
from msgspec.structs import replace

from gpuboss.events import EventRejected, LeaseDenied, LeaseGranted, LeaseReleased, LeaseRequested
from tests.core.scenario import START_MS, Scenario, padded, renewed, session_lost

DAY_MS = 24 * 60 * 60 * 1000


def test_a_request_that_fits_is_granted_with_all_that_its_holder_needs():
    scenario = Scenario(24_576)
    scenario.now_ms += 5
    scenario.request("a", 8_192, session="s", instance="left", ttl_ms=1_000)
    [told] = scenario.heard
    assert told.decision == LeaseGranted(
        cause=f"{START_MS + 5}-0",
        session="s_______",
        lease_id="a_______",
        service="imajin",
        node="alpha",
        device="cuda:0",
        devices=("cuda:0",),
        uuids=("GPU-alpha-0",),
        vram_mib=8_192,
        granted_at_ms=START_MS + 5,
        expires_at_ms=START_MS + 1_005,
        waited_ms=0,
        fence=1,
    )
    assert (told.address, told.is_new) == ("imajin:left", True)


def test_a_request_without_ttl_never_expires():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192)
    assert scenario.last.expires_at_ms is None
    assert scenario.tick(after_ms=365 * DAY_MS) == []


def test_fences_only_grow():
    scenario = Scenario(24_576)
    fences = []
    for name in "abcdef":
        scenario.request(name, 8_192)
        fences.append(scenario.last.fence)
        scenario.release(name)
    assert fences == [1, 2, 3, 4, 5, 6]


def test_a_request_that_does_not_fit_waits_and_the_grant_says_how_long():
    scenario = Scenario(24_576)
    scenario.request("a", 20_000)
    assert scenario.request("b", 8_192) == []
    scenario.now_ms += 70
    assert scenario.release("a") == ["ended a: released, freed", "granted b on cuda:0"]
    assert scenario.last.waited_ms == 70


def test_nobody_waits_for_devices_that_are_not_known_yet_in_vain():
    scenario = Scenario()
    assert scenario.request("a", 8_192) == []
    assert scenario.request("b", 8_192, device="cuda:7", gpus=3) == []
    assert scenario.device(0, 24_576) == ["denied b: impossible", "granted a on cuda:0"]


def test_a_waiting_request_times_out_and_the_detail_says_after_what():
    scenario = Scenario(24_576)
    scenario.request("a", 24_576)
    scenario.request("b", 8_192, wait_ms=100)
    assert scenario.tick(after_ms=99) == []
    assert scenario.tick(after_ms=1) == ["denied b: timeout"]
    assert "100 ms" in scenario.last.detail
    assert scenario.release("a") == ["ended a: released, freed"]


def test_a_granted_request_does_not_time_out():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192, wait_ms=100)
    scenario.request("b", 24_576, wait_ms=100)
    scenario.now_ms += 50
    assert scenario.release("a") == ["ended a: released, freed", "granted b on cuda:0"]
    assert scenario.tick(after_ms=1_000) == []


def test_releasing_what_waits_takes_it_back():
    scenario = Scenario(24_576)
    scenario.request("a", 24_576)
    scenario.request("b", 8_192)
    assert scenario.release("b") == ["denied b: cancelled"]
    assert scenario.release("a") == ["ended a: released, freed"]


def test_revoking_what_waits_takes_it_back_and_says_who_did():
    scenario = Scenario(24_576)
    scenario.request("a", 24_576)
    scenario.request("b", 8_192)
    assert scenario.revoke("b", grace_ms=5_000) == ["denied b: cancelled"]
    assert scenario.last.detail == "revoked by root: maintenance"


@pytest.mark.parametrize("ending", ["waits", "held", "denied", "ended"])
def test_the_same_request_is_answered_again_and_the_log_does_not_grow_by_it(ending):
    scenario = Scenario(24_576)
    scenario.request("big", 24_576 if ending in ("waits", "denied") else 1)
    scenario.request("a", 8_192, wait_ms=100)
    if ending == "denied":
        scenario.tick(after_ms=100)
    if ending == "ended":
        scenario.release("a")
    told = {
        "waits": [],
        "held": ["again granted a on cuda:0"],
        "denied": ["again denied a: timeout"],
        "ended": ["again granted a on cuda:0", "again ended a: released, freed"],
    }
    before = len(scenario.entries)
    assert scenario.request("a", 8_192, wait_ms=100) == told[ending]
    assert len(scenario.entries) == before + 1, "the request itself, and no decision"


def test_what_is_told_again_is_what_was_told_then():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192, session="s", instance="left")
    scenario.release("a")
    first = [told.decision for told in scenario.heard]
    scenario.now_ms += 60_000
    scenario.request("a", 8_192, session="s", instance="left")
    again = scenario.heard[len(first) :]
    assert [told.decision for told in again] == first
    assert {told.address for told in again} == {"imajin:left"}


def test_a_grant_told_again_says_when_the_lease_ends_now():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192, ttl_ms=100)
    scenario.says(renewed("a", 5_000))
    scenario.request("a", 8_192, ttl_ms=100)
    granted = scenario.heard[0].decision
    assert scenario.last == replace(granted, expires_at_ms=START_MS + 5_000)


@pytest.mark.parametrize("changed", [{"pid": 5}, {"model": "sdxl"}, {"traceparent": "00-abc"}, {}])
def test_what_a_retry_may_change(changed):
    scenario = Scenario(24_576)
    scenario.request("a", 8_192, pid=4, model="flux", traceparent="00-xyz")
    assert scenario.request("a", 8_192, **changed) == ["again granted a on cuda:0"]


def test_defaults_and_unknown_fields_make_no_other_request():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192)
    data = b'{"vram_mib":8192,"service":"imajin","lease_id":"a_______","priority":"normal","gpus":1,"note":[1]}'
    assert scenario.writes(b"LeaseRequested", data) == ["again granted a on cuda:0"]


@pytest.mark.parametrize("ending", ["waits", "held", "denied", "ended"])
@pytest.mark.parametrize(
    "changed",
    [
        {"vram_mib": 8_193},
        {"service": "other"},
        {"priority": "high"},
        {"device": "cuda:0"},
        {"node": "alpha"},
        {"gpus": 2},
        {"exclusive": True},
        {"ttl_ms": 5},
        {"wait_ms": 101},
        {"reclaimable": True},
        {"preemptible": False},
        {"instance": "left"},
        {"session": "session-1"},
    ],
    ids=str,
)
def test_the_same_id_with_other_fields_is_a_duplicate(ending, changed):
    scenario = Scenario(24_576)
    scenario.request("big", 24_576 if ending in ("waits", "denied") else 1)
    request = LeaseRequested(padded("a"), "imajin", 8_192, wait_ms=100)
    scenario.says(request)
    if ending == "denied":
        scenario.tick(after_ms=100)
    if ending == "ended":
        scenario.release("a")
    other = replace(request, **changed)
    assert scenario.says(other) == ["rejected a: duplicate"]
    told = scenario.heard[-1]
    assert isinstance(told.decision, EventRejected)
    assert told.decision.service == other.service, "whoever sent it is told"
    assert told.address == (other.service if other.instance is None else f"{other.service}:{other.instance}")


def test_a_release_repeated_changes_nothing():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192)
    scenario.release("a")
    assert scenario.release("a") == []
    assert scenario.release("a") == []


@pytest.mark.parametrize("how", ["denied", "expired", "reclaiming"])
def test_releasing_what_is_over_already_changes_nothing(how):
    scenario = Scenario(24_576, lock_delay_ms=60_000 if how == "reclaiming" else 0)
    scenario.request("a", 99_999 if how == "denied" else 8_192, ttl_ms=10)
    scenario.tick(after_ms=10)
    assert scenario.release("a") == []


@pytest.mark.parametrize("standing", ["waits", "held", "over"])
def test_nobody_touches_anothers_lease(standing):
    scenario = Scenario(24_576)
    scenario.request("big", 24_576 if standing == "waits" else 1)
    scenario.request("a", 8_192)
    if standing == "over":
        scenario.release("a")
    assert scenario.release("a", service="other") == ["rejected a: not_owner"]
    assert scenario.says(renewed("a", 100, service="other")) == ["rejected a: not_owner"]
    assert (scenario.heard[-1].address, scenario.last.service) == ("other", "other")
    assert len(scenario.state.ledger.leases) + len(scenario.state.waitlist.by_id) == (1 if standing == "over" else 2)


def test_a_lease_that_nobody_knows():
    scenario = Scenario(24_576)
    assert scenario.release("x") == ["rejected x: unknown_lease"]
    assert scenario.says(renewed("x", 100)) == ["rejected x: unknown_lease"]
    assert scenario.revoke("x") == ["rejected x: unknown_lease"]
    assert scenario.heard[-1].address is None, "an operator has no reply stream"


def test_a_lease_that_is_not_granted_yet_cannot_be_renewed():
    scenario = Scenario(24_576)
    scenario.request("a", 24_576)
    scenario.request("b", 8_192, session="s", instance="left")
    assert scenario.says(renewed("b", 100)) == ["rejected b: unknown_lease"]
    assert scenario.last.session == padded("s")
    assert scenario.heard[-1].address == "imajin:left", "its owner hears it where it listens"
    assert "not granted yet" in scenario.last.detail


def test_revoking_what_is_over_says_so():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192)
    scenario.release("a")
    assert scenario.revoke("a") == ["rejected a: unknown_lease"]
    assert "ended already" in scenario.last.detail


def test_ended_ids_are_remembered_for_a_day():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192)
    scenario.release("a")
    scenario.request("b", 99_999)
    scenario.now_ms += DAY_MS - 1
    assert scenario.request("a", 8_192) == ["again granted a on cuda:0", "again ended a: released, freed"]
    assert scenario.request("b", 99_999) == ["again denied b: impossible"]
    scenario.now_ms += 1
    assert scenario.request("a", 8_192) == ["granted a on cuda:0"]
    assert scenario.request("b", 99_999) == ["denied b: impossible"]


def test_it_is_the_logs_day_that_counts_not_the_entries():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192)
    scenario.release("a")
    id_ms = scenario.now_ms
    scenario.tick(after_ms=DAY_MS)
    scenario.now_ms = id_ms  # the server's clock went back: ids stand still, ticks go on
    assert scenario.request("a", 8_192) == ["granted a on cuda:0"]


def test_a_lease_that_is_held_for_longer_than_a_day_is_not_forgotten():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192)
    scenario.now_ms += 3 * DAY_MS
    assert scenario.request("a", 8_192) == ["again granted a on cuda:0"]
    assert scenario.release("a") == ["ended a: released, freed"]


def test_an_id_whose_memory_is_still_out_is_not_used_again_however_long_ago_it_ended():
    scenario = Scenario(24_576, lock_delay_ms=60_000)
    scenario.request("a", 8_192, session="s")
    scenario.happens(session_lost("s"))
    scenario.now_ms += 2 * DAY_MS
    assert scenario.request("a", 8_192, session="s") == ["rejected a: duplicate"]
    assert "reclaimed" in scenario.last.detail


def test_every_answer_goes_where_its_request_came_from():
    scenario = Scenario(24_576)
    scenario.says(LeaseRequested(padded("a"), "imajin", 24_576, instance="left", session=padded("s")))
    scenario.says(LeaseRequested(padded("b"), "imajin", 8_192, session=padded("t")))
    scenario.says(LeaseRequested(padded("c"), "ollama", 99_999))
    scenario.says(LeaseReleased(padded("a"), "imajin"))
    heard = [(type(told.decision), told.decision.session, told.address) for told in scenario.heard]
    assert heard[0] == (LeaseGranted, padded("s"), "imajin:left")
    assert heard[1] == (LeaseDenied, None, "ollama")
    assert heard[2][1:] == (padded("s"), "imajin:left")
    assert heard[3] == (LeaseGranted, padded("t"), "imajin")
