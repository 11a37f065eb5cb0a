"""Entries of the log are gone: who cannot hold the lease that it describes is refused, and nothing changes."""

from __future__ import annotations

import pytest

from tests.core.lossy import RECOVERY_MS, Lossy, elected, recovering, unchanged_but_refused
from tests.core.scenario import SERVICE, session_lost


def test_a_lease_that_ended_in_what_is_left_of_the_log_stays_ended():
    scenario = Lossy(24_576)
    scenario.request("a", 8_192)
    scenario.release("a")
    scenario.request("never", 99_999)
    scenario.loses()
    unchanged_but_refused(scenario, "a")
    unchanged_but_refused(scenario, "never")


def test_a_lease_that_ended_in_the_recovery_stays_ended():
    scenario = recovering()
    scenario.reasserts("a")
    scenario.release("a")
    unchanged_but_refused(scenario, "a")


def test_a_tombstone_is_forgotten_after_a_day():
    scenario = Lossy(24_576)
    scenario.request("a", 8_192)
    scenario.release("a")
    scenario.tick(24 * 60 * 60 * 1000)
    scenario.loses()
    assert scenario.reasserts("a") == ["again granted a on cuda:0"]


def test_a_lease_of_another_service_is_not_taken_over():
    scenario = Lossy(24_576)
    scenario.request("held", 8_192)
    scenario.request("waits", 20_000)
    scenario.request("over", 8_192)
    scenario.release("over")
    scenario.loses()
    for name in ("held", "waits", "over"):
        unchanged_but_refused(scenario, name, service="stranger", reason="not_owner")
    scenario.reasserts("new")
    unchanged_but_refused(scenario, "new", service="stranger", reason="not_owner")


def test_a_lease_that_is_being_reclaimed_has_ended():
    scenario = Lossy(24_576, lock_delay_ms=60_000)
    scenario.request("a", 8_192, session="process")
    scenario.happens(session_lost("process"))
    scenario.loses()
    unchanged_but_refused(scenario, "a")


def test_what_its_holder_knows_as_being_reclaimed_is_no_lease():
    scenario = recovering()
    unchanged_but_refused(scenario, "a", state="reclaiming")
    scenario.request("waits", 8_192)
    unchanged_but_refused(scenario, "waits", state="reclaiming")


@pytest.mark.parametrize(
    "where",
    [
        {"devices": []},
        {"devices": ["cuda:7"]},
        {"devices": ["cuda:0", "cuda:7"]},
        {"node": "beta"},
    ],
    ids=str,
)
def test_what_is_on_unknown_devices_is_refused(where):
    scenario = recovering()
    unchanged_but_refused(scenario, "a", **where)
    scenario.request("waits", 8_192)
    unchanged_but_refused(scenario, "waits", **where)


def test_what_a_lost_session_held_is_over():
    scenario = Lossy(24_576)
    scenario.happens(session_lost("dead"))
    scenario.loses()
    unchanged_but_refused(scenario, "a", session="dead")
    assert scenario.reasserts("b", session="dead", service="other") == ["again granted b on cuda:0"], "a namesake"


def test_a_session_lost_in_the_recovery_counts_too():
    scenario = recovering()
    scenario.happens(session_lost("dead"))
    unchanged_but_refused(scenario, "a", session="dead")


@pytest.mark.parametrize("fields", [{"node": "beta"}, {"session": "dead"}, {"state": "reclaiming"}], ids=str)
def test_who_is_refused_is_told_where_it_listens(fields):
    scenario = recovering()
    scenario.happens(session_lost("dead"))
    scenario.reasserts("a", instance="one", **fields)
    assert scenario.heard[-1].address == f"{SERVICE}:one"


def test_before_anything_was_lost_nobody_is_believed():
    unchanged_but_refused(Lossy(24_576), "a")


def test_an_election_without_a_loss_makes_nobody_believed():
    scenario = Lossy(24_576)
    scenario.happens(elected())
    unchanged_but_refused(scenario, "a")
    assert scenario.request("b", 1) == ["granted b on cuda:0"]


def test_after_the_recovery_nobody_is_believed():
    scenario = recovering()
    scenario.tick(RECOVERY_MS)
    unchanged_but_refused(scenario, "a")
