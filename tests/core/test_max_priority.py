"""What a service's requests count as at most, whatever they claim."""

from gpuboss.core.projections import lease_rows, queue_rows
from gpuboss.events import LeaseReasserted, LogLost, SchedulerElected
from gpuboss.fields import ServiceRules
from tests.core.scenario import NODE, Scenario, padded, policy

CARD_MIB = 24_576


def test_a_higher_claim_is_lowered_and_the_grant_says_so():
    scenario = Scenario(CARD_MIB)
    scenario.happens(policy(services={"imajin": ServiceRules(max_priority="normal")}))
    scenario.request("a", 1_000, priority="high")
    assert scenario.last.priority == "normal"
    assert lease_rows(scenario.state)[padded("a")].priority == "normal"
    scenario.request("b", 1_000, priority="low")
    assert scenario.last.priority is None
    assert lease_rows(scenario.state)[padded("b")].priority == "low"
    assert scenario.request("a", 1_000, priority="high") == ["again granted a on cuda:0"]
    assert scenario.last.priority == "normal"
    assert scenario.request("a", 1_000, priority="normal") == ["rejected a: duplicate"]


def test_it_waits_as_what_it_counts_as_and_goes_on_so_under_other_rules():
    scenario = Scenario(CARD_MIB)
    scenario.happens(policy(services={"imajin": ServiceRules(max_priority="low")}))
    scenario.request("holder", CARD_MIB, service="ollama")
    scenario.request("claims", CARD_MIB, priority="high")
    scenario.request("normal", CARD_MIB, service="ollama")
    assert list(queue_rows(scenario.state)) == [padded("normal"), padded("claims")]
    assert queue_rows(scenario.state)[padded("claims")].priority == "low"
    scenario.happens(policy())
    scenario.restart()
    scenario.release("holder", service="ollama")
    scenario.release("normal", service="ollama")
    assert scenario.last.priority == "low"


def test_a_lease_that_was_lost_with_its_grant_counts_as_what_its_request_does():
    scenario = Scenario(CARD_MIB)
    scenario.happens(policy(services={"imajin": ServiceRules(max_priority="low")}))
    scenario.request("holder", CARD_MIB, service="ollama")
    scenario.request("a", 8_192, priority="high")
    scenario.happens(SchedulerElected("second", "0", 1, "log-2", LogLost(scenario.entries[-1].id, 7)))
    held = LeaseReasserted(padded("a"), "imajin", NODE, "cuda:0", ["cuda:0"], 8_192, "low", "held", scenario.now_ms, 1)
    scenario.says(held)
    assert lease_rows(scenario.state)[padded("a")].priority == "low"
