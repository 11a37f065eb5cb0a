"""The life of a lease: every happening in every state, as the table has it and as the scheduler does it."""

from typing import get_args

import pytest

from gpuboss.core import lifecycle
from gpuboss.core.lifecycle import Happening, Move, State
from gpuboss.events import LeaseRevoked
from tests.core.scenario import (
    Scenario,
    device_lost,
    idled,
    padded,
    reclaimed,
    renewed,
    resumed,
    session_lost,
)

STATES = get_args(State)
HAPPENINGS = get_args(Happening)


def test_the_table_names_every_pair_and_no_other():
    assert set(lifecycle.TABLE) == {(state, happening) for state in STATES for happening in HAPPENINGS}


@pytest.mark.parametrize("pair", lifecycle.TABLE, ids=" ".join)
def test_a_move_does_one_thing(pair):
    move = lifecycle.move(*pair)
    assert move is lifecycle.TABLE[pair]
    assert move.refused is None or (move.after is None and move.ended is None)
    assert (move.ended is not None) == (move.after in ("clean", "unclean"))


def test_a_lease_ends_once_and_what_was_asked_back_is_never_revived():
    for (state, _), move in lifecycle.TABLE.items():
        if state == "reclaiming":
            assert move.ended is None
        if state == "yielding":
            assert move.after not in ("held", "idle")


# What brings a fresh lease (reclaimable, with a session, on a real device) into each state.
INTO = {
    "held": lambda scenario: None,
    "idle": lambda scenario: scenario.says(idled("a")),
    "yielding": lambda scenario: scenario.revoke("a", grace_ms=1_000),
    "reclaiming": lambda scenario: scenario.happens(session_lost("s")),
}

# What is decided, and the state after it (None: the lease is gone).
WHAT_FOLLOWS = {
    ("held", "release"): (["ended a: released, freed"], None),
    ("held", "renew"): (["extended a by 500 ms"], "held"),
    ("held", "idle"): (["changed a to idle"], "idle"),
    ("held", "resume"): (["changed a to held"], "held"),
    ("held", "expire"): (["ended a: expired, reclaiming"], "reclaiming"),
    ("held", "ask_back"): (["asked back a within 700 ms"], "yielding"),
    ("held", "revoke"): (["ended a: revoked, reclaiming"], "reclaiming"),
    ("held", "vouch"): (["ended a: revoked, reclaiming"], "reclaiming"),
    ("held", "lose_session"): (["ended a: session_lost, reclaiming"], "reclaiming"),
    ("held", "lose_device"): (["ended a: device_lost, freed"], None),
    ("held", "reclaim"): ([], "held"),
    ("idle", "release"): (["ended a: released, freed"], None),
    ("idle", "renew"): (["extended a by 500 ms"], "idle"),
    ("idle", "idle"): (["changed a to idle"], "idle"),
    ("idle", "resume"): (["changed a to held"], "held"),
    ("idle", "expire"): (["ended a: expired, reclaiming"], "reclaiming"),
    ("idle", "ask_back"): (["asked back a within 700 ms"], "yielding"),
    ("idle", "revoke"): (["ended a: revoked, reclaiming"], "reclaiming"),
    ("idle", "vouch"): (["ended a: revoked, reclaiming"], "reclaiming"),
    ("idle", "lose_session"): (["ended a: session_lost, reclaiming"], "reclaiming"),
    ("idle", "lose_device"): (["ended a: device_lost, freed"], None),
    ("idle", "reclaim"): ([], "idle"),
    ("yielding", "release"): (["ended a: yielded, freed"], None),
    ("yielding", "renew"): (["rejected a: yielding"], "yielding"),
    ("yielding", "idle"): (["rejected a: yielding"], "yielding"),
    ("yielding", "resume"): (["rejected a: yielding"], "yielding"),
    ("yielding", "expire"): (["ended a: expired, reclaiming"], "reclaiming"),
    ("yielding", "ask_back"): ([], "yielding"),
    ("yielding", "revoke"): (["ended a: revoked, reclaiming"], "reclaiming"),
    ("yielding", "vouch"): (["ended a: revoked, reclaiming"], "reclaiming"),
    ("yielding", "lose_session"): (["ended a: session_lost, reclaiming"], "reclaiming"),
    ("yielding", "lose_device"): (["ended a: device_lost, freed"], None),
    ("yielding", "reclaim"): ([], "yielding"),
    ("reclaiming", "release"): ([], "reclaiming"),
    ("reclaiming", "renew"): (["rejected a: unknown_lease"], "reclaiming"),
    ("reclaiming", "idle"): (["rejected a: unknown_lease"], "reclaiming"),
    ("reclaiming", "resume"): (["rejected a: unknown_lease"], "reclaiming"),
    ("reclaiming", "expire"): ([], "reclaiming"),
    ("reclaiming", "ask_back"): ([], "reclaiming"),
    ("reclaiming", "revoke"): ([], "reclaiming"),
    ("reclaiming", "vouch"): ([], "reclaiming"),
    ("reclaiming", "lose_session"): ([], "reclaiming"),
    ("reclaiming", "lose_device"): ([], None),
    ("reclaiming", "reclaim"): ([], None),
}

WHEN = {
    "release": lambda scenario: scenario.release("a"),
    "renew": lambda scenario: scenario.says(renewed("a", 500)),
    "idle": lambda scenario: scenario.says(idled("a")),
    "resume": lambda scenario: scenario.says(resumed("a")),
    "expire": lambda scenario: scenario.tick(after_ms=100),
    "ask_back": lambda scenario: scenario.revoke("a", grace_ms=700),
    "revoke": lambda scenario: scenario.revoke("a"),
    "vouch": lambda scenario: scenario.says(LeaseRevoked(padded("a"), "it is gone", "root", vouched=True)),
    "lose_session": lambda scenario: scenario.happens(session_lost("s")),
    "lose_device": lambda scenario: scenario.happens(device_lost(0)),
    "reclaim": lambda scenario: scenario.happens(reclaimed("a")),
}


def leased_on_a_real_device() -> Scenario:
    scenario = Scenario()
    scenario.device(0, 24_576, simulated=False)
    assert scenario.request("a", 8_192, session="s", ttl_ms=100, reclaimable=True) == ["granted a on cuda:0"]
    return scenario


@pytest.mark.parametrize(("state", "happening"), WHAT_FOLLOWS)
def test_every_row_of_the_table(state, happening):
    scenario = leased_on_a_real_device()
    INTO[state](scenario)
    assert [lease.state for lease in scenario.state.ledger.leases.values()] == [state]

    decided, after = WHAT_FOLLOWS[state, happening]
    assert WHEN[happening](scenario) == decided
    assert [lease.state for lease in scenario.state.ledger.leases.values()] == ([] if after is None else [after])


def test_every_pair_is_tried():
    assert set(WHAT_FOLLOWS) == set(lifecycle.TABLE)


@pytest.mark.parametrize("grace_ms", [0, 700])
def test_who_revokes_twice_does_not_say_that_its_memory_is_gone(grace_ms):
    scenario = leased_on_a_real_device()
    scenario.revoke("a")
    scenario.revoke("a", grace_ms=grace_ms)
    [lease] = scenario.state.ledger.leases.values()
    assert not lease.vouched
    WHEN["vouch"](scenario)
    assert lease.vouched


def test_a_deadline_to_yield_that_passes_revokes():
    scenario = leased_on_a_real_device()
    scenario.says(renewed("a", 10_000))
    scenario.revoke("a", grace_ms=1_000)
    assert scenario.tick(after_ms=999) == []
    assert scenario.tick(after_ms=1) == ["ended a: revoked, reclaiming"]


def test_the_grace_is_not_extended_by_asking_again():
    scenario = leased_on_a_real_device()
    scenario.says(renewed("a", 10_000))
    scenario.revoke("a", grace_ms=100)
    scenario.revoke("a", grace_ms=5_000)
    assert scenario.tick(after_ms=100) == ["ended a: revoked, reclaiming"]


def test_a_lease_that_is_not_reclaimable_cannot_be_kept_idle():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192)
    assert scenario.says(idled("a")) == ["rejected a: invalid"]
    assert "reclaimable" in scenario.last.detail
    assert scenario.says(resumed("a")) == ["changed a to held"]


def test_uses_and_the_price_of_reloading_are_counted_for_later():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192, reclaimable=True)
    [lease] = scenario.state.ledger.leases.values()
    assert (lease.uses, lease.reload_ms) == (1, 0)
    scenario.says(idled("a", reload_ms=300))
    scenario.says(resumed("a"))
    scenario.says(resumed("a"))
    assert (lease.uses, lease.reload_ms) == (2, 300), "resuming what is held is no new use"


def test_a_move_that_says_nothing_does_nothing():
    assert lifecycle.move("reclaiming", "expire") == Move()
