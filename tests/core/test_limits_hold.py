"""Whatever services with limits do: none ever holds more by a grant, nobody who may begin waits, and nobody starves."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gpuboss.core.placement import place
from gpuboss.core.reservations import Reservations
from gpuboss.core.waitlist import Waiting
from gpuboss.events import ClockTicked, Event, LeaseReleased, LeaseRenewed, LeaseRequested, SchedulerElected
from gpuboss.fields import ServiceRules
from tests.core.auditor import audit
from tests.core.scenario import Log, observed, policy

SIZES_MIB = (1_000, 4_000, 8_000, 12_000, 20_000)
LIMITS_MIB = (0, 8_000, 12_000, 20_000, 48_000, None)
SERVICES = ("imajin", "ollama", "whisper")
CARDS_MIB = (24_000, 24_000, 12_000)

seeds = st.integers(0, 2**32)


class Day(Log):
    """Three services on three cards: their limits change, their leases are turned over. The same seed, the same day."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = Random(seed)
        self.asked: list[LeaseRequested] = []
        self.limits: dict[str, int] = {}
        self.happens(SchedulerElected("first", "0", 1, "log-1"))
        for number, size_mib in enumerate(CARDS_MIB):
            self.happens(observed(number, size_mib))
        self.set_limits()

    def happens(self, event: Event) -> None:
        """An entry is written and decided. Raises AssertionError where a grant takes a service above its limit."""
        before = self.held_mib()
        if isinstance(event, (LeaseRequested, LeaseReleased, LeaseRenewed)):
            self.write(event)
        else:
            self.stamp(event)
        self.settle()
        for service, held_mib in self.held_mib().items():
            most_mib = self.limits.get(service)
            assert most_mib is None or held_mib <= max(most_mib, before[service]), service

    def held_mib(self) -> dict[str, int]:
        """What each service is charged, summed up anew."""
        held_mib = dict.fromkeys(SERVICES, 0)
        for device in self.state.ledger.devices.values():
            for lease in device.leases.values():
                held_mib[lease.request.service] += lease.request.vram_mib
        return held_mib

    def set_limits(self) -> None:
        """Other limits for all."""
        drawn = {service: self.random.choice(LIMITS_MIB) for service in SERVICES}
        self.limits = {service: limit_mib for service, limit_mib in drawn.items() if limit_mib is not None}
        rules = policy(services={name: ServiceRules(limit_mib=limit_mib) for name, limit_mib in drawn.items()})
        starve_ms, reservations = self.random.choice((0, 300, 10_000)), self.random.choice((0, 1, 4))
        self.happens(replace(rules, starve_ms=starve_ms, reservations=reservations))

    def go_on(self) -> None:
        """Something happens; what is due is ticked off."""
        draw = self.random.choice
        self.now_ms += draw((0, 10, 50, 200))
        held = list(self.state.ledger.leases.values())
        match draw(("ask",) * 6 + ("release",) * 4 + ("renew", "limits")):
            case "ask":
                asked = LeaseRequested(f"lease-{len(self.asked):05}", draw(SERVICES), draw(SIZES_MIB))
                wishes = draw(({}, {}, {"gpus": 2}, {"device": "cuda:0"}))
                priority, ttl_ms = draw(("low", "normal", "high")), draw((None, 100, 500))
                self.asked.append(replace(asked, priority=priority, ttl_ms=ttl_ms, **wishes))
                self.happens(self.asked[-1])
            case "release" if held:
                request = draw(held).request
                self.happens(LeaseReleased(request.lease_id, request.service))
            case "renew" if held:
                request = draw(held).request
                self.happens(LeaseRenewed(request.lease_id, request.service, 500))
            case "limits":
                self.set_limits()
        timer = self.state.next_timer()
        if timer is not None and timer.deadline_ms <= self.now_ms:
            self.happens(ClockTicked(self.now_ms))

    def may_begin(self, waiting: Waiting) -> bool:
        """By a plain rule: whether it has a place that nothing is kept on for those before it, and is within its limit
        beside what its service holds, what is kept for those of it that come before, and the first who starves."""
        state, service = self.state, waiting.request.service
        mine = (waiting.key, waiting.arrival)
        before = [each for each in state.waitlist.in_order() if (each.key, each.arrival) < mine]
        reserved = Reservations()
        for each in state.reservations.in_order:
            if each.waiting in before:
                reserved.add(each)
        own = [each for each in before if each.request.service == service]
        kept = [each for each in own if reserved.of(each) is not None]
        kept += [each for each in own if each.starves][:1]
        size_mib = sum(each.request.vram_mib * each.request.gpus for each in {*kept, waiting})
        if service in self.limits and self.held_mib()[service] + size_mib > self.limits[service]:
            return False
        shape, rules = waiting.shape, state.policy
        able = [device for device in state.candidates(shape) if reserved.admit(shape, device, state.now_ms, rules)]
        return place(shape, able) is not None


@given(seed=seeds)
@settings(max_examples=25)
def test_nobody_who_may_begin_waits_and_no_grant_goes_above_a_limit(seed: int) -> None:
    day = Day(seed)
    for _ in range(80):
        day.go_on()
        for waiting in day.state.waitlist.in_order():
            assert not day.may_begin(waiting), waiting.request
    assert audit(day.entries) == []


@given(seed=seeds)
@settings(max_examples=25)
def test_all_who_wait_are_granted_if_leases_end_however_small_ones_turn_over(seed: int) -> None:
    """After a busy day nobody asks but a service that takes and gives back what is left of its limit, for ever."""
    day = Day(seed)
    for _ in range(60):
        day.go_on()
    waiting = list(day.state.waitlist.by_id)
    for number in range(40 * (len(waiting) + 1)):
        if not any(lease_id in day.state.waitlist.by_id for lease_id in waiting):
            break
        day.now_ms += 500
        for service in SERVICES:
            day.happens(LeaseRequested(f"turn-{service}-{number:05}", service, 1_000, "low", wait_ms=400))
        held = list(day.state.ledger.leases.values())
        for lease in held[: max(1, len(held) // 2)]:  # the oldest end
            day.happens(LeaseReleased(lease.request.lease_id, lease.request.service))
        day.happens(ClockTicked(day.now_ms))
    assert not [lease_id for lease_id in waiting if lease_id in day.state.waitlist.by_id]
    assert audit(day.entries) == []
