"""Whatever happens, in whatever order: the core decides what the plain model expects, and the finished log is sound."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from gpuboss.core.explain import explain_first
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
from tests.core.auditor import Audit, audit
from tests.core.compared import ComparedLog
from tests.core.scenario import observed, padded, policy
from tests.core.traffic import Traffic

SIZES = (1, 1_000, 4_000, 4_096, 8_192, 12_288, 16_384, 24_576, 30_000)
WISHES = (None, None, None, None, None, "cuda:0", "cuda:1", "GPU-alpha-1", "GPU-beta-0", "cuda:9")
FARMS = ((24_576,), (24_576, 24_576), (8_192, 24_576, 24_576), ())
MOMENTS_MS = (0, 1, 10, 50, 100, 1_000, 10_000)

Owns = dict[str, int | ServiceRules]

sessions = st.sampled_from((padded("s"), padded("t")))
nodes = st.sampled_from(("alpha", "alpha", "beta"))
numbers = st.integers(0, 2)
moments = st.sampled_from(MOMENTS_MS)
ttls = st.sampled_from((1, 100, 1_000))
reloads = st.sampled_from((0, 5, 5_000, 2**53 - 1))
mostly = st.sampled_from((True, True, True, True, True, True, False))
caps = st.sampled_from((None, None, 1, 2, 5))
limits = st.sampled_from((None, None, 0, 4_096, 10_000, 24_576, 30_000))
own_rules = st.builds(
    ServiceRules,
    max_waiting=caps,
    guarantee_mib=st.sampled_from((0, 4_096, 16_384)),
    limit_mib=limits,
    max_priority=st.sampled_from(("low", "normal", "high", "high")),
)
owns = st.fixed_dictionaries({}, optional={"imajin": own_rules, "ollama": own_rules})
RULES: dict[str, Any] = {
    "reservations": st.sampled_from((0, 1, 2, 4)),
    "backfill_order": st.sampled_from(("key", "short")),
    "starve_ms": st.sampled_from((0, 50, 1_000, 1_800_000)),
    "preemption": st.sampled_from(("off", "idle", "idle", "lower", "lower")),
    "preempt_after_ms": st.builds(PreemptAfter, st.sampled_from((0, 100)), st.sampled_from((0, 10))),
    "min_run_ms": st.sampled_from((0, 50, 1_000)),
    "grace_ms": st.sampled_from((0, 10, 1_000)),
    "settle_ms": st.sampled_from((0, 100, 5_000)),
}
NOBODY = 12
back = st.integers(0, NOBODY)  # which request is meant, counted back from the newest


class AgainstModel(RuleBasedStateMachine):
    """Everything that can stand in a log, drawn at random; read in batches, committed late, crashed and restarted."""

    def __init__(self) -> None:
        super().__init__()
        self.log = ComparedLog()
        self.requests: list[LeaseRequested] = []
        self.unread = 0  # how many more entries the scheduler leaves unread
        self.agreed = True

    @initialize(
        sizes=st.sampled_from(FARMS),
        simulated=st.booleans(),
        lock_delay=st.sampled_from((0, 60_000)),
        most=caps,
        own=owns,
        **RULES,
    )
    def begin(
        self, sizes: tuple[int, ...], simulated: bool, lock_delay: int, most: int | None, own: Owns, **rules: Any
    ) -> None:
        self.happens(SchedulerElected("first", "0", 1, "log-1"))
        self.happens(replace(policy(lock_delay, most, own), **rules))
        for number, size in enumerate(sizes):
            self.happens(observed(number, size, simulated=simulated))

    def happens(self, fact: Event) -> None:
        """The scheduler writes a fact."""
        self.log.stamp(fact)
        self.decide()

    def says(self, event: Event) -> None:
        """A service or an operator writes an event."""
        self.log.write(event)
        self.decide()

    def decide(self) -> None:
        """The scheduler reads what there is and commits, if it is not busy."""
        if self.unread > 0:
            self.unread -= 1
            return
        self.agreed = False
        self.log.read()
        self.log.commit()
        self.agreed = True

    def meant(self, back: int, own: bool) -> tuple[str, str]:
        """The lease_id of a recent request, or of none, and its service, or a stranger."""
        if not self.requests or back == NOBODY:
            return padded("nobody"), "imajin"
        request = self.requests[-1 - back % len(self.requests)]
        return request.lease_id, request.service if own else "stranger"

    @rule(
        vram_mib=st.sampled_from(SIZES),
        service=st.sampled_from(("imajin", "imajin", "ollama")),
        priority=st.sampled_from(("low", "normal", "normal", "high")),
        device=st.sampled_from(WISHES),
        node=st.sampled_from((None, None, None, "alpha", "beta", "gamma")),
        gpus=st.sampled_from((1, 1, 1, 1, 2, 2, 3)),
        exclusive=st.sampled_from((False, False, False, True)),
        ttl_ms=st.none() | ttls,
        wait_ms=st.none() | ttls,
        session=st.none() | sessions,
        instance=st.sampled_from((None, None, "left")),
        reclaimable=mostly,
        preemptible=st.booleans(),
    )
    def request(self, **fields: Any) -> None:
        self.requests.append(LeaseRequested(lease_id=f"lease-{len(self.requests):04}", **fields))
        self.says(self.requests[-1])

    @rule(vram_mib=st.sampled_from(SIZES[:6]), times=st.integers(1, 4), priority=st.sampled_from(("normal", "high")))
    def request_some(self, vram_mib: int, times: int, priority: Any) -> None:
        for _ in range(times):
            name = f"lease-{len(self.requests):04}"
            self.requests.append(LeaseRequested(name, "imajin", vram_mib, priority, reclaimable=True))
            self.says(self.requests[-1])

    @precondition(lambda self: self.requests)
    @rule(back=back, same=mostly)
    def repeat(self, back: int, same: bool) -> None:
        request = self.requests[-1 - back % len(self.requests)]
        changed: dict[str, Any] = {"pid": 7, "model": "sdxl"} if same else {"preemptible": not request.preemptible}
        self.says(replace(request, **changed))

    @rule(back=back, own=mostly)
    def release(self, back: int, own: bool) -> None:
        self.says(LeaseReleased(*self.meant(back, own)))

    @rule(back=back, own=mostly, ttl_ms=ttls)
    def renew(self, back: int, own: bool, ttl_ms: int) -> None:
        self.says(LeaseRenewed(*self.meant(back, own), ttl_ms))

    @rule(back=back, own=mostly, kind=st.sampled_from((LeaseIdled, LeaseResumed)), reload_ms=reloads)
    def idle_or_resume(self, back: int, own: bool, kind: Any, reload_ms: int) -> None:
        self.says(kind(*self.meant(back, own), reload_ms))

    @rule(back=back, grace_ms=st.sampled_from((0, 1, 100)), by_scheduler=st.booleans())
    def revoke(self, back: int, grace_ms: int, by_scheduler: bool) -> None:
        event = LeaseRevoked(self.meant(back, True)[0], "maintenance", "root", grace_ms)
        if by_scheduler:
            self.happens(event)
        else:
            self.says(event)

    @rule(back=back)
    def reclaim(self, back: int) -> None:
        self.happens(VramReclaimed(self.meant(back, True)[0], "lock_delay"))

    @rule(session=sessions, service=st.sampled_from(("imajin", "ollama")))
    def lose_session(self, session: str, service: str) -> None:
        self.happens(SessionLost(service, session))

    @rule(
        number=numbers,
        node=nodes,
        total_mib=st.sampled_from((4_096, 8_192, 24_576, 24_576)),
        reserved_mib=st.sampled_from((0, 0, 100)),
        foreign_mib=st.sampled_from((0, 0, 0, 5_000)),
        healthy=mostly,
        simulated=mostly,
    )
    def observe(self, number: int, node: str, total_mib: int, **fields: Any) -> None:
        self.happens(observed(number, total_mib, node, **fields))

    @rule(number=numbers, node=nodes)
    def lose_device(self, number: int, node: str) -> None:
        self.happens(DeviceLost(node, f"cuda:{number}"))

    @rule(after_ms=moments, at_once=mostly)
    def tick(self, after_ms: int, at_once: bool) -> None:
        self.log.now_ms += after_ms
        self.happens(ClockTicked(self.log.now_ms, inputs_follow=not at_once))

    @rule(after_ms=moments)
    def pause(self, after_ms: int) -> None:
        self.log.now_ms += after_ms

    @rule(sure=st.integers(0, 3))
    def let_a_day_pass(self, sure: int) -> None:
        if sure == 0:
            self.log.now_ms += 24 * 60 * 60 * 1000

    @rule(delta_ms=st.sampled_from((-10_000, 5, 100, 3_600_000)), back_ms=moments)
    def jump(self, delta_ms: int, back_ms: int) -> None:
        self.log.now_ms += max(0, delta_ms)
        self.happens(ClockJumped(f"{self.log.now_ms - back_ms}-0", delta_ms))

    @rule(
        lock_delay=st.sampled_from((0, 60_000)), high=st.sampled_from((0, 100, 3_600_000)), most=caps, own=owns, **RULES
    )
    def set_policy(self, lock_delay: int, high: int, most: int | None, own: Owns, **rules: Any) -> None:
        self.happens(replace(policy(lock_delay, most, own, high=high), **rules))

    @rule(name=st.sampled_from(tuple(hostile.ALL)))
    def attack(self, name: str) -> None:
        self.log.append_hostile(*hostile.ALL[name])
        self.decide()

    @rule(entries=st.integers(1, 5))
    def fall_behind(self, entries: int) -> None:
        self.unread = entries

    @rule(most=st.integers(1, 3))
    def read_without_commit(self, most: int) -> None:
        self.agreed = False
        self.log.read(most)
        self.agreed = True

    @rule()
    def crash(self) -> None:
        self.log.crash()

    @rule()
    def restart(self) -> None:
        self.log.restart()

    @invariant()
    def everyone_who_waits_can_be_told_why(self) -> None:
        state = self.log.state
        if state.look_is_due:
            return  # nobody looked yet who has a place now
        places = explain_first(state)
        for number, (lease_id, why) in enumerate(places.items(), start=1):
            assert why.place == number
            if why.reason in ("reserved_for", "draining"):
                assert why.blocked_by
                assert all(places[i].place < number or i in state.planned for i in why.blocked_by)
            else:
                assert set(why.blocked_by) <= set(state.ledger.leases), lease_id
            if why.reason == "quota":
                service = state.waitlist.by_id[lease_id].request.service
                assert why.blocked_by
                assert {state.ledger.leases[blocker].request.service for blocker in why.blocked_by} == {service}

    def teardown(self) -> None:
        if self.agreed:  # else it has failed already, and would fail again
            self.log.settle()
            assert audit(self.log.entries) == []


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(max_examples=120, stateful_step_count=50)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=12)
def test_busy_days_of_any_seed(seed: int) -> None:
    log = ComparedLog()
    Traffic(log, seed).run(400)
    assert audit(log.entries) == []
    states = {account.standing for account in Audit(log.entries).accounts.values()}
    assert "over" in states
