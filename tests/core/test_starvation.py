"""Large requests do not starve: however many small ones come, what is kept free for a large one becomes free."""

import heapq
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuboss.events import ClockTicked, LeaseGranted, LeaseReleased, LeaseRequested, SchedulerElected
from tests.core.scenario import START_MS, Log, observed, policy

CARD_MIB = 24_576
STEP_MS = 10
PATIENCE_MS = 100  # how long a small request waits: those that came before a large one may still get ahead of it


class Flood:
    """Small requests without end, and large ones among them; every lease is given back within `hold_ms`."""

    def __init__(self, devices: int, hold_ms: int, small: tuple[int, ...], priority: Any) -> None:
        self.log = Log()
        self.log.stamp(SchedulerElected("first", "0", 1, "log-1"))
        self.log.stamp(policy())
        for number in range(devices):
            self.log.stamp(observed(number, CARD_MIB))
        self.hold_ms, self.small, self.priority = hold_ms, small, priority
        self.asked = 0
        self.leaving: list[tuple[int, str]] = []  # when each lease is given back
        self.waited_ms: dict[str, int] = {}  # of the large ones that were granted
        self._decide()

    def run(self, until_ms: int) -> None:
        """Ask for a small lease every 10 ms, and give back what is due."""
        while self.log.now_ms < until_ms:
            self.log.now_ms += STEP_MS
            self.log.stamp(ClockTicked(self.log.now_ms))
            while self.leaving and self.leaving[0][0] <= self.log.now_ms:
                self.log.write(LeaseReleased(heapq.heappop(self.leaving)[1], "imajin"))
            self.asked += 1
            size_mib = self.small[self.asked % len(self.small)]
            name = f"small-{self.asked:06}"
            self.log.write(LeaseRequested(name, "imajin", size_mib, self.priority, wait_ms=PATIENCE_MS))
            self._decide()

    def ask_large(self, name: str, **fields: Any) -> None:
        """Ask for a large lease."""
        self.log.write(LeaseRequested(name, "imajin", **fields))
        self._decide()

    def _decide(self) -> None:
        for told in self.log.settle():
            granted = told.decision
            if isinstance(granted, LeaseGranted):
                held_ms = 1 + granted.fence * 7_919 % self.hold_ms  # irregular, and never longer than hold_ms
                heapq.heappush(self.leaving, (self.log.now_ms + held_ms, granted.lease_id))
                if granted.lease_id.startswith("large"):
                    self.waited_ms[granted.lease_id] = granted.waited_ms


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


@given(devices=st.integers(1, 3), hold_ms=holds, small=smalls, wish=wishes, head_ms=st.sampled_from((10, 500)))
@settings(max_examples=30)
def test_a_large_request_waits_for_the_leases_that_are_there_and_for_no_other(devices, hold_ms, small, wish, head_ms):
    flood = Flood(devices, hold_ms, small, "normal")
    flood.run(START_MS + head_ms)
    flood.ask_large("large-01", **wish)
    flood.run(flood.log.now_ms + hold_ms + PATIENCE_MS + 2 * STEP_MS)
    assert flood.waited_ms["large-01"] <= hold_ms + PATIENCE_MS + STEP_MS


@given(devices=st.integers(2, 3), hold_ms=holds, small=smalls)
@settings(max_examples=10)
def test_so_does_a_request_for_all_devices_at_once(devices, hold_ms, small):
    flood = Flood(devices, hold_ms, small, "normal")
    flood.run(START_MS + 200)
    flood.ask_large("large-01", vram_mib=CARD_MIB, gpus=devices)
    flood.run(flood.log.now_ms + hold_ms + PATIENCE_MS + 2 * STEP_MS)
    assert flood.waited_ms["large-01"] <= hold_ms + PATIENCE_MS + STEP_MS


@given(hold_ms=holds, small=smalls)
@settings(max_examples=10)
def test_several_large_ones_are_served_one_after_the_other(hold_ms, small):
    flood = Flood(3, hold_ms, small, "normal")
    flood.run(START_MS + 200)
    for number in range(3):
        flood.ask_large(f"large-{number:02}", vram_mib=CARD_MIB)
    for served in (1, 2, 3):
        flood.run(flood.log.now_ms + hold_ms + PATIENCE_MS + 2 * STEP_MS)
        assert len(flood.waited_ms) >= served
    assert sorted(flood.waited_ms) == list(flood.waited_ms), "in the order in which they came"


def test_a_flood_of_a_higher_class_gets_ahead_for_the_difference_of_the_head_starts_and_no_longer():
    flood = Flood(1, 300, (8_192,), "high")
    flood.log.stamp(policy(low=0, normal=1_000, high=4_000))  # three seconds ahead
    flood.run(START_MS + 200)
    flood.ask_large("large-01", vram_mib=CARD_MIB)
    flood.run(flood.log.now_ms + 3_000)
    assert flood.waited_ms == {}, "the flood does get ahead"
    flood.run(flood.log.now_ms + 300 + PATIENCE_MS + 2 * STEP_MS)
    assert 3_000 < flood.waited_ms["large-01"] <= 3_300 + PATIENCE_MS + STEP_MS


def test_without_a_flood_there_is_nothing_to_wait_for():
    flood = Flood(2, 300, (8_192,), "normal")
    flood.ask_large("large-01", vram_mib=CARD_MIB)
    assert flood.waited_ms == {"large-01": 0}
