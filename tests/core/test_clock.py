"""The log's clock: it never goes back, fires on ticks alone, in one order; and a jump of the server moves deadlines."""

from gpuboss.core.timers import Timer, TimerKind, Timers
from gpuboss.events import ClockTicked, LeaseReleased
from tests.core.scenario import START_MS, Scenario, jumped, padded, renewed, session_lost


def test_now_is_the_largest_of_ids_and_ticks():
    scenario = Scenario(24_576)
    assert scenario.state.now_ms == START_MS
    scenario.happens(ClockTicked(START_MS + 500))
    assert scenario.state.now_ms == START_MS + 500
    scenario.now_ms += 200
    scenario.request("a", 1)
    assert scenario.last.granted_at_ms == START_MS + 500
    scenario.happens(ClockTicked(1))
    assert scenario.state.now_ms == START_MS + 500


def test_decisions_do_not_move_the_clock():
    scenario = Scenario(24_576)
    scenario.write(LeaseReleased(padded("x"), "imajin"))
    scenario.read()
    scenario.now_ms += 5_000
    scenario.commit()
    assert len(scenario.entries) == 5
    scenario.read()
    assert scenario.state.now_ms == START_MS


def test_every_input_moves_the_clock_also_one_that_is_rejected():
    scenario = Scenario(24_576)
    for write in (
        lambda: scenario.writes(b"Nonsense", b"{}"),
        lambda: scenario.forges(ClockTicked(5), 1, 99),
        lambda: scenario.release("nobody"),
        lambda: scenario.tick(),
    ):
        scenario.now_ms += 10
        write()
        assert scenario.state.now_ms == scenario.now_ms


def test_timers_fire_by_deadline_then_kind_then_id():
    timers = Timers()
    wanted = [
        Timer(1, TimerKind.WAIT_TIMEOUT, "z"),
        Timer(2, TimerKind.LEASE_EXPIRY, "b"),
        Timer(2, TimerKind.LEASE_EXPIRY, "c"),
        Timer(2, TimerKind.YIELD_DEADLINE, "a"),
        Timer(2, TimerKind.WAIT_TIMEOUT, "a"),
        Timer(3, TimerKind.LEASE_EXPIRY, "a"),
    ]
    for timer in (wanted[3], wanted[5], wanted[0], wanted[4], wanted[2], wanted[1]):
        timers.set(*timer)
    assert [timers.drop_first() for _ in wanted] == wanted
    assert timers.first() is None


def test_one_tick_fires_all_that_is_due_in_that_order_and_then_looks_for_places():
    scenario = Scenario(24_576)
    scenario.request("late", 4_000, ttl_ms=90)
    scenario.request("b", 4_000, ttl_ms=50)
    scenario.request("a", 4_000, ttl_ms=50)
    scenario.request("asked", 4_000, ttl_ms=1_000)
    scenario.revoke("asked", grace_ms=50)
    scenario.request("wait-z", 20_000, wait_ms=10)
    scenario.request("wait-a", 20_000, wait_ms=50)
    scenario.request("patient", 10_000)
    assert scenario.tick(after_ms=100) == [
        "denied wait-z: timeout",
        "ended a: expired, freed",
        "ended b: expired, freed",
        "ended asked: revoked, freed",
        "denied wait-a: timeout",
        "ended late: expired, freed",
        "granted patient on cuda:0",
    ]


def test_who_times_out_at_the_ms_at_which_room_comes_up_is_not_granted():
    scenario = Scenario(24_576)
    scenario.request("a", 24_576, ttl_ms=50)
    scenario.request("b", 24_576, wait_ms=50)
    assert scenario.tick(after_ms=50) == ["ended a: expired, freed", "denied b: timeout"]


def test_the_next_deadline_is_the_one_that_still_holds():
    scenario = Scenario(24_576)
    assert scenario.state.next_timer() is None
    scenario.request("a", 24_576, ttl_ms=50)
    assert scenario.state.next_timer() == Timer(START_MS + 50, TimerKind.LEASE_EXPIRY, padded("a"))
    scenario.says(renewed("a", 1_000))
    scenario.request("b", 24_576, wait_ms=500)
    assert scenario.state.next_timer() == Timer(START_MS + 500, TimerKind.WAIT_TIMEOUT, padded("b"))
    scenario.release("b")
    assert scenario.state.next_timer() == Timer(START_MS + 1_000, TimerKind.LEASE_EXPIRY, padded("a"))
    scenario.release("a")
    assert scenario.state.next_timer() is None


def test_who_waits_behind_leases_without_an_end_starves_at_a_deadline_of_its_own():
    scenario = Scenario(24_576)
    scenario.request("a", 10_000)
    scenario.request("b", 24_576)
    scenario.request("c", 20_000)
    assert scenario.state.next_timer() == Timer(START_MS + 1_800_000, TimerKind.STARVATION, padded("b"))
    scenario.release("b")
    assert scenario.state.next_timer() == Timer(START_MS + 1_800_000, TimerKind.STARVATION, padded("c"))
    scenario.says(renewed("a", 1_000))  # now it has an end
    assert scenario.state.next_timer() == Timer(START_MS + 1_000, TimerKind.LEASE_EXPIRY, padded("a"))
    scenario.release("a")
    assert scenario.state.next_timer() is None


def test_who_times_out_at_the_ms_at_which_it_starves_is_gone():
    scenario = Scenario(24_576)
    scenario.request("a", 10_000)
    scenario.request("b", 24_576, wait_ms=1_800_000)
    assert scenario.tick(after_ms=1_800_000) == ["denied b: timeout"]


def test_who_starves_later_because_another_came_before_it_starves_none_the_less():
    scenario = Scenario(24_576)
    scenario.request("a", 10_000)
    scenario.request("b", 24_576)
    scenario.request("first", 24_575, priority="high", wait_ms=2_000_000)
    assert scenario.tick(after_ms=1_900_000) == []
    assert scenario.tick(after_ms=100_000) == ["denied first: timeout"]
    assert scenario.tick() == []
    assert scenario.request("c", 1) == [], "the device is being emptied for `b`"
    assert scenario.release("a")[1:] == ["granted b on cuda:0"]


def test_a_jump_moves_the_time_at_which_somebody_starves():
    scenario = Scenario(24_576)
    scenario.request("a", 10_000)
    scenario.request("b", 24_576)
    scenario.now_ms += 3_600_000
    scenario.happens(jumped(scenario.now_ms, 3_600_000))
    later_ms = START_MS + 3_600_000 + 1_800_000
    assert scenario.state.next_timer() == Timer(later_ms, TimerKind.STARVATION, padded("b"))


def test_a_tick_may_leave_it_to_the_entry_behind_it_to_look_for_places():
    for behind in (
        lambda scenario: scenario.release("b"),
        lambda scenario: scenario.writes(b"Nonsense", b"{}"),
        lambda scenario: scenario.forges(ClockTicked(5), 1, 99),
        lambda scenario: scenario.request("other", 24_576),
    ):
        scenario = Scenario(24_576)
        scenario.request("a", 10_000, ttl_ms=50)
        scenario.request("b", 1, device="cuda:0")
        scenario.request("c", 24_000, wait_ms=1_000)
        scenario.request("d", 20_000)
        scenario.now_ms += 50
        tick = ClockTicked(scenario.now_ms, inputs_follow=True)
        assert scenario.happens(tick) == ["ended a: expired, freed"]
        scenario.restart()
        assert behind(scenario)[-1] in ("granted c on cuda:0", "granted d on cuda:0")


def test_what_expires_and_what_is_given_back_at_one_ms_is_lent_out_in_one_go():
    for inputs_follow, who in ((True, "large"), (False, "small")):
        scenario = Scenario(24_576)
        scenario.request("a", 12_000, ttl_ms=50)
        scenario.request("b", 12_000, ttl_ms=90)
        scenario.request("large", 24_576)  # by 90 ms
        scenario.request("small", 12_576, ttl_ms=40)
        scenario.now_ms += 50
        scenario.happens(ClockTicked(scenario.now_ms, inputs_follow=inputs_follow))
        scenario.release("b")
        assert scenario.state.ledger.leases.keys() == {padded(who)}


def test_what_is_being_reclaimed_has_no_deadline():
    scenario = Scenario(24_576, lock_delay_ms=60_000)
    scenario.request("a", 24_576, ttl_ms=50, session="s")
    scenario.happens(session_lost("s"))
    assert scenario.state.next_timer() is None


def jumped_ahead_by_an_hour() -> Scenario:
    """Deadlines of every kind, 1,000 ms away, and a jump of the server's clock; one lease set after it."""
    scenario = Scenario(24_576, 24_576)
    scenario.request("lease", 4_000, ttl_ms=1_000)
    scenario.request("asked", 4_000)
    scenario.revoke("asked", grace_ms=1_000)
    scenario.request("waits", 24_576, wait_ms=1_000, device="cuda:0")
    scenario.now_ms += 3_600_000
    scenario.request("after", 4_000, ttl_ms=1_000, device="cuda:1")
    assert scenario.happens(jumped(scenario.now_ms, 3_600_000)) == ["promised waits a start in 1000 ms"]
    return scenario


def test_a_jump_ahead_expires_nothing_early():
    scenario = jumped_ahead_by_an_hour()
    assert scenario.tick(after_ms=999) == []
    assert scenario.tick(after_ms=1) == [
        "ended after: expired, freed",
        "ended lease: expired, freed",
        "ended asked: revoked, freed",
        "denied waits: timeout",
    ]


def test_what_was_set_before_the_jump_moves_and_what_was_set_after_does_not():
    scenario = jumped_ahead_by_an_hour()
    leases = scenario.state.ledger.leases
    after_ms = START_MS + 3_600_000
    assert leases[padded("lease")].expires_at_ms == after_ms + 1_000
    assert leases[padded("after")].expires_at_ms == after_ms + 1_000
    assert leases[padded("asked")].yield_by_ms == after_ms + 1_000
    assert scenario.state.waitlist.by_id[padded("waits")].wait_until_ms == after_ms + 1_000


def test_a_second_jump_moves_them_again():
    scenario = jumped_ahead_by_an_hour()
    scenario.now_ms += 7_200_000
    scenario.happens(jumped(scenario.now_ms, 7_200_000))
    assert scenario.tick(after_ms=999) == []
    assert len(scenario.tick(after_ms=1)) == 4


def test_a_jump_back_moves_them_back():
    scenario = Scenario(24_576)
    scenario.request("a", 4_000, ttl_ms=10_000)
    scenario.now_ms += 1
    scenario.happens(jumped(scenario.now_ms, -9_000))
    assert scenario.tick(after_ms=998) == []
    assert scenario.tick(after_ms=1) == ["ended a: expired, freed"]


def test_a_jump_far_back_makes_due_at_once_and_breaks_nothing():
    scenario = Scenario(24_576)
    scenario.request("a", 4_000, ttl_ms=10_000)
    scenario.now_ms += 1
    scenario.happens(jumped(scenario.now_ms, -(2**53) + 1))
    assert scenario.state.ledger.leases[padded("a")].expires_at_ms == 0
    assert scenario.tick() == ["ended a: expired, freed"]


def test_a_jump_does_not_bring_back_vram_that_may_still_be_in_use():
    scenario = Scenario(24_576, lock_delay_ms=60_000)
    scenario.request("a", 4_000, session="s")
    scenario.happens(session_lost("s"))
    scenario.now_ms += 3_600_000
    scenario.happens(jumped(scenario.now_ms, 3_600_000))
    assert scenario.state.ledger.leases[padded("a")].reclaiming_since_ms == START_MS + 3_600_000


def test_the_rows_of_leases_that_moved_are_shown_anew():
    scenario = jumped_ahead_by_an_hour()
    scenario.now_ms += 1_000
    scenario.stamp(jumped(scenario.now_ms, 1_000))
    turn = scenario.step(scenario.entries[-1])
    assert turn.lease_ids == [padded("lease"), padded("after")]
