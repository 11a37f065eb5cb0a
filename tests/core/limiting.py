"""Stories about limits: a service that may hold so much and no more, and for what its requests wait."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from gpuboss.core.explain import explain
from gpuboss.fields import ServiceRules
from tests.core.scenario import Scenario, padded, policy

CARD_MIB = 24_576
LONG_MS = 3_600_000


def limited(*sizes_mib: int, limit_mib: int | None = 8_192, rules: dict[str, Any] | None = None) -> Scenario:
    """Devices, and a limit for `imajin`."""
    scenario = Scenario(*sizes_mib)
    scenario.happens(replace(policy(services={"imajin": ServiceRules(limit_mib=limit_mib)}), **(rules or {})))
    return scenario


def relimit(scenario: Scenario, limit_mib: int | None) -> list[str]:
    """Another limit for `imajin`."""
    return scenario.happens(policy(services={"imajin": ServiceRules(limit_mib=limit_mib)}))


def why(scenario: Scenario, name: str) -> tuple[str, list[str]]:
    """The reason for which a request waits, and who blocks it."""
    explained = explain(scenario.state, scenario.state.waitlist.by_id[padded(name)])
    return explained.reason, [each.rstrip("_") for each in explained.blocked_by]
