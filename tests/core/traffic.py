"""A busy day in a small farm, drawn from a seed: long logs in which everything happens, and most of it makes sense."""

from __future__ import annotations

from random import Random
from typing import Any

from msgspec.structs import replace

from gpuboss.events import (
    ClockJumped,
    ClockTicked,
    DeviceLost,
    Event,
    LeaseIdled,
    LeaseReleased,
    LeaseRenewed,
    LeaseRequested,
    LeaseResumed,
    LeaseRevoked,
    SchedulerElected,
    SessionLost,
    VramReclaimed,
)
from gpuboss.fields import PreemptAfter, ServiceRules
from tests.core import hostile
from tests.core.scenario import Log, observed, policy

SIZES_MIB = (1, 2_048, 4_096, 8_192, 8_192, 16_384, 24_576, 40_960)
DEVICES = (("alpha", 0, 24_576), ("alpha", 1, 24_576), ("alpha", 2, 8_192), ("beta", 0, 24_576), ("beta", 1, 40_960))
ATTACKS = tuple(name for name, (fields, _) in hostile.ALL.items() if sum(map(len, fields)) < 3_000)
COMMON = {"ask": 30, "release": 22, "tick": 12, "repeat": 4, "renew": 4, "idle": 8, "resume": 4, "attack": 4}
RARE = {
    "revoke": 3,
    "lose_session": 2,
    "reclaim": 6,
    "observe": 3,
    "lose_device": 0.7,
    "jump": 1,
    "set_policy": 1,
    "take_snapshot": 1,
}
WEIGHTS = COMMON | RARE


class Traffic:
    """Writes into a log what the seed says. The same seed writes the same, as long as the same is decided."""

    def __init__(self, log: Log, seed: int) -> None:
        self.log = log
        self.random = Random(seed)
        self.asked: list[LeaseRequested] = []
        self.log.stamp(SchedulerElected("first", "0", 1, "log-1"))
        self._set_policy()
        for node, number, total_mib in DEVICES[: self.random.randint(1, len(DEVICES))]:
            self.log.stamp(observed(number, total_mib, node, simulated=self.random.random() < 0.7))

    def run(self, events: int) -> None:
        """Write so many events; most are decided one by one, some in batches."""
        kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
        for _ in range(events):
            self.log.now_ms += self.random.choice((0, 0, 1, 5, 20, 100, 1_000))
            getattr(self, f"_{self.random.choices(kinds, weights)[0]}")()
            if self.random.random() < 0.8:
                self.log.settle()
        self.log.settle()

    def _ask(self) -> None:
        rare = self.random.random
        fields: dict[str, Any] = {
            "priority": self.random.choice(("low", "normal", "normal", "high")),
            "device": self.random.choice(("cuda:0", "cuda:1", "GPU-alpha-1")) if rare() < 0.1 else None,
            "node": self.random.choice(("alpha", "beta")) if rare() < 0.1 else None,
            "gpus": self.random.choice((2, 2, 3)) if rare() < 0.15 else 1,
            "exclusive": rare() < 0.1,
            "ttl_ms": self.random.choice((50, 500, 5_000)) if rare() < 0.3 else None,
            "wait_ms": self.random.choice((50, 500, 5_000)) if rare() < 0.3 else None,
            "reclaimable": rare() < 0.5,
            "preemptible": rare() < 0.7,
            "instance": "left" if rare() < 0.1 else None,
            "session": f"session-{self.random.randint(0, 30):02}" if rare() < 0.5 else None,
        }
        name, service = f"lease-{len(self.asked):05}", self.random.choice(("imajin", "ollama", "whisper"))
        self.asked.append(LeaseRequested(name, service, self.random.choice(SIZES_MIB), **fields))
        self.log.write(self.asked[-1])

    def _recent(self) -> LeaseRequested:
        holders = list(self.log.state.ledger.leases.values())
        if holders and self.random.random() < 0.4:
            return self.random.choice(holders).request
        if not self.asked:
            self._ask()
        return self.asked[-1 - min(int(self.random.expovariate(0.1)), len(self.asked) - 1)]

    def _of_recent(self, kind: type[Event], *rest: Any) -> None:
        request = self._recent()
        stranger = self.random.random() < 0.05
        self.log.write(kind(request.lease_id, "stranger" if stranger else request.service, *rest))

    def _release(self) -> None:
        self._of_recent(LeaseReleased)

    def _renew(self) -> None:
        self._of_recent(LeaseRenewed, self.random.choice((50, 500, 5_000)))

    def _idle(self) -> None:
        self._of_recent(LeaseIdled, self.random.randint(0, 100))

    def _resume(self) -> None:
        self._of_recent(LeaseResumed)

    def _repeat(self) -> None:
        request = self._recent()
        self.log.write(replace(request, pid=4711) if self.random.random() < 0.8 else replace(request, exclusive=True))

    def _attack(self) -> None:
        fields, rejection = hostile.ALL[self.random.choice(ATTACKS)]
        self.log.append_hostile(fields, rejection)

    def _tick(self) -> None:
        self.log.stamp(ClockTicked(self.log.now_ms, inputs_follow=self.random.random() < 0.2))

    def _revoke(self) -> None:
        event = LeaseRevoked(self._recent().lease_id, "maintenance", "root", self.random.choice((0, 100)))
        if self.random.random() < 0.3:
            self.log.stamp(event)
        else:
            self.log.write(event)

    def _lose_session(self) -> None:
        request = self._recent()
        if request.session is not None:
            self.log.stamp(SessionLost(request.service, request.session))

    def _reclaim(self) -> None:
        self.log.stamp(VramReclaimed(self._recent().lease_id, "lock_delay"))

    def _observe(self) -> None:
        node, number, total_mib = self.random.choice(DEVICES)
        about: dict[str, Any] = {
            "healthy": self.random.random() < 0.9,
            "simulated": self.random.random() < 0.8,
            "foreign_mib": self.random.choice((0, 0, 0, 3_000)),
            "reserved_mib": self.random.choice((0, 0, 200)),
        }
        self.log.stamp(observed(number, self.random.choice((total_mib, total_mib, total_mib // 2)), node, **about))

    def _lose_device(self) -> None:
        node, number, _ = self.random.choice(DEVICES)
        self.log.stamp(DeviceLost(node, f"cuda:{number}"))

    def _jump(self) -> None:
        delta_ms = self.random.choice((-1_000, 10_000))
        self.log.stamp(ClockJumped(f"{self.log.now_ms - 50}-0", delta_ms))

    def _take_snapshot(self) -> None:
        if self.log.state.last_id == self.log.entries[-1].id:
            self.log.take_snapshot()

    def _set_policy(self) -> None:
        draw = self.random.choice
        most, own = draw((None, 3, 10)), draw((None, 1, 20))
        services: dict[str, int | ServiceRules] = {} if own is None else {"imajin": own}
        if draw((True, False)):
            limit_mib, guarantee_mib = draw((None, 8_192, 24_576, 40_960)), draw((0, 8_192))
            services["ollama"] = ServiceRules(most, guarantee_mib, limit_mib, draw(("low", "normal", "high")))
        rules: dict[str, Any] = {
            "reservations": draw((0, 1, 1, 2, 4, 4)),
            "backfill_order": draw(("key", "key", "short")),
            "starve_ms": draw((0, 200, 2_000, 1_800_000)),
            "preemption": draw(("off", "idle", "idle", "lower", "lower")),
            "preempt_after_ms": PreemptAfter(normal=draw((0, 200, 60_000)), high=draw((0, 50, 5_000))),
            "min_run_ms": draw((0, 100, 2_000)),
            "grace_ms": draw((0, 50, 1_000)),
            "settle_ms": draw((0, 500, 5_000)),
        }
        lock_delay_ms, high_ms = draw((0, 0, 5_000)), draw((0, 1_000, 3_600_000))
        self.log.stamp(replace(policy(lock_delay_ms, most, services, high=high_ms), **rules))
