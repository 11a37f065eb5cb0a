"""What a holder gave back on a real device is charged until it is seen to be back, and no longer than need be."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gpuboss.core import snapshot
from gpuboss.fields import PreemptAfter
from tests.core.reserving import kept
from tests.core.scenario import START_MS, Scenario, idled, jumped, policy, reclaimed


class Real(Scenario):
    """One story on real devices, `cuda:N` for each size given."""

    def __init__(self, *sizes_mib: int, lock_delay_ms: int = 60_000, settle_ms: int = 5_000) -> None:
        super().__init__()
        self.happens(replace(policy(lock_delay_ms), settle_ms=settle_ms))
        for number, size_mib in enumerate(sizes_mib):
            self.device(number, size_mib, simulated=False)

    def restored(self) -> None:
        """Go on from a snapshot."""
        self.state = snapshot.load(snapshot.dump(self.state))


def test_it_is_lent_again_once_a_fact_says_that_it_is_back():
    scenario = Real(24_576)
    scenario.request("a", 20_000)
    scenario.request("b", 20_000)
    assert scenario.release("a") == ["ended a: released, reclaiming"]
    assert scenario.tick(after_ms=3_600_000) == [], "time alone frees nothing"
    assert scenario.state.ledger.devices["alpha/cuda:0"].free_mib == 4_576
    assert scenario.happens(reclaimed("a")) == ["granted b on cuda:0"]


def test_so_is_what_was_asked_back():
    scenario = Real(24_576)
    scenario.request("a", 20_000)
    scenario.revoke("a", grace_ms=1_000)
    assert scenario.release("a") == ["ended a: yielded, reclaiming"]


@pytest.mark.parametrize("rules", [{"settle_ms": 0}, {"lock_delay_ms": 0}], ids=str)
def test_without_time_to_settle_it_is_free_at_once(rules):
    scenario = Real(24_576, **rules)
    scenario.request("a", 24_576)
    assert scenario.release("a") == ["ended a: released, freed"]


def test_on_a_simulated_device_it_is_free_at_once():
    scenario = Scenario(24_576, lock_delay_ms=60_000)
    scenario.request("a", 24_576)
    assert scenario.release("a") == ["ended a: released, freed"]


def test_part_of_a_gang_on_a_real_device_settles_the_whole():
    scenario = Scenario(24_576)
    scenario.happens(policy(lock_delay_ms=60_000))
    scenario.device(1, 24_576, simulated=False)
    scenario.request("a", 24_576, gpus=2)
    assert scenario.release("a") == ["ended a: released, reclaiming"]


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize(("settle_ms", "lock_delay_ms"), [(5_000, 60_000), (5_000, 700)])
def test_who_waits_is_promised_a_start_by_then(settle_ms, lock_delay_ms, restarts):
    scenario = Real(24_576, lock_delay_ms=lock_delay_ms, settle_ms=settle_ms)
    scenario.request("a", 20_000, ttl_ms=90_000)
    scenario.request("b", 20_000)
    assert kept(scenario) == {"b": ("cuda:0", 90_000 + lock_delay_ms)}
    scenario.now_ms += 1_000
    scenario.release("a")
    if restarts:
        scenario.restored()
        scenario.tick()
    assert kept(scenario) == {"b": ("cuda:0", min(settle_ms, lock_delay_ms))}


def test_a_release_shortly_before_the_end_breaks_no_promise():
    scenario = Real(24_576, lock_delay_ms=700)
    scenario.request("a", 20_000, ttl_ms=1_000)
    scenario.request("b", 20_000)
    scenario.now_ms += 999
    assert scenario.release("a") == ["ended a: released, reclaiming"]
    assert kept(scenario) == {"b": ("cuda:0", 700)}


def test_a_jump_of_the_clock_moves_it_along():
    scenario = Real(24_576)
    scenario.request("a", 20_000)
    scenario.request("b", 20_000)
    scenario.release("a")
    scenario.now_ms += 3_600_000
    scenario.happens(jumped(START_MS + 1, 3_600_000))
    assert kept(scenario) == {"b": ("cuda:0", 5_000)}


@pytest.mark.parametrize("restarts", [False, True])
def test_a_warm_model_is_left_alone_where_what_settles_is_enough(restarts):
    scenario = Real(24_576, 24_576)
    scenario.request("a", 20_000, device="cuda:0")
    scenario.request("warm", 20_000, device="cuda:1", reclaimable=True)
    scenario.says(idled("warm"))
    scenario.release("a")
    if restarts:
        scenario.restored()
    assert scenario.request("b", 20_000) == []
    assert scenario.happens(reclaimed("a")) == ["granted b on cuda:0"]


def test_what_settles_counts_beside_what_has_to_be_asked_back():
    scenario = Real(24_576)
    scenario.request("a", 8_000)
    scenario.request("warm", 8_000, reclaimable=True)
    scenario.request("warmer", 8_000, reclaimable=True)
    scenario.says(idled("warm", reload_ms=10))
    scenario.says(idled("warmer", reload_ms=20))
    scenario.release("a")
    assert scenario.request("b", 16_000) == ["asked back warm within 15000 ms for b"]
    assert scenario.release("warm") == ["ended warm: yielded, reclaiming"]
    assert scenario.happens(reclaimed("a")) == [], "it is held for b"
    scenario.restored()
    assert scenario.happens(reclaimed("warm")) == ["granted b on cuda:0"]


def test_where_nothing_settles_the_warm_model_goes():
    scenario = Real(24_576, 24_576)
    scenario.request("a", 20_000, device="cuda:0", session="s")
    scenario.request("warm", 20_000, device="cuda:1", reclaimable=True)
    scenario.says(idled("warm"))
    scenario.revoke("a")
    assert scenario.request("b", 20_000) == ["asked back warm within 15000 ms for b"]


def test_it_counts_where_held_leases_of_a_lower_class_are_asked_back_too():
    scenario = Real(24_576)
    rules = {"preemption": "lower", "preempt_after_ms": PreemptAfter(normal=0, high=0), "min_run_ms": 0}
    scenario.happens(replace(scenario.state.policy, reservations=0, **rules))
    scenario.request("low", 16_000, priority="low")
    scenario.request("a", 8_000, priority="high")
    scenario.tick(after_ms=100)
    assert scenario.request("b", 24_000, priority="high") == []
    assert scenario.release("a") == ["ended a: released, reclaiming", "asked back low within 15000 ms for b"]
