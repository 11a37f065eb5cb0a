"""The devices and the rules that a simulation runs under, as the facts that a scheduler would write."""

from __future__ import annotations

from collections.abc import Iterable

from gpuboss.config import PolicyConfig, check_guarantees
from gpuboss.core.policy import DEFAULT_POLICY
from gpuboss.events import PolicySet
from gpuboss.simulation.devices import observe
from gpuboss.simulation.schedule import Fact

NODE = "simulated"


def rules(policy: PolicyConfig) -> PolicySet:
    """A policy as the log records it. Memory does not linger where there is none, so there is no lock delay."""
    return policy.recorded(DEFAULT_POLICY.session_ttl_ms, lock_delay_ms=0)


def farm(devices: Iterable[tuple[int, int]], policy: PolicyConfig, at_ms: int) -> list[Fact]:
    """One node with these devices, (index, MiB) each, from `at_ms` on. Raises `ConfigError` if the policy guarantees
    more than they can lend."""
    observed = observe(devices, NODE, policy.margin_mib)
    check_guarantees(policy, sum(each.total_mib - each.margin_mib for each in observed))
    return [Fact(at_ms, rules(policy)), *(Fact(at_ms, device) for device in observed)]
