"""Whatever is dropped, repeated or reordered, a verification names the entry; in an honest log it finds nothing."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from gpuboss.core import snapshot
from gpuboss.core.state import State
from gpuboss.core.verification import Verifier
from gpuboss.events import DECISIONS, FACTS, LeaseReleased, LeaseRequested
from tests.core.scenario import SERVICE, Entry, Scenario, fold, padded
from tests.core.verified import (
    GENUINE,
    OF_SCHEDULER,
    STORY,
    data_of,
    divergences,
    forged_in,
    named,
    story,
    type_of,
    verify,
    with_data,
)

NEIGHBOURS = list(pairwise(OF_SCHEDULER))


# ---------------------------------------------------------------- honest logs


def test_an_honest_log_differs_nowhere() -> None:
    verifier, undecided = verify(STORY)
    assert verifier.divergences == []
    assert undecided == 0
    assert verifier.events == len(STORY)
    assert verifier.decisions == len(GENUINE)
    assert {type_of(STORY[index]) for index in GENUINE} == DECISIONS.keys() - {"LeaseStateChanged"}


def test_the_verified_state_is_the_folded_one() -> None:
    verifier, _ = verify(STORY)
    assert snapshot.dump(verifier.state) == snapshot.dump(fold(STORY))


def test_a_log_written_by_another_encoder_verifies_as_well() -> None:
    spaced = [Entry(entry.id, [*entry.fields[:3], json.dumps(data_of(entry)).encode()]) for entry in STORY]
    swapped = [Entry(entry.id, [*entry.fields[2:], *entry.fields[:2]]) for entry in STORY]
    assert divergences(spaced) == []
    assert divergences(swapped) == []


@pytest.mark.parametrize("at", range(1, len(STORY)))
def test_a_start_from_a_snapshot_ends_in_the_same_state(at: int) -> None:
    state = snapshot.load(snapshot.dump(fold(STORY[:at])))
    verifier = Verifier(state, lambda: forged_in(STORY))
    for entry in STORY[at:]:
        verifier.feed(*entry)
    assert snapshot.dump(verifier.state) == snapshot.dump(fold(STORY))


def test_a_snapshot_between_a_batch_and_its_decisions_is_no_divergence() -> None:
    given = Scenario(24_576)
    given.write(LeaseRequested(padded("first"), SERVICE, 8_192))
    given.read()
    state = snapshot.load(snapshot.dump(given.state))
    begun = len(given.entries)
    given.write(LeaseRequested(padded("second"), SERVICE, 8_192))
    given.commit()
    given.settle()
    verifier = Verifier(state, frozenset)
    for entry in given.entries[begun:]:
        verifier.feed(*entry)
    assert (verifier.finish(), verifier.divergences, verifier.decisions) == (0, [], 2)
    assert snapshot.dump(verifier.state) == snapshot.dump(fold(given.entries))


def test_what_arrives_before_the_commit_is_paired_by_its_cause() -> None:
    given = Scenario(24_576)
    for name in ("first", "second", "third"):
        given.write(LeaseRequested(padded(name), SERVICE, 8_192))
        given.read()
    given.write(LeaseReleased(padded("first"), SERVICE))
    given.commit()
    given.settle()
    verifier, undecided = verify(given.entries)
    assert (verifier.divergences, undecided, verifier.decisions) == ([], 0, 4)


def test_inputs_at_the_end_are_undecided_and_no_divergence() -> None:
    given = story()
    for name in ("late", "later"):
        given.write(LeaseRequested(padded(name), SERVICE, 1))
    verifier, undecided = verify(given.entries)
    assert (verifier.divergences, undecided) == ([], 2)


def test_a_cut_between_an_input_and_its_decisions_is_no_divergence() -> None:
    for length in range(len(STORY) + 1):
        verifier = Verifier(State(), lambda: forged_in(STORY), STORY[-1].id)
        for entry in STORY[:length]:
            verifier.feed(*entry)
        verifier.finish(cut=True)
        assert verifier.divergences == [], length


def test_a_file_that_ends_anywhere_is_no_divergence() -> None:
    for length in range(len(STORY) + 1):
        assert divergences(STORY[:length]) == [], length


def test_forgeries_that_the_log_rejects_are_no_divergence() -> None:
    given = Scenario(24_576)
    given.request("holder", 8_192)
    for epoch, seq in ((1, 4), (2, 6), (1, 7), (99, 99), (0, 0), (1, 1)):
        forged = b'{"lease_id":"holder__","now_ms":1,"cause":"1-1","epoch":%d,"seq":%d}' % (epoch, seq)
        for type_name in (b"LeaseGranted", b"ClockTicked", b"SchedulerElected", b"EventRejected"):
            given.append(b"type", type_name, b"data", forged)
    given.append(b"type", b"LeaseGranted", b"data", given.entries[-1].fields[3])
    told = given.settle()
    assert len(told) == 25
    assert divergences(given.entries) == []


def test_a_forgery_that_nobody_has_looked_at_yet_is_no_divergence() -> None:
    given = story()
    cursor = given.entries[-1].id
    given.append(b"type", b"LeaseGranted", b"data", b'{"lease_id":"thief___","cause":"1-1","epoch":1,"seq":500}')
    given.append(b"type", b"ClockTicked", b"data", b'{"now_ms":9000000000000,"epoch":7,"seq":501}')
    verifier, undecided = verify(given.entries, cursor=cursor)
    assert (verifier.divergences, undecided) == ([], 2)


def test_the_log_itself_is_asked_for_forgeries_once_at_most() -> None:
    asked = []

    def forged() -> frozenset[str]:
        asked.append(True)
        return forged_in(STORY)

    verifier = Verifier(State(), forged)
    for entry in STORY:
        verifier.feed(*entry)
    assert len(asked) == 1


# ---------------------------------------------------------------- dropped, repeated, reordered


@pytest.mark.parametrize("index", GENUINE[:-1])
def test_a_dropped_decision_is_found_by_the_entry_that_leads_to_it(index: int) -> None:
    following = next(later for later in OF_SCHEDULER if later > index)
    found = named(STORY[:index] + STORY[index + 1 :])
    assert {STORY[following].id, data_of(STORY[index])["cause"]} & found


def test_a_decision_dropped_at_the_very_end_counts_as_not_made_yet() -> None:
    verifier, undecided = verify(STORY[:-1])
    assert (verifier.divergences, undecided) == ([], 1)


def test_the_cursor_tells_that_the_last_decision_had_been_made() -> None:
    cause = data_of(STORY[-1])["cause"]
    [found] = divergences(STORY[:-1], cursor=cause)
    assert (found.entry_id, found.recorded) == (cause, None)
    assert found.derived is not None
    assert found.derived["type"] == type_of(STORY[-1])


@pytest.mark.parametrize("index", [index for index in OF_SCHEDULER if type_of(STORY[index]) in FACTS])
def test_a_dropped_fact_is_found_by_the_next_entry_of_the_scheduler(index: int) -> None:
    following = next(later for later in OF_SCHEDULER if later > index)
    assert STORY[following].id in named(STORY[:index] + STORY[index + 1 :])


@pytest.mark.parametrize("index", [index for index, entry in enumerate(STORY) if index not in OF_SCHEDULER])
def test_a_dropped_input_is_found_by_the_first_decision_that_rested_on_it(index: int) -> None:
    dropped = STORY[:index] + STORY[index + 1 :]
    caused = [entry.id for entry in STORY if data_of(entry).get("cause") == STORY[index].id]
    found = named(dropped)
    assert found
    assert set(caused) <= found


def test_one_lost_fact_is_one_divergence() -> None:
    given = Scenario(24_576)
    given.tick(10)
    given.request("holder", 8_192)
    tick = next(index for index, entry in enumerate(given.entries) if type_of(entry) == "ClockTicked")
    [found] = divergences(given.entries[:tick] + given.entries[tick + 1 :])
    assert "missing before it" in found.problem
    assert "expected 1/4" in found.problem


@pytest.mark.parametrize("index", GENUINE)
def test_a_decision_repeated_under_its_own_id_is_found(index: int) -> None:
    [found] = divergences([*STORY[: index + 1], *STORY[index:]])
    assert found.entry_id == STORY[index].id


@pytest.mark.parametrize("index", GENUINE[:-2])
def test_a_decision_repeated_further_on_is_found(index: int) -> None:
    before = STORY[-2]
    copy = Entry(f"{before.id.partition('-')[0]}-7000", STORY[index].fields)
    following = [Entry(f"{copy.id.partition('-')[0]}-{number}", e.fields) for number, e in enumerate(STORY[-1:], 7001)]
    entries = [*STORY[:-2], copy, *following]
    assert divergences(entries)


@pytest.mark.parametrize(("one", "other"), NEIGHBOURS)
def test_what_two_entries_of_the_scheduler_say_in_turned_order_is_found(one: int, other: int) -> None:
    entries = list(STORY)
    entries[one], entries[other] = (
        Entry(STORY[one].id, STORY[other].fields),
        Entry(STORY[other].id, STORY[one].fields),
    )
    if type_of(STORY[one]) == type_of(STORY[other]) == "DeviceObserved":
        assert STORY[one].id in named(entries)
        return
    assert {STORY[one].id, STORY[other].id} & named(entries)


@pytest.mark.parametrize(("one", "other"), NEIGHBOURS)
def test_two_lines_of_a_file_that_changed_places_are_found(one: int, other: int) -> None:
    entries = list(STORY)
    entries[one], entries[other] = entries[other], entries[one]
    assert STORY[one].id in named(entries)


def test_decisions_that_swapped_places_and_numbers_are_found() -> None:
    given = Scenario(24_576)
    given.write(LeaseRequested(padded("first"), SERVICE, 8_192))
    given.write(LeaseRequested(padded("second"), SERVICE, 8_192))
    given.settle()
    *before, one, other = given.entries
    assert (type_of(one), type_of(other)) == ("LeaseGranted", "LeaseGranted")
    seqs = data_of(one)["seq"], data_of(other)["seq"]
    swapped = [
        with_data(Entry(one.id, other.fields), data_of(other) | {"seq": seqs[0]}),
        with_data(Entry(other.id, one.fields), data_of(one) | {"seq": seqs[1]}),
    ]
    assert other.id in named([*before, *swapped])
