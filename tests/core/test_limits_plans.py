"""Limits, guarantees and lowered claims where leases are asked back: for whom, and whose."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from gpuboss.core.explain import explain
from gpuboss.core.projections import lease_rows
from gpuboss.events import LogLost
from gpuboss.fields import PreemptAfter, ServiceRules
from tests.core.auditor import audit
from tests.core.lossy import RECOVERY_MS, elected, reasserted
from tests.core.scenario import Scenario, idled, padded, policy

CARD_MIB = 24_576


def ruled(*sizes_mib: int, preemption: Any = "lower", **services: ServiceRules) -> Scenario:
    """Devices, and rules for services; held leases may be asked back after 100 ms, by whoever waited for 100 ms."""
    scenario = Scenario(*sizes_mib)
    rule(scenario, preemption=preemption, **services)
    return scenario


def rule(scenario: Scenario, preemption: Any = "lower", **services: ServiceRules) -> list[str]:
    """Other rules."""
    after = PreemptAfter(normal=100, high=100)
    rules = replace(policy(services=services), preemption=preemption, preempt_after_ms=after, min_run_ms=100)
    return scenario.happens(rules)


# ---------------------------------------------------------------- whose leases are asked back


@pytest.mark.parametrize(
    ("guarantee_mib", "preemptible", "is_asked"),
    [(CARD_MIB, False, False), (CARD_MIB, True, True), (CARD_MIB - 1, False, True), (0, False, True)],
)
def test_only_what_is_inside_a_guarantee_and_not_preemptible_stays(
    guarantee_mib: int, preemptible: bool, is_asked: bool
):
    scenario = ruled(CARD_MIB, ollama=ServiceRules(guarantee_mib=guarantee_mib))
    scenario.request("held", CARD_MIB, service="ollama", priority="low", preemptible=preemptible)
    scenario.request("asking", CARD_MIB, priority="high")
    told = scenario.tick(100)
    assert told == (["asked back held within 15000 ms for asking"] if is_asked else [])
    assert audit(scenario.entries) == []


def test_what_is_idle_may_be_asked_back_and_takes_nothing_of_the_guarantee():
    scenario = ruled(CARD_MIB, ollama=ServiceRules(guarantee_mib=12_288))
    scenario.request("warm", 8_192, service="ollama", priority="low", preemptible=False, reclaimable=True)
    scenario.request("held", 12_288, service="ollama", priority="low", preemptible=False)
    scenario.says(idled("warm", service="ollama"))
    scenario.request("large", 20_000, priority="high")
    assert scenario.tick(100) == [], "the two together lie outside the guarantee, the held one alone does not"
    assert scenario.request("small", 8_192) == ["asked back warm within 15000 ms for small"]
    assert audit(scenario.entries) == []


def test_a_guarantee_that_is_taken_away_protects_no_longer():
    scenario = ruled(CARD_MIB, ollama=ServiceRules(guarantee_mib=CARD_MIB))
    scenario.request("held", CARD_MIB, service="ollama", priority="low", preemptible=False)
    scenario.request("asking", CARD_MIB, priority="high")
    assert scenario.tick(100) == []
    assert rule(scenario) == ["asked back held within 15000 ms for asking"]


@pytest.mark.parametrize(("preemptible", "told"), [(False, []), (True, ["asked back held within 15000 ms for asking"])])
def test_what_is_protected_stays_so_where_the_log_is_lost(preemptible: bool, told: list[str]):
    scenario = ruled(CARD_MIB, ollama=ServiceRules(guarantee_mib=CARD_MIB))
    scenario.happens(elected(LogLost(scenario.entries[-1].id, 7)))
    scenario.says(reasserted("held", service="ollama", vram_mib=CARD_MIB, priority="low", preemptible=preemptible))
    scenario.request("asking", CARD_MIB, priority="high")
    assert scenario.tick(RECOVERY_MS) == told
    assert audit(scenario.entries) == []


def test_nobody_counts_as_more_than_it_may_because_the_log_is_lost():
    scenario = ruled(CARD_MIB, ollama=ServiceRules(max_priority="low"))
    scenario.happens(elected(LogLost(scenario.entries[-1].id, 7)))
    scenario.says(reasserted("held", service="ollama", vram_mib=CARD_MIB, priority="high"))
    assert (scenario.last.priority, lease_rows(scenario.state)[padded("held")].priority) == ("low", "low")
    scenario.request("asking", CARD_MIB, priority="normal")
    assert scenario.tick(RECOVERY_MS) == ["asked back held within 15000 ms for asking"]
    assert audit(scenario.entries) == []


def test_a_lease_that_claimed_more_than_it_counts_as_is_asked_back_as_what_it_counts_as():
    scenario = ruled(CARD_MIB, ollama=ServiceRules(max_priority="low"))
    scenario.request("held", CARD_MIB, service="ollama", priority="high")
    scenario.request("asking", CARD_MIB, priority="normal")
    assert scenario.tick(100) == ["asked back held within 15000 ms for asking"]


def test_who_counts_as_less_than_it_claims_has_nobody_asked_back():
    scenario = ruled(CARD_MIB, imajin=ServiceRules(max_priority="low"))
    scenario.request("held", CARD_MIB, service="ollama", priority="low")
    scenario.request("asking", CARD_MIB, priority="high")
    assert scenario.tick(100) == []
    assert scenario.tick(100_000) == []


# ---------------------------------------------------------------- for whom


def idle_card(*others_mib: int, limit_mib: int = CARD_MIB) -> Scenario:
    """A card that is wholly held, idle, by another service; and a limit for `imajin`."""
    scenario = ruled(CARD_MIB, *others_mib, imajin=ServiceRules(limit_mib=limit_mib))
    scenario.request("idle", CARD_MIB, service="ollama", reclaimable=True, device="cuda:0")
    scenario.says(idled("idle", service="ollama"))
    return scenario


def test_nobody_is_asked_for_one_that_is_above_its_limit():
    scenario = idle_card(CARD_MIB)
    scenario.request("own", CARD_MIB, device="cuda:1")
    assert scenario.request("asking", 8_192) == []
    assert rule(scenario) == ["asked back idle within 15000 ms for asking"]
    assert audit(scenario.entries) == []


def test_nobody_is_asked_for_one_that_could_not_begin_beside_what_a_promise_counts_on():
    scenario = ruled(CARD_MIB, CARD_MIB, imajin=ServiceRules(limit_mib=CARD_MIB))
    scenario.request("idle", CARD_MIB, service="ollama", reclaimable=True, device="cuda:1")
    scenario.says(idled("idle", service="ollama"))
    scenario.request("holder", CARD_MIB, service="ollama", device="cuda:0", ttl_ms=50)
    scenario.request("promised", 16_384, device="cuda:0")
    assert scenario.request("above", 8_193, device="cuda:1") == []
    assert scenario.request("beside", 8_192, device="cuda:1") == ["asked back idle within 15000 ms for beside"]


def test_what_was_asked_back_counts_also_where_nothing_is_reserved():
    scenario = idle_card(CARD_MIB)
    scenario.happens(replace(scenario.state.policy, reservations=0))
    assert scenario.request("asking", CARD_MIB, device="cuda:0") == ["asked back idle within 15000 ms for asking"]
    assert scenario.request("small", 1, device="cuda:1") == []


def test_what_was_asked_back_for_one_counts_for_those_of_its_service_that_come_later():
    scenario = idle_card(CARD_MIB)
    assert scenario.request("asking", CARD_MIB, device="cuda:0") == ["asked back idle within 15000 ms for asking"]
    assert scenario.request("small", 1, device="cuda:1") == []
    waiting = scenario.state.waitlist.by_id[padded("small")]
    assert explain(scenario.state, waiting).reason == "reserved_for"
    assert explain(scenario.state, waiting).blocked_by == [padded("asking")]
    assert scenario.release("idle", service="ollama") == ["ended idle: yielded, freed", "granted asking on cuda:0"]


def test_a_plan_for_one_that_is_above_its_limit_meanwhile_is_dissolved_and_its_room_is_for_all():
    scenario = idle_card(CARD_MIB)
    scenario.request("asking", CARD_MIB, device="cuda:0", priority="normal")
    told = ["granted urgent on cuda:1", "promised asking nothing any more"]
    assert scenario.request("urgent", 8_192, device="cuda:1", priority="high") == told
    assert scenario.state.planned == {}
    assert scenario.request("other", CARD_MIB, service="whisper", device="cuda:0") == []
    told = ["ended idle: yielded, freed", "granted other on cuda:0"]
    assert scenario.release("idle", service="ollama") == told
    assert audit(scenario.entries) == []


def test_a_limit_below_what_was_planned_ends_the_wait_and_the_plan():
    scenario = idle_card()
    scenario.request("asking", CARD_MIB)
    assert rule(scenario, imajin=ServiceRules(limit_mib=8_192)) == ["denied asking: quota"]
    assert scenario.state.planned == {}
    assert scenario.request("small", 8_192) == []
    told = ["ended idle: yielded, freed", "granted small on cuda:0"]
    assert scenario.release("idle", service="ollama") == told
    assert audit(scenario.entries) == []


def test_a_plan_goes_on_under_other_limits_that_allow_it():
    scenario = idle_card()
    scenario.request("asking", CARD_MIB)
    for services in ({}, {"imajin": ServiceRules(limit_mib=CARD_MIB)}, {"ollama": ServiceRules(limit_mib=CARD_MIB)}):
        assert rule(scenario, **services) == []
        assert scenario.state.planned.keys() == {padded("asking")}
        assert list(scenario.state.waitlist.shapes()) == []  # it stands apart
        scenario.restart()
    told = ["ended idle: yielded, freed", "granted asking on cuda:0"]
    assert scenario.release("idle", service="ollama") == told
