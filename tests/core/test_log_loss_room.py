"""Entries of the log are gone: what is reasserted takes the room that it says, even if there is none; others wait."""

from tests.core.auditor import audit
from tests.core.lossy import (
    RECOVERY_MS,
    overcommitted,
    recovering,
    unchanged_but_refused,
)
from tests.core.scenario import device_lost, session_lost

# ---------------------------------------------------------------- several devices, and none for others


def test_several_devices_are_charged_all_and_come_back_all():
    scenario = recovering(24_576, 24_576, 24_576)
    scenario.reasserts("a", 0, 2)
    assert [scenario.free_mib(number) for number in range(3)] == [16_384, 24_576, 16_384]
    scenario.release("a")
    assert [scenario.free_mib(number) for number in range(3)] == [24_576] * 3


def test_a_gang_that_waits_finds_what_was_reasserted_in_its_way():
    scenario = recovering(24_576, 24_576)
    scenario.reasserts("a", 1, vram_mib=20_000)
    scenario.request("gang", 10_000, gpus=2)
    assert scenario.tick(RECOVERY_MS) == []
    assert scenario.release("a") == ["ended a: released, freed", "granted gang on cuda:0+cuda:1"]


def test_who_had_a_device_for_itself_keeps_it_so():
    scenario = recovering(24_576, 24_576)
    scenario.reasserts("a", 0, exclusive=True)
    scenario.request("b", 8_192)
    scenario.request("c", 8_192, device="cuda:0")
    assert scenario.tick(RECOVERY_MS) == ["granted b on cuda:1"]
    assert scenario.release("a") == ["ended a: released, freed", "granted c on cuda:0"]


def test_who_shared_a_device_keeps_out_who_wants_it_alone():
    scenario = recovering()
    scenario.reasserts("a")
    scenario.request("b", 8_192, exclusive=True)
    assert scenario.tick(RECOVERY_MS) == []
    assert scenario.release("a") == ["ended a: released, freed", "granted b on cuda:0"]


def test_a_request_for_a_device_alone_whose_grant_was_lost_has_it_alone():
    scenario = recovering()
    scenario.request("a", 8_192, exclusive=True)
    scenario.reasserts("a")  # a holder need not repeat what its request says
    scenario.request("b", 8_192)
    assert scenario.tick(RECOVERY_MS) == []


def test_who_shares_a_device_by_a_reassertion_does_not_open_it_for_others():
    scenario = recovering()
    scenario.reasserts("alone", exclusive=True)
    scenario.reasserts("beside")
    scenario.request("c", 1)
    assert scenario.tick(RECOVERY_MS) == []
    assert audit(scenario.entries) == []
    assert scenario.release("alone") == ["ended alone: released, freed", "granted c on cuda:0"]


def test_whether_a_device_is_shared_is_the_same_after_a_restart():
    scenario = recovering()
    scenario.reasserts("beside")
    scenario.reasserts("alone", exclusive=True)
    scenario.release("alone")
    told = scenario.tick(RECOVERY_MS) + scenario.request("c", 1)
    restarted = recovering()
    restarted.reasserts("beside")
    restarted.reasserts("alone", exclusive=True)
    restarted.release("alone")
    restarted.restart()
    assert restarted.tick(RECOVERY_MS) + restarted.request("c", 1) == told


def test_a_device_that_is_named_twice_is_no_two_devices():
    scenario = recovering()
    unchanged_but_refused(scenario, "a", 0, 0)
    assert scenario.happens(device_lost(0)) == []


def test_a_lease_of_more_devices_than_can_be_asked_for_is_refused():
    scenario = recovering()
    unchanged_but_refused(scenario, "a", *[0] * 1_025)
    scenario.restart()


# ---------------------------------------------------------------- more than there is


def test_where_more_is_held_than_there_is_nothing_is_granted_until_it_is_cleared_up():
    scenario = overcommitted()
    scenario.request("small", 1, device="cuda:0")
    assert scenario.tick(RECOVERY_MS) == []
    assert scenario.request("another", 1, device="cuda:0") == []
    assert scenario.happens(session_lost("dead")) == [
        "ended stale: session_lost, freed",
        "granted small on cuda:0",
        "granted another on cuda:0",
    ]
    assert audit(scenario.entries) == []


def test_where_more_is_held_than_there_is_others_go_on():
    scenario = overcommitted()
    scenario.request("a", 20_000, device="cuda:1")
    scenario.request("b", 1)
    assert scenario.tick(RECOVERY_MS) == ["granted a on cuda:1", "granted b on cuda:1"]
    assert audit(scenario.entries) == []


def test_more_than_there_is_survives_a_restart_and_is_given_back():
    scenario = overcommitted()
    scenario.restart()
    assert scenario.free_mib() == 24_576 - 40_000
    scenario.release("waits")
    scenario.release("stale")
    assert scenario.free_mib() == 24_576
