"""What is drawn for one seed before its world begins: how large it is, how patient, and what may go wrong in it.

Swarm testing: some seeds have few kinds of faults, some all of them, and rates differ; a world in which everything
happens all the time never gets anywhere where something rare matters.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from gpuboss.config import PolicyConfig, ServiceConfig
from gpuboss.fields import PreemptAfter
from tests.sim.network import NO_FAULTS, NetworkFaults

# The lock delay is longer than a client can be late with what it is told while its heartbeat is in time: a read that
# hears nothing is given up after 7 s, and opened again within a few more.
PATIENCES_MS = ((3_000, 15_000), (6_000, 15_000), (15_000, 20_000))  # session TTL and lock delay
DELETION = "entry deleted"


class Settings(NamedTuple):
    """One seed's world."""

    session_ttl_ms: int
    lock_delay_ms: int
    is_strict: bool  # appendfsync always
    schedulers: int
    services: tuple[tuple[str, str | None], ...]  # name and instance of each client process
    tasks: int  # that each of them runs at once
    devices_mib: tuple[int, ...]
    stir_us: int  # how long faults happen
    snapshot_every: int
    network: NetworkFaults
    faults_s: dict[str, float]  # mean time between two faults of each kind
    failpoints: float  # how likely a scheduler is hit at one of its steps
    busy: float  # how likely a task stops its event loop for a while
    policy: PolicyConfig = PolicyConfig()
    warm: int = 0  # tasks of each process that keep a lease idle between uses
    residents: tuple[int, ...] = ()  # models of each process that stay, by the number of their users


def draw_settings(chance: random.Random, kinds: tuple[str, ...]) -> Settings:
    """What a seed means. `kinds` are the faults that there are."""
    session_ttl_ms, lock_delay_ms = chance.choices(PATIENCES_MS, (5, 4, 1))[0]
    appetite = chance.choice((0.0, 0.1, 0.3, 0.3, 0.6, 1.0))  # for kinds of faults
    hurry = chance.choice((0.3, 1.0, 1.0, 3.0))
    faults_s = {kind: 12.0 * chance.uniform(0.4, 3.0) / hurry for kind in kinds if chance.random() < appetite}
    names = [f"service-{number}" for number in range(chance.randint(1, 3))]
    services: list[tuple[str, str | None]] = [(name, None) for name in names]
    services += [(name, f"replica-{number}") for number, name in enumerate(names) if chance.random() < 0.3]
    services += [(name, None) for name in names if chance.random() < 0.3]
    return Settings(
        session_ttl_ms=session_ttl_ms,
        lock_delay_ms=lock_delay_ms,
        is_strict=chance.random() < 0.4,
        schedulers=chance.choice((1, 2, 2, 2, 3, 4)),
        services=tuple(services),
        tasks=chance.randint(1, 4),
        devices_mib=chance.choice(((24_576,), (24_576, 24_576), (16_384, 24_576))),
        stir_us=int(chance.uniform(10, 30) * 1_000_000),
        snapshot_every=chance.choice((10, 60, 10_000)),
        network=_network(chance) if chance.random() < appetite else NO_FAULTS,
        faults_s=faults_s,
        failpoints=chance.choice((0.001, 0.01)) if chance.random() < appetite else 0.0,
        busy=chance.choice((0.02, 0.2)) if chance.random() < appetite else 0.0,
    )


def with_deletions(settings: Settings, seed: int) -> Settings:
    """Maybe single entries are deleted, too. Drawn by a chance of its own: without that, a seed stays what it was."""
    chance = random.Random(f"deletions of {seed}")
    if chance.random() >= 0.3:
        return settings
    return settings._replace(faults_s=settings.faults_s | {DELETION: chance.uniform(1.0, 12.0)})


def with_sharing(settings: Settings, seed: int) -> Settings:
    """Mostly models are kept warm, and leases asked back, under rules that hurry. Drawn by a chance of its own, too."""
    chance = random.Random(f"sharing of {seed}")
    if chance.random() < 0.15:
        return settings
    policy = PolicyConfig(
        preemption=chance.choice(("off", "idle", "idle", "lower", "lower", "lower")),
        preempt_after_ms=PreemptAfter(normal=chance.randint(0, 8_000), high=chance.randint(0, 2_000)),
        min_run_ms=chance.choice((0, 500, 3_000)),
        grace_ms=chance.choice((200, 1_000, 4_000)),
        services=_service_rules(chance, settings),
    )
    residents = tuple(chance.randint(1, 3) for _ in range(chance.randint(0, 2)))
    tasks, warm = chance.randint(1, settings.tasks), chance.randint(1, 3)
    return settings._replace(policy=policy, tasks=tasks, warm=warm, residents=residents)


def _service_rules(chance: random.Random, settings: Settings) -> dict[str, ServiceConfig]:
    rules: dict[str, ServiceConfig] = {}
    for name in dict.fromkeys(name for name, _ in settings.services):
        if chance.random() < 0.3:
            rules[name] = ServiceConfig(
                max_waiting=chance.choice((None, None, 3)),
                guarantee_mib=chance.choice((0, 0, 4_000)),
                limit_mib=chance.choice((None, 12_500, 20_000, 30_000)),
                max_priority=chance.choice(("low", "normal", "high")),
            )
    return rules


def _network(chance: random.Random) -> NetworkFaults:
    def some(most: float) -> float:
        return most * chance.random() if chance.random() < 0.5 else 0.0

    return NetworkFaults(
        slow=some(0.1),
        slow_us=chance.choice((5_000, 100_000, 1_500_000)),
        cut_before=some(0.01),
        cut_after=some(0.01),
        half_open=some(0.004),
    )
