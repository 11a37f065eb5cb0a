"""How leases end without their holder: expiry, revocation, silence, lost devices; and when their VRAM is free again."""

import pytest

from tests.core.scenario import (
    START_MS,
    Scenario,
    device_lost,
    padded,
    policy,
    reclaimed,
    renewed,
    session_lost,
)


def free_mib(scenario: Scenario) -> dict[str, int]:
    """What is free on each device of alpha."""
    return {device.observed.device: device.free_mib for device in scenario.state.ledger.ordered_devices()}


def test_a_lease_expires_with_its_ttl_when_a_tick_says_so():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192, ttl_ms=100)
    assert scenario.tick(after_ms=99) == []
    assert scenario.tick(after_ms=1) == ["ended a: expired, freed"]


def test_time_that_passes_in_ids_alone_expires_nothing():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192, ttl_ms=100)
    scenario.now_ms += 10_000
    assert scenario.request("b", 8_192) == ["granted b on cuda:0"]
    assert scenario.tick() == ["ended a: expired, freed"]


def test_a_renewal_moves_the_end_both_ways():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192, ttl_ms=100)
    scenario.now_ms += 50
    assert scenario.says(renewed("a", 1_000)) == ["extended a by 1000 ms"]
    assert scenario.last.expires_at_ms == START_MS + 1_050
    assert scenario.tick(after_ms=999) == []
    assert scenario.says(renewed("a", 5)) == ["extended a by 5 ms"]
    assert scenario.tick(after_ms=5) == ["ended a: expired, freed"]


def test_a_renewal_gives_a_lease_without_end_one():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192)
    scenario.says(renewed("a", 10))
    assert scenario.tick(after_ms=10) == ["ended a: expired, freed"]


def test_a_renewal_that_comes_before_the_tick_is_in_time():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192, ttl_ms=100)
    scenario.now_ms += 500
    assert scenario.says(renewed("a", 100)) == ["extended a by 100 ms"]
    assert scenario.tick() == []


def test_what_expired_cannot_be_renewed():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192, ttl_ms=100)
    scenario.tick(after_ms=100)
    assert scenario.says(renewed("a", 100)) == ["rejected a: unknown_lease"]


def test_a_revocation_ends_at_once():
    scenario = Scenario(24_576)
    scenario.request("a", 24_576)
    scenario.request("b", 24_576)
    assert scenario.revoke("a") == ["ended a: revoked, freed", "granted b on cuda:0"]


def test_a_revocation_with_grace_asks_first():
    scenario = Scenario(24_576)
    scenario.request("a", 24_576, session="s")
    scenario.request("b", 24_576)
    assert scenario.revoke("a", grace_ms=100) == ["asked back a within 100 ms"]
    asked = scenario.last
    assert (asked.deadline_ms, asked.for_, asked.session) == (START_MS + 100, None, padded("s"))
    assert scenario.release("a") == ["ended a: yielded, freed", "granted b on cuda:0"]
    assert scenario.tick(after_ms=100) == []


@pytest.mark.parametrize(
    ("lock_delay_ms", "simulated", "freed"),
    [(0, True, True), (0, False, False), (60_000, True, False), (60_000, False, False)],
)
def test_memory_that_may_still_be_on_the_card_is_not_free(lock_delay_ms, simulated, freed):
    scenario = Scenario(lock_delay_ms=lock_delay_ms)
    scenario.device(0, 24_576, simulated=simulated)
    for name in ("expired", "revoked", "silent"):
        scenario.request(name, 8_192, ttl_ms=10 if name == "expired" else None, session=name)
    waiting = scenario.request("next", 24_576)
    word = "freed" if freed else "reclaiming"
    waiting += scenario.tick(after_ms=10)
    waiting += scenario.revoke("revoked")
    waiting += scenario.happens(session_lost("silent"))
    assert waiting == [
        f"ended expired: expired, {word}",
        f"ended revoked: revoked, {word}",
        f"ended silent: session_lost, {word}",
        *(["granted next on cuda:0"] if freed else []),
    ]
    assert scenario.state.ledger.devices["alpha/cuda:0"].reclaiming_mib == (0 if freed else 24_576)


def test_reclaimed_vram_is_granted_once_a_fact_says_that_it_is_back():
    scenario = Scenario(24_576, lock_delay_ms=60_000)
    scenario.request("a", 20_000, session="s")
    scenario.request("b", 20_000)
    scenario.happens(session_lost("s"))
    assert scenario.tick(after_ms=3_600_000) == [], "time alone frees nothing"
    assert free_mib(scenario) == {"cuda:0": 4_576}
    assert scenario.happens(reclaimed("a")) == ["granted b on cuda:0"]
    assert scenario.happens(reclaimed("a")) == [], "a fact repeated frees nothing twice"
    assert free_mib(scenario) == {"cuda:0": 4_576}


def test_that_vram_is_back_ends_no_lease_that_is_held():
    scenario = Scenario(24_576)
    scenario.request("a", 20_000)
    scenario.request("b", 20_000)
    assert scenario.happens(reclaimed("a")) == []
    assert scenario.happens(reclaimed("b")) == []
    assert scenario.happens(reclaimed("nobody")) == []
    assert free_mib(scenario) == {"cuda:0": 4_576}


def test_what_an_end_was_said_to_free_is_decided_by_the_policy_of_that_moment():
    scenario = Scenario(24_576)
    scenario.request("a", 8_192, session="s")
    scenario.request("b", 8_192, session="s")
    scenario.revoke("a")
    scenario.happens(policy(lock_delay_ms=5_000))
    assert scenario.revoke("b") == ["ended b: revoked, reclaiming"]


def test_a_lost_session_loses_all_it_waits_for_and_all_it_holds_in_the_order_of_asking():
    scenario = Scenario(24_576)
    scenario.request("b", 8_192, session="s")
    scenario.request("a", 8_192, session="s")
    scenario.request("other", 8_192, session="t")
    scenario.request("none", 1)
    scenario.request("d", 24_576, session="s")
    scenario.request("c", 24_576, session="s", priority="high")
    assert scenario.happens(session_lost("s")) == [
        "ended b: session_lost, freed",
        "ended a: session_lost, freed",
        "denied d: session_lost",
        "denied c: session_lost",
        "granted none on cuda:0",
    ]


def test_the_order_of_asking_survives_a_snapshot():
    scenario = Scenario(24_576)
    scenario.request("fill", 20_000)
    scenario.request("first", 20_000, session="s")
    scenario.request("second", 1, session="s", priority="high")
    scenario.restart()
    assert scenario.happens(session_lost("s")) == ["denied first: session_lost", "ended second: session_lost, freed"]


def test_a_session_belongs_to_its_service():
    scenario = Scenario(24_576)
    scenario.request("a", 1, session="s", service="imajin")
    scenario.request("b", 1, session="s", service="ollama")
    assert scenario.happens(session_lost("s", "ollama")) == ["ended b: session_lost, freed"]


def test_a_lost_session_stays_lost():
    scenario = Scenario(24_576)
    scenario.happens(session_lost("s"))
    assert scenario.request("a", 1, session="s") == ["denied a: session_lost"]
    assert scenario.happens(session_lost("s")) == []
    scenario.now_ms += 24 * 60 * 60 * 1000 - 1
    assert scenario.request("b", 1, session="s") == ["denied b: session_lost"]
    assert scenario.request("c", 1, session="t") == ["granted c on cuda:0"]


def test_a_session_that_is_lost_again_is_remembered_from_the_first_time_on():
    scenario = Scenario(24_576)
    scenario.happens(session_lost("s"))
    scenario.now_ms += 10
    scenario.happens(session_lost("s"))
    scenario.now_ms += 24 * 60 * 60 * 1000 - 10
    assert scenario.request("a", 1, session="s") == ["granted a on cuda:0"]
    scenario.now_ms += 10
    assert scenario.request("b", 1, session="s") == ["granted b on cuda:0"]


def test_a_lost_session_is_told_again_what_it_was_told_before():
    scenario = Scenario(24_576)
    scenario.request("a", 1, session="s")
    scenario.happens(session_lost("s"))
    assert scenario.request("a", 1, session="s") == [
        "again granted a on cuda:0",
        "again ended a: session_lost, freed",
    ]


def test_a_lost_device_ends_what_is_on_it_in_the_order_of_the_grants():
    scenario = Scenario(24_576, 24_576)
    for name, device in (("c", "cuda:0"), ("b", "cuda:1"), ("a", "cuda:0")):
        scenario.request(name, 8_192, device=device)
    assert scenario.happens(device_lost(0)) == ["ended c: device_lost, freed", "ended a: device_lost, freed"]
    assert free_mib(scenario) == {"cuda:1": 16_384}
    assert scenario.happens(device_lost(0)) == [], "it is lost once"


def test_a_lease_on_several_devices_ends_when_one_of_them_is_lost():
    scenario = Scenario(24_576, 24_576, 24_576)
    scenario.request("gang", 20_000, gpus=2)
    scenario.request("next", 20_000, device="cuda:1")
    assert scenario.happens(device_lost(0)) == ["ended gang: device_lost, freed", "granted next on cuda:1"]


def test_what_it_holds_on_the_devices_that_are_left_is_reclaimed_there():
    scenario = Scenario(24_576, 24_576, lock_delay_ms=60_000)
    scenario.request("gang", 20_000, gpus=2)
    scenario.request("next", 20_000, device="cuda:1")
    assert scenario.happens(device_lost(0)) == ["ended gang: device_lost, reclaiming"]
    assert free_mib(scenario) == {"cuda:1": 4_576}
    assert scenario.happens(reclaimed("gang")) == ["granted next on cuda:1"]


def test_when_the_last_of_its_devices_is_lost_nothing_is_left_to_be_reclaimed():
    scenario = Scenario(24_576, 24_576, 24_576, lock_delay_ms=60_000)
    scenario.request("gang", 20_000, gpus=2)
    scenario.happens(device_lost(1))
    assert padded("gang") in scenario.state.ledger.leases
    scenario.stamp(device_lost(0))
    [told_nothing] = [scenario.step(entry) for entry in scenario.entries[-1:]]
    assert told_nothing.told == []
    assert told_nothing.lease_ids == [padded("gang")], "its row must go, though there is nothing to say"
    assert scenario.state.ledger.leases == {}


def test_a_device_that_comes_back_is_empty():
    scenario = Scenario(24_576)
    scenario.request("a", 20_000)
    scenario.happens(device_lost(0))
    assert scenario.request("b", 24_576) == []
    assert scenario.device(0, 24_576) == ["granted b on cuda:0"]


def test_what_nothing_could_hold_any_more_is_denied_in_the_order_of_the_queue():
    scenario = Scenario(24_576, 8_192)
    scenario.request("fill", 24_576)
    scenario.request("fits", 8_192)
    for name, vram_mib, priority in (
        ("d", 20_000, "low"),
        ("a", 8_193, "normal"),
        ("c", 20_000, "normal"),
        ("e", 8_192, "normal"),
        ("b", 24_576, "high"),
    ):
        assert scenario.request(name, vram_mib, priority=priority) == []
    assert scenario.happens(device_lost(0)) == [
        "ended fill: device_lost, freed",
        "denied b: impossible",
        "denied a: impossible",
        "denied c: impossible",
        "denied d: impossible",
    ]
    assert scenario.release("fits") == ["ended fits: released, freed", "granted e on cuda:1"]


def test_the_order_of_these_denials_survives_a_snapshot():
    # Shapes come back from a snapshot in another order than they came up in.
    scenario = Scenario(24_576)
    scenario.request("fill", 24_576)
    scenario.request("x", 20_000)
    scenario.request("a", 16_000)
    scenario.request("b", 20_000)
    scenario.release("x")
    scenario.restart()
    assert scenario.device(0, 8_192) == ["denied a: impossible", "denied b: impossible"]


def test_without_any_device_requests_wait():
    scenario = Scenario(24_576)
    scenario.request("a", 24_576)
    scenario.request("b", 8_192)
    assert scenario.happens(device_lost(0)) == ["ended a: device_lost, freed"]
    assert scenario.request("c", 99_999) == []


def test_a_device_that_shrinks_keeps_its_leases_and_lends_nothing_until_there_is_room():
    scenario = Scenario(24_576)
    scenario.request("a", 10_000)
    scenario.request("b", 10_000)
    scenario.request("c", 10_000)
    assert scenario.device(0, 12_000) == []
    assert free_mib(scenario) == {"cuda:0": -8_000}
    assert scenario.release("a") == ["ended a: released, freed"]
    assert scenario.release("b") == ["ended b: released, freed", "granted c on cuda:0"]


def test_a_device_that_grows_makes_room():
    scenario = Scenario(8_192)
    scenario.request("a", 8_192)
    scenario.request("b", 8_192)
    assert scenario.device(0, 16_384) == ["granted b on cuda:0"]


def test_a_device_that_shows_up_makes_room():
    scenario = Scenario(8_192)
    scenario.request("a", 8_192)
    scenario.request("b", 8_192)
    assert scenario.device(0, 8_192, "beta") == ["granted b on beta/cuda:0"]


def test_what_is_kept_free_on_a_lost_device_is_chosen_anew():
    scenario = Scenario(24_576, 24_576)
    scenario.request("x", 24_576, device="cuda:0")
    scenario.request("y", 24_576, device="cuda:1")
    scenario.request("large", 20_000)  # keeps cuda:0 free
    scenario.happens(device_lost(0))
    assert scenario.request("small", 1) == []
    assert scenario.release("y") == [
        "ended y: released, freed",
        "granted large on cuda:1",
        "granted small on cuda:1",
    ]


def test_a_device_that_comes_back_under_its_old_name_is_another_one_also_after_a_snapshot():
    decided = []
    for restarts in (False, True):
        scenario = Scenario(24_576)
        scenario.request("x", 24_576)
        scenario.request("large", 24_576)  # keeps alpha/cuda:0 free
        scenario.happens(device_lost(0))
        if restarts:
            scenario.restart()
        scenario.device(0, 24_576, "beta", foreign_mib=1)
        scenario.device(0, 24_576, foreign_mib=2)  # lacks more than beta's
        decided.append(scenario.request("small", 1))
    assert decided == [["granted small on cuda:0"], ["granted small on cuda:0"]]
