"""What of a service's leases is protected by its guarantee: the oldest that are held, and fit into it whole."""

from msgspec.structs import replace

from gpuboss.core import quotas, snapshot
from gpuboss.fields import ServiceRules
from tests.core.scenario import Scenario, padded, policy

CARD_MIB = 24_576


def guaranteed(*leases: tuple[str, int, bool], guarantee_mib: int = 8_192) -> list[str]:
    """Which of the leases (name, MiB, preemptible) are protected."""
    scenario = Scenario(4 * CARD_MIB)
    scenario.happens(policy(services={"imajin": ServiceRules(guarantee_mib=guarantee_mib)}))
    for name, vram_mib, preemptible in leases:
        scenario.request(name, vram_mib, preemptible=preemptible)
    leased = list(scenario.state.ledger.leases.values())
    answer = [each.request.lease_id.rstrip("_") for each in leased if quotas.protects(scenario.state, each)]
    restored = snapshot.load(snapshot.dump(scenario.state))
    assert answer == [i.rstrip("_") for i, each in restored.ledger.leases.items() if quotas.protects(restored, each)]
    return answer


def test_only_what_is_not_preemptible_and_inside_the_guarantee_is_protected():
    assert guaranteed(("a", 8_192, True)) == []
    assert guaranteed(("a", 8_192, False)) == ["a"]
    assert guaranteed(("a", 8_193, False)) == []
    assert guaranteed(("a", 8_192, False), guarantee_mib=0) == []


def test_the_guarantee_goes_to_the_oldest_and_what_it_does_not_cover_is_passed_over():
    assert guaranteed(("a", 4_096, False), ("b", 8_192, False), ("c", 4_096, False)) == ["a", "c"]
    assert guaranteed(("a", 8_192, True), ("b", 8_192, False), ("c", 1, False)) == ["b"]


def test_without_a_policy_for_a_service_nothing_of_it_is_protected():
    scenario = Scenario(CARD_MIB)
    scenario.request("a", 1_000, preemptible=False)
    assert not quotas.protects(scenario.state, scenario.state.ledger.leases[padded("a")])


def test_a_lease_that_is_asked_back_or_over_uses_up_no_guarantee():
    scenario = Scenario(CARD_MIB)
    scenario.happens(replace(policy(5_000, services={"imajin": ServiceRules(guarantee_mib=8_192)})))
    scenario.request("a", 8_192, preemptible=False)
    scenario.request("b", 8_192, preemptible=False)
    a, b = (scenario.state.ledger.leases[padded(name)] for name in "ab")
    assert quotas.protects(scenario.state, a)
    assert not quotas.protects(scenario.state, b)
    scenario.revoke("a", grace_ms=1_000)
    assert not quotas.protects(scenario.state, a)
    assert quotas.protects(scenario.state, b)
    assert scenario.tick(1_000) == ["ended a: revoked, reclaiming"]
    assert quotas.protects(scenario.state, b)
