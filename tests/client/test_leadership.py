"""When somebody leads, when nobody does, when to look again, how long to trust: rules about what a beat saw."""

import pytest

from gpuboss.client.leadership import AGAIN_S, HANDOVER_LOOK_S, HANDOVER_S, Leadership, Trust
from gpuboss.client.link import Look

AT_S = 1000.0
SERVER_MS = 1_700_000_000_000  # of another clock altogether


def saw(alive_for_ms: int | None, at_s: float = AT_S) -> Look:
    alive_until_ms = None if alive_for_ms is None else SERVER_MS + alive_for_ms
    return Look(at_s, SERVER_MS, False, 15_000, alive_until_ms, "first")


def resigned(at_s: float = AT_S) -> Look:
    return saw(None, at_s)._replace(alive_until_ms=0)


def leadership_after(*looks: Look) -> Leadership:
    leadership = Leadership()
    for look in looks:
        leadership.note(look)
    return leadership


@pytest.mark.parametrize(
    ("look", "after_s", "there"),
    [
        (saw(1000), 0.0, True),
        (saw(1000), 5.9, True),
        (saw(1000), 6.1, False),  # silent for 5 s beyond what it said
        (saw(-4000), 0.0, True),
        (saw(-5001), 0.0, False),
        (saw(None), 0.0, False),
    ],
)
def test_a_leader_is_there_until_five_seconds_after_its_word(look: Look, after_s: float, there: bool) -> None:
    leadership = leadership_after(look)
    assert leadership.is_there(AT_S + after_s) is there
    assert leadership.is_vacant(AT_S + after_s) is not there


def test_before_the_first_look_nobody_is_there() -> None:
    assert not Leadership().is_there(AT_S)
    assert not Leadership().is_known(AT_S)


def test_a_leader_that_resigned_is_given_time_to_be_followed() -> None:
    leadership = leadership_after(saw(1000, AT_S - 1), resigned(), resigned(AT_S + 1))
    assert not leadership.is_there(AT_S + 1)
    assert not leadership.is_vacant(AT_S + HANDOVER_S - 0.1)
    assert leadership.pause_s(AT_S + 1) == HANDOVER_LOOK_S
    assert leadership.is_vacant(AT_S + HANDOVER_S + 0.1)
    leadership.note(saw(1000, AT_S + 3))
    assert leadership.is_there(AT_S + 3)


@pytest.mark.parametrize("sudden", [saw(-3_600_000, AT_S + 1), saw(None, AT_S + 1)], ids=["a jump", "a loss"])
def test_a_leader_that_is_silent_all_of_a_sudden_is_given_time_to_be_heard(sudden: Look) -> None:
    leadership = leadership_after(saw(1000), sudden)
    assert not leadership.is_there(AT_S + 1)
    assert not leadership.is_vacant(AT_S + 1 + HANDOVER_S - 0.1)
    assert leadership.pause_s(AT_S + 1) == HANDOVER_LOOK_S
    assert leadership.is_vacant(AT_S + 1 + HANDOVER_S + 0.1)


def test_a_leader_whose_time_ran_out_is_given_none() -> None:
    assert leadership_after(saw(1000), saw(-5_500, AT_S + 6.5)).is_vacant(AT_S + 6.5)


def test_a_look_is_relied_on_for_half_a_session_ttl() -> None:
    leadership = leadership_after(saw(60_000))
    assert leadership.is_known(AT_S + 7.4)
    assert not leadership.is_known(AT_S + 7.6)


def test_a_silent_leader_is_not_relied_on() -> None:
    assert not leadership_after(saw(-5001)).is_known(AT_S)


def test_three_beats_go_into_a_session_ttl() -> None:
    assert leadership_after(saw(60_000)).pause_s(AT_S) == 5.0
    assert leadership_after(saw(None)).pause_s(AT_S) == 5.0


def test_the_next_look_comes_when_the_leader_would_have_to_be_missed() -> None:
    assert leadership_after(saw(-3000)).pause_s(AT_S + 1) == pytest.approx(1.0 + AGAIN_S)


# ---------------------------------------------------------------- trust


def trusting(*looks: Look) -> Trust:
    trust = Trust()
    for look in looks:
        assert trust.prolong(look, look.at_s)
    return trust


def test_leases_are_trusted_for_two_thirds_of_a_session_ttl_after_a_beat_was_sent() -> None:
    trust = trusting(saw(1000))
    assert trust.until_s() == pytest.approx(AT_S + 10)
    assert not trust.is_over(AT_S + 9.9)
    assert trust.is_over(AT_S + 10.1)


def test_before_the_first_beat_there_is_nothing_to_distrust() -> None:
    assert not Trust().is_over(AT_S)


def test_a_later_beat_prolongs_trust_by_its_own_ttl() -> None:
    assert trusting(saw(1000), saw(1000, AT_S + 5)).until_s() == pytest.approx(AT_S + 15)
    shorter = saw(1000, AT_S + 5)._replace(session_ttl_ms=1500)
    assert trusting(saw(1000), shorter).until_s() == pytest.approx(AT_S + 6)


def test_of_two_beats_the_one_that_was_sent_later_counts_whichever_is_answered_first() -> None:
    trust = trusting(saw(1000, AT_S + 2))
    assert trust.prolong(saw(1000), AT_S + 3)
    assert trust.until_s() == pytest.approx(AT_S + 12)


def test_a_beat_that_is_answered_when_trust_is_over_does_not_bring_it_back() -> None:
    trust = trusting(saw(1000))
    assert not trust.prolong(saw(1000, AT_S + 9), AT_S + 10.1)
    assert trust.is_over(AT_S + 10.1)
    trust.begin(saw(1000, AT_S + 11))
    assert not trust.is_over(AT_S + 11)
    assert trust.prolong(saw(1000, AT_S + 15), AT_S + 15)
