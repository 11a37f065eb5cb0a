"""Large requests do not starve: where leases end by themselves a large one starts by its promise, whatever comes; where
they do not, devices are drained for it once it has waited for long enough."""

import heapq
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gpuboss.events import (
    ClockTicked,
    Event,
    EventRejected,
    LeaseGranted,
    LeaseReleased,
    LeaseRenewed,
    LeaseRequested,
    PromiseMoved,
    SchedulerElected,
)
from tests.core.scenario import Log, observed, policy

CARD_MIB = 24_576
STEP_MS = 10
PATIENCE_MS = 100  # how long a small request waits: those that came before a large one may still get ahead of it
STARVE_MS = 400


class Flood:
    """Small requests without end, and large ones among them. Every small lease is given back within `hold_ms`, or,
    where it has a `ttl_ms`, some are left to end by themselves."""

    def __init__(self, devices: int, hold_ms: int, small: tuple[int, ...], **fields: Any) -> None:
        self.log = Log()
        self.log.stamp(SchedulerElected("first", "0", 1, "log-1"))
        self.log.stamp(replace(policy(low=0, normal=1_000, high=4_000), starve_ms=STARVE_MS))
        for number in range(devices):
            self.log.stamp(observed(number, CARD_MIB))
        self.hold_ms, self.small, self.fields = hold_ms, small, fields
        self.renews = False  # whether every small lease is renewed again and again
        self.asked = self.refused = 0
        self.leaving: list[tuple[int, str]] = []  # when each lease is given back
        self.waited_ms: dict[str, int] = {}  # of the large ones that were granted
        self.moved: list[PromiseMoved] = []
        self._decide()

    def run(self, for_ms: int) -> None:
        """Ask for a small lease every 10 ms, and give back what is due; a tick at every deadline."""
        until_ms = self.log.now_ms + for_ms
        while self.log.now_ms < until_ms:
            self._tick_until(self.log.now_ms + STEP_MS)
            while self.leaving and self.leaving[0][0] <= self.log.now_ms:
                self._say(LeaseReleased(heapq.heappop(self.leaving)[1], "imajin"))
            if self.renews:
                held = [each for each in self.log.state.ledger.leases if each.startswith("small")]
                for lease_id in held:
                    self._say(LeaseRenewed(lease_id, "imajin", self.hold_ms))
            self.asked += 1
            size_mib, name = self.small[self.asked % len(self.small)], f"small-{self.asked:06}"
            self._say(LeaseRequested(name, "imajin", size_mib, wait_ms=PATIENCE_MS, **self.fields))

    def ask_large(self, name: str, **fields: Any) -> int | None:
        """Ask for a large lease. Returns in how many ms it is promised to start, if it is."""
        self._say(LeaseRequested(name, "imajin", **fields))
        kept = self.log.state.reservations.in_order
        if not kept or kept[0].waiting.request.lease_id != name or kept[0].promised_ms is None:
            return None
        return kept[0].promised_ms - self.log.now_ms

    def _tick_until(self, until_ms: int) -> None:
        while (timer := self.log.state.next_timer()) is not None and timer.deadline_ms <= until_ms:
            self.log.now_ms = max(self.log.now_ms, timer.deadline_ms)
            self.log.stamp(ClockTicked(self.log.now_ms))
            self._decide()
        self.log.now_ms = until_ms

    def _say(self, event: Event) -> None:
        self.log.write(event)
        self._decide()

    def _decide(self) -> None:
        for told in self.log.settle():
            decision = told.decision
            if isinstance(decision, PromiseMoved):
                self.moved.append(decision)
            self.refused += isinstance(decision, EventRejected) and decision.reason == "reserved"
            if isinstance(decision, LeaseGranted):
                held_ms = 1 + decision.fence * 7_919 % self.hold_ms  # irregular, and never longer than hold_ms
                if decision.expires_at_ms is None or decision.fence % 2:
                    heapq.heappush(self.leaving, (self.log.now_ms + held_ms, decision.lease_id))
                if decision.lease_id.startswith("large"):
                    self.waited_ms[decision.lease_id] = decision.waited_ms


holds = st.sampled_from((50, 300, 900))
smalls = st.lists(st.sampled_from((1, 1_000, 3_000, 8_192, 12_288)), min_size=1, max_size=3).map(tuple)
wishes = st.sampled_from(
    (
        {"vram_mib": CARD_MIB},
        {"vram_mib": 20_000},
        {"vram_mib": 1, "exclusive": True},
        {"vram_mib": CARD_MIB, "device": "cuda:0"},
    )
)


# ---------------------------------------------------------------- where leases end by themselves


@given(devices=st.integers(1, 3), hold_ms=holds, small=smalls, wish=wishes, head_ms=st.sampled_from((10, 500)))
@settings(max_examples=30)
def test_a_large_request_waits_for_the_leases_that_are_there_and_for_no_other(devices, hold_ms, small, wish, head_ms):
    flood = Flood(devices, hold_ms, small, ttl_ms=hold_ms)
    flood.run(head_ms)
    promised_ms = flood.ask_large("large-01", **wish)
    flood.run(hold_ms + PATIENCE_MS + STEP_MS)
    assert flood.waited_ms["large-01"] <= hold_ms + PATIENCE_MS
    assert promised_ms is None or flood.waited_ms["large-01"] <= promised_ms
    assert flood.moved == []


def test_a_flood_against_four_devices_at_once_costs_what_was_promised_to_the_ms():
    flood = Flood(4, 300, (8_192,), ttl_ms=300)
    flood.run(500)
    ends = [lease.expires_at_ms for lease in flood.log.state.ledger.leases.values()]
    promised_ms = flood.ask_large("large-01", vram_mib=CARD_MIB, gpus=4, priority="high")  # before all who wait
    assert promised_ms == max(end for end in ends if end is not None) - flood.log.now_ms > 0
    flood.leaving.clear()  # the leases that are there are held to their ends
    flood.run(300)
    assert flood.waited_ms == {"large-01": promised_ms}
    assert flood.asked >= 80


@given(devices=st.integers(1, 4), hold_ms=holds, small=smalls)
@settings(max_examples=10)
def test_a_storm_of_renewals_changes_nothing(devices, hold_ms, small):
    flood = Flood(devices, hold_ms, small, ttl_ms=hold_ms)
    flood.renews = True
    flood.run(200)
    flood.leaving.clear()  # nobody gives anything back any more
    promised_ms = flood.ask_large("large-01", vram_mib=CARD_MIB, gpus=devices)
    flood.run(hold_ms + PATIENCE_MS + STEP_MS)
    assert flood.waited_ms["large-01"] <= (hold_ms + PATIENCE_MS if promised_ms is None else promised_ms)
    assert flood.refused > 0
    assert flood.moved == []


@given(hold_ms=holds, small=smalls)
@settings(max_examples=10)
def test_several_large_ones_are_served_one_after_the_other(hold_ms, small):
    flood = Flood(3, hold_ms, small, ttl_ms=hold_ms)
    flood.run(200)
    for number in range(3):
        flood.ask_large(f"large-{number:02}", vram_mib=CARD_MIB, ttl_ms=10_000)
    for served in (1, 2, 3):
        flood.run(hold_ms + PATIENCE_MS + STEP_MS)
        assert len(flood.waited_ms) >= served
    assert sorted(flood.waited_ms) == list(flood.waited_ms), "in the order in which they came"


def test_a_flood_of_a_higher_class_gets_ahead_for_the_difference_of_the_head_starts_and_no_longer():
    for ttl_ms, starve_ms in ((300, 0), (None, STEP_MS)):
        flood = Flood(1, 300, (8_192,), priority="high", ttl_ms=ttl_ms)  # three seconds ahead
        flood.run(200)
        flood.ask_large("large-01", vram_mib=CARD_MIB)
        flood.run(3_000)
        assert flood.waited_ms == {}, "the flood does get ahead"
        flood.run(300 + PATIENCE_MS + starve_ms + STEP_MS)
        assert 3_000 < flood.waited_ms["large-01"] <= 3_300 + PATIENCE_MS + starve_ms


# ---------------------------------------------------------------- where they do not


@given(devices=st.integers(1, 3), hold_ms=holds, small=smalls, wish=wishes, head_ms=st.sampled_from((10, 500)))
@settings(max_examples=30)
def test_a_large_request_that_starved_waits_for_the_leases_that_are_there(devices, hold_ms, small, wish, head_ms):
    flood = Flood(devices, hold_ms, small)
    flood.run(head_ms)
    flood.ask_large("large-01", **wish)
    flood.run(STARVE_MS + hold_ms + PATIENCE_MS + STEP_MS)
    assert flood.waited_ms["large-01"] <= STARVE_MS + hold_ms + PATIENCE_MS + STEP_MS


@given(devices=st.integers(2, 4), hold_ms=holds, small=smalls)
@settings(max_examples=10)
def test_so_does_a_request_for_all_devices_at_once_one_after_the_other(devices, hold_ms, small):
    flood = Flood(devices, hold_ms, small)
    flood.run(200)
    flood.ask_large("large-01", vram_mib=CARD_MIB, gpus=devices)
    flood.run(STARVE_MS + devices * (hold_ms + STEP_MS) + PATIENCE_MS + STEP_MS)
    assert flood.waited_ms["large-01"] <= STARVE_MS + devices * (hold_ms + STEP_MS) + PATIENCE_MS


def test_until_then_everything_passes_it():
    flood = Flood(1, 300, (8_192,))
    flood.run(200)
    flood.ask_large("large-01", vram_mib=CARD_MIB)
    served = flood.log.state.fence
    flood.run(STARVE_MS - STEP_MS)
    assert flood.waited_ms == {}
    assert flood.log.state.fence > served + 3


def test_without_a_flood_there_is_nothing_to_wait_for():
    flood = Flood(2, 300, (8_192,))
    flood.ask_large("large-01", vram_mib=CARD_MIB)
    assert flood.waited_ms == {"large-01": 0}
