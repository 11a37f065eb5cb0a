"""Entries of the log are gone: who says that it holds a lease is believed, charged, and treated like any other."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gpuboss.core import snapshot
from gpuboss.core.projections import lease_row
from gpuboss.core.timers import Timer, TimerKind
from gpuboss.events import LeaseGranted, LeaseRequested, LogLost
from tests.core.lossy import (
    LOST_FENCE,
    RECOVERY_MS,
    Lossy,
    elected,
    reasserted,
    recovering,
)
from tests.core.scenario import (
    NODE,
    SERVICE,
    START_MS,
    device_lost,
    idled,
    jumped,
    padded,
    reclaimed,
    renewed,
    resumed,
    session_lost,
)

# ---------------------------------------------------------------- taking over


def test_a_lease_that_is_reasserted_is_charged():
    scenario = recovering()
    scenario.reasserts("a")
    assert scenario.free_mib() == 24_576 - 8_192
    assert scenario.state.ledger.devices[f"{NODE}/cuda:0"].leases.keys() == {padded("a")}
    scenario.request("b", 20_000)
    assert scenario.tick(RECOVERY_MS) == [], "there is no room beside it"
    assert scenario.release("a") == ["ended a: released, freed", "granted b on cuda:0"]


def test_its_holder_is_told_again_what_it_was_granted_and_the_log_is_not():
    scenario = recovering(24_576, 24_576)
    said = reasserted(
        "a", 0, 1, session="process", instance="one", expires_at_ms=START_MS + 60_000, fence=77, priority="high"
    )
    assert scenario.entries_added_by(scenario.says, said) == 1
    assert scenario.heard[-1].is_new is False
    assert scenario.heard[-1].address == f"{SERVICE}:one"
    assert scenario.last == LeaseGranted(
        cause=scenario.entries[-1].id,
        session=padded("process"),
        lease_id=padded("a"),
        service=SERVICE,
        node=NODE,
        device="cuda:0",
        devices=("cuda:0", "cuda:1"),
        uuids=("GPU-alpha-0", "GPU-alpha-1"),
        vram_mib=8_192,
        granted_at_ms=START_MS,
        expires_at_ms=START_MS + 60_000,
        waited_ms=0,
        fence=77,
    )


def test_a_lease_taken_over_is_shown_though_it_was_not_granted_now():
    scenario = recovering()
    scenario.write(reasserted("a"))
    turn = scenario.step(scenario.entries[-1])
    assert turn.lease_ids == turn.shown == [padded("a")]
    assert [device.key for device in turn.devices] == [f"{NODE}/cuda:0"]


def test_it_is_shown_as_its_holder_describes_it():
    scenario = recovering(24_576, 24_576)
    said = {"priority": "high", "session": "process", "expires_at_ms": START_MS + 60_000, "state": "idle", "fence": 7}
    scenario.reasserts("a", 1, 0, exclusive=True, instance="one", **said)
    assert scenario.state.ledger.leases[padded("a")].request == LeaseRequested(
        padded("a"),
        SERVICE,
        8_192,
        priority="high",
        node=NODE,
        gpus=2,
        exclusive=True,
        reclaimable=True,
        instance="one",
        session=padded("process"),
    )
    said_in_full = msgspec.to_builtins(reasserted("a", 1, 0, **said))
    row = msgspec.json.decode(msgspec.json.encode(lease_row(scenario.state.ledger.leases[padded("a")])))
    not_shown = {"exclusive", "reclaimable", "preemptible", "instance"}
    assert row == {name: said_in_full[name] for name in said_in_full.keys() - not_shown}


@pytest.mark.parametrize("restarts", [False, True])
def test_what_a_session_waits_for_and_holds_ends_in_the_order_in_which_it_came(restarts):
    scenario = recovering()
    scenario.request("first", 20_000, session="process")
    scenario.reasserts("second", session="process")
    scenario.request("third", 20_000, session="process")
    if restarts:
        scenario.restart()
    assert scenario.happens(session_lost("process")) == [
        "denied first: session_lost",
        "ended second: session_lost, freed",
        "denied third: session_lost",
    ]


def test_it_can_be_released():
    scenario = recovering()
    scenario.reasserts("a")
    assert scenario.release("a") == ["ended a: released, freed"]
    assert scenario.free_mib() == 24_576


def test_it_can_be_renewed_and_expires_then():
    scenario = recovering()
    scenario.reasserts("a", expires_at_ms=START_MS + 1_000)
    assert scenario.says(renewed("a", 5_000)) == ["extended a by 5000 ms"]
    assert scenario.tick(4_999) == []
    assert scenario.tick(1) == ["ended a: expired, freed"]


def test_it_expires_when_it_was_to_expire():
    scenario = recovering()
    scenario.reasserts("a", expires_at_ms=START_MS + 1_000)
    scenario.reasserts("b", expires_at_ms=START_MS - 1)
    assert scenario.tick() == ["ended b: expired, freed"]
    assert scenario.tick(999) == []
    assert scenario.tick(1) == ["ended a: expired, freed"]


def test_it_expires_by_the_clock_of_what_was_lost_though_the_servers_was_put_back():
    scenario = Lossy(24_576)
    scenario.happens(elected(LogLost(f"{START_MS + 60_000}-7", LOST_FENCE)))
    assert scenario.state.now_ms == START_MS + 60_000
    assert scenario.state.recovering_until_ms == START_MS + 60_000 + RECOVERY_MS


def test_its_expiry_moves_with_a_jump_of_the_clock():
    scenario = recovering()
    scenario.reasserts("a", expires_at_ms=START_MS + 1_000)
    scenario.now_ms += 3_600_000
    scenario.happens(jumped(scenario.now_ms, 3_600_000))
    assert scenario.tick(999) == []
    assert scenario.tick(1) == ["ended a: expired, freed"]


def test_it_lasts_no_longer_than_it_was_to_last_if_its_clock_was_another_one():
    scenario, hour_ms = recovering(), 3_600_000
    by_its_clock = {"granted_at_ms": START_MS + hour_ms, "expires_at_ms": START_MS + hour_ms + 1_000}
    scenario.reasserts("a", **by_its_clock)
    assert scenario.tick(999) == []
    assert scenario.tick(1) == ["ended a: expired, freed"]


def test_nor_is_it_renewed_for_longer_if_the_log_still_holds_it():
    scenario = Lossy(24_576)
    scenario.request("a", 8_192, ttl_ms=1_000)
    scenario.loses()
    scenario.reasserts("a", granted_at_ms=START_MS + 3_600_000, expires_at_ms=START_MS + 3_605_000)
    assert scenario.tick(4_999) == []
    assert scenario.tick(1) == ["ended a: expired, freed"]


def test_it_can_be_revoked_at_once_or_with_a_grace():
    scenario = recovering()
    scenario.reasserts("a")
    scenario.reasserts("b")
    assert scenario.revoke("a") == ["ended a: revoked, freed"]
    assert scenario.revoke("b", grace_ms=1_000) == ["asked back b within 1000 ms"]
    assert scenario.tick(1_000) == ["ended b: revoked, freed"]


def test_it_ends_with_its_session():
    scenario = recovering()
    scenario.reasserts("a", session="process")
    scenario.reasserts("b", session="other")
    assert scenario.happens(session_lost("process")) == ["ended a: session_lost, freed"]
    assert scenario.free_mib() == 24_576 - 8_192


def test_it_ends_with_its_device():
    scenario = recovering(24_576, 24_576)
    scenario.reasserts("a", 0, 1)
    assert scenario.happens(device_lost(1)) == ["ended a: device_lost, freed"]
    assert scenario.free_mib() == 24_576


def test_its_memory_is_reclaimed_like_that_of_any_other():
    scenario = recovering(lock_delay_ms=1_000)
    scenario.reasserts("a", session="process")
    assert scenario.happens(session_lost("process")) == ["ended a: session_lost, reclaiming"]
    assert scenario.free_mib() == 24_576 - 8_192
    scenario.request("b", 20_000)
    assert scenario.tick(RECOVERY_MS + 1_000) == []
    assert scenario.happens(reclaimed("a")) == ["granted b on cuda:0"]


def test_a_lease_that_was_idle_is_idle_and_can_be_used_again():
    scenario = recovering()
    scenario.reasserts("a", state="idle")
    assert scenario.state.ledger.leases[padded("a")].state == "idle"
    assert scenario.says(resumed("a")) == ["changed a to held"]
    assert scenario.says(idled("a")) == ["changed a to idle"]


@pytest.mark.parametrize(("reclaimable", "answer"), [(True, "changed a to idle"), (False, "rejected a: invalid")])
def test_a_lease_that_was_used_may_be_idle_from_now_on_if_that_was_asked_for(reclaimable, answer):
    scenario = recovering()
    scenario.reasserts("a", reclaimable=reclaimable)
    assert scenario.says(idled("a")) == [answer]


def test_a_lease_that_was_asked_back_is_held_for_nobody_knows_for_whom():
    scenario = recovering()
    scenario.reasserts("a", state="yielding")
    assert scenario.state.ledger.leases[padded("a")].state == "held"
    assert scenario.release("a") == ["ended a: released, freed"]


def test_only_its_owner_ends_it():
    scenario = recovering()
    scenario.reasserts("a")
    assert scenario.release("a", "stranger") == ["rejected a: not_owner"]
    assert scenario.free_mib() == 24_576 - 8_192


def test_saying_it_twice_changes_nothing():
    scenario = recovering()
    scenario.reasserts("a", session="process")
    before, known = snapshot.dump(scenario.state), scenario.state
    last_id, inputs = known.last_id, known.inputs
    assert scenario.reasserts("a", session="process") == []
    known.last_id, known.inputs = last_id, inputs
    assert snapshot.dump(scenario.state) == before


def test_what_the_log_still_holds_is_not_charged_twice():
    scenario = Lossy(24_576)
    scenario.request("a", 8_192)
    scenario.loses()
    assert scenario.reasserts("a") == []
    assert scenario.free_mib() == 24_576 - 8_192


def test_a_lease_of_the_rest_of_the_log_goes_on_unasked():
    scenario = Lossy(24_576)
    scenario.request("a", 20_000)
    scenario.loses()
    scenario.request("b", 20_000)
    assert scenario.tick(RECOVERY_MS) == []
    assert scenario.release("a") == ["ended a: released, freed", "granted b on cuda:0"]


# ---------------------------------------------------------------- a request whose grant was lost


def waiting_for_a_lost_grant(**wish: Any) -> Lossy:
    """`a` waited for `holder`'s room and got it; the release and the grant are among what was lost."""
    scenario = Lossy(24_576, 24_576)
    scenario.request("holder", 24_576)
    scenario.request("pinned", 20_000, device="cuda:1")
    scenario.request("a", 8_192, device="cuda:0", **wish)
    scenario.release("holder")
    assert [type(each.decision).__name__ for each in scenario.heard[-2:]] == ["LeaseEnded", "LeaseGranted"]
    scenario.loses(3)
    assert list(scenario.state.waitlist.by_id) == [padded("a")]
    return scenario


def test_a_request_whose_grant_was_lost_is_the_lease_and_is_not_granted_again():
    scenario = waiting_for_a_lost_grant(session="process", instance="one", priority="high")
    assert scenario.reasserts("a", fence=3, session="process") == ["again granted a on cuda:0"]
    assert scenario.heard[-1].address == f"{SERVICE}:one"
    assert scenario.state.waitlist.by_id == {}
    scenario.release("holder")
    assert scenario.tick(RECOVERY_MS) == []
    assert scenario.request("a", 8_192, device="cuda:0", session="process", instance="one", priority="high") == [
        "again granted a on cuda:0"
    ], "its request is still the one that it made"
    assert scenario.happens(session_lost("process")) == ["ended a: session_lost, freed"]


def test_a_request_that_became_the_lease_waits_for_nothing_any_more():
    scenario = waiting_for_a_lost_grant(wait_ms=1_000)
    scenario.reasserts("a")
    assert scenario.tick(1_000) == [], "its wait does not time out"
    assert scenario.state.next_timer() == Timer(START_MS + RECOVERY_MS, TimerKind.RECOVERY_END, "")


def test_a_request_whose_grant_was_lost_is_granted_at_the_end_if_its_holder_says_nothing():
    scenario = waiting_for_a_lost_grant()
    scenario.release("holder")
    assert scenario.tick(RECOVERY_MS) == ["granted a on cuda:0"]


def test_a_request_whose_grant_was_lost_does_not_time_out_before_its_holder_had_its_say():
    scenario = waiting_for_a_lost_grant(wait_ms=1_000)
    scenario.tick(2_000)
    assert scenario.reasserts("a", fence=3) == ["again granted a on cuda:0"]
    assert scenario.free_mib() == 24_576 - 24_576 - 8_192
