"""The judge of histories sees each kind of harm, and has nothing against what is right."""

import pytest

from tests.verdict.history import Note, double_promises, faults_in, lost_answers

CARD = {"a/cuda:0": 100, "a/cuda:1": 100}


def granted(at_s, request, vram_mib=60, *devices):
    return Note(at_s, "granted", request, devices or ("a/cuda:0",), vram_mib)


def asked(*requests):
    return [Note(0.0, "asked", request) for request in requests]


RIGHT = {
    "one after the other": [granted(1, "p/1"), Note(2, "over", "p/1"), granted(2, "q/1")],
    "in any order of the notes": [granted(2, "q/1"), Note(2, "over", "p/1"), granted(1, "p/1")],
    "side by side": [granted(1, "p/1"), granted(1, "q/1", 40)],
    "on another device": [granted(1, "p/1"), granted(1, "q/1", 60, "a/cuda:1")],
    "over before it was heard of": [granted(1, "p/1"), granted(2, "q/1"), Note(2, "over", "q/1")],
    "after a death": [granted(1, "p/1"), Note(2, "died", "p"), granted(3, "q/1")],
}
WRONG = {
    "before the first is over": [granted(1, "p/1"), granted(2, "q/1"), Note(2.1, "over", "p/1")],
    "a third too many": [granted(1, "p/1", 50), granted(1, "q/1", 50), granted(2, "q/2", 1)],
    "on the second of several": [granted(1, "p/1", 60, "a/cuda:1", "a/cuda:0"), granted(2, "q/1")],
    "after the death of another": [granted(1, "pq/1"), Note(2, "died", "p"), granted(3, "q/1")],
}


@pytest.mark.parametrize("name", RIGHT)
def test_it_has_nothing_against_what_is_right(name):
    assert faults_in([*asked("p/1", "q/1"), *RIGHT[name]], CARD) == []


@pytest.mark.parametrize("name", WRONG)
def test_it_sees_what_two_rely_on(name):
    [fault] = double_promises(WRONG[name], CARD)
    assert "of the 100 on a/cuda:0 are trusted by" in fault


def test_every_request_of_the_living_is_answered_once():
    notes = [*asked("p/1", "p/2", "q/1", "q/2", "r/1"), granted(1, "p/1"), Note(2, "refused", "p/2")]
    notes += [granted(3, "q/1"), granted(4, "q/1"), Note(5, "died", "r"), granted(6, "s/1")]
    assert lost_answers(notes) == [
        "q/2, asked at 0.000 s, was never answered",
        "q/1 was answered with granted and granted",
        "s/1 was answered with granted, and never asked",
    ]
