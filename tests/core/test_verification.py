"""Whatever is done to a log, a verification finds it and names the entry; and it finds nothing in an honest one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import pytest

from gpuboss.core import snapshot
from gpuboss.core.divergence import Divergence
from gpuboss.core.door import read_data, read_type
from gpuboss.core.state import State
from gpuboss.core.stream_ids import parse_id
from gpuboss.core.verification import Verifier
from gpuboss.events import DECISIONS, FACTS, LeaseGranted, LeaseReleased, LeaseRequested
from tests.core.scenario import SERVICE, START_MS, Entry, Scenario, fold, padded, renewed

Data = dict[str, Any]


def story() -> Scenario:
    """A log with every kind of decision but one, a tick, a forgery and nonsense, all decided."""
    given = Scenario(24_576, 24_576)
    given.request("holder", 20_000, ttl_ms=60_000)
    given.says(renewed("holder", 90_000))
    given.request("second", 20_000, session="process")
    given.request("third", 20_000, wait_ms=1_000)
    given.request("fourth", 20_000)
    given.request("toolarge", 30_000)
    given.writes(b"LeaseGranted", b'{"lease_id":"thief___","epoch":1,"seq":99,"cause":"1-1"}')
    given.writes(b"Nonsense", b"{}")
    given.says(renewed("holder", 95_000))
    given.request("first", 20_000, priority="high", wait_ms=500)
    given.revoke("second", grace_ms=5_000)
    given.tick(2_000)
    given.release("second")
    given.tick(100_000)
    given.request("last", 1_000)
    given.release("last")
    return given


def type_of(entry: Entry) -> str:
    return entry.fields[1].decode()


def data_of(entry: Entry) -> Data:
    data: Data = json.loads(entry.fields[3])
    return data


def with_data(entry: Entry, data: Data) -> Entry:
    return Entry(entry.id, [*entry.fields[:3], json.dumps(data, separators=(",", ":")).encode()])


def forged_in(entries: Iterable[Entry]) -> frozenset[str]:
    found = set()
    for entry in entries:
        if read_type(entry.fields) == b"EventRejected" and b'"forged"' in (data := read_data(entry.fields)):
            found.update(re.findall(r'"event_id": ?"([0-9-]+)"', data.decode()))
    return frozenset(found)


def last_cause_in(entries: Iterable[Entry]) -> str:
    """The last entry of which there is a decision."""
    causes = [data_of(entry)["cause"] for entry in entries if type_of(entry) in DECISIONS]
    return max(causes, key=parse_id, default="0-0")


def verify(entries: Sequence[Entry], cursor: str | None = None, cut: bool = False) -> tuple[Verifier, int]:
    verifier = Verifier(State(), lambda: forged_in(entries), cursor, lambda: last_cause_in(entries))
    for entry in entries:
        verifier.feed(*entry)
    return verifier, verifier.finish(cut=cut)


def divergences(entries: Sequence[Entry], cursor: str | None = None) -> list[Divergence]:
    return verify(entries, cursor=cursor)[0].divergences


def named(entries: Sequence[Entry], cursor: str | None = None) -> set[str]:
    """The entries that a verification names, as the ones where the log differs or as the cause of what is missing."""
    return {divergence.entry_id for divergence in divergences(entries, cursor)}


STORY = story().entries
OF_SCHEDULER = [
    index
    for index, entry in enumerate(STORY)
    if type_of(entry) in DECISIONS | FACTS and entry.id not in forged_in(STORY)
]
GENUINE = [index for index in OF_SCHEDULER if type_of(STORY[index]) in DECISIONS]
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


# ---------------------------------------------------------------- tampered


def changed(value: object) -> object:
    """Another value of the same kind."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return f"{value}x"
        case list():
            return [*value, "x"]
        case None:
            return 1
        case dict():
            return {key: changed(each) for key, each in value.items()}
    raise AssertionError(f"cannot change {value!r}")


def fields_of_decisions() -> Iterable[Any]:
    for index in GENUINE:
        for name in data_of(STORY[index]):
            if (type_of(STORY[index]), name) != ("EventRejected", "detail"):
                yield pytest.param(index, name, id=f"{index}-{type_of(STORY[index])}-{name}")


@pytest.mark.parametrize(("index", "name"), list(fields_of_decisions()))
def test_each_tampered_field_of_a_decision_is_found_there(index: int, name: str) -> None:
    data = data_of(STORY[index])
    entries = list(STORY)
    entries[index] = with_data(STORY[index], data | {name: changed(data[name])})
    assert STORY[index].id in named(entries)


def test_a_tampered_decision_shows_what_is_recorded_and_what_is_derived() -> None:
    index = next(index for index in GENUINE if type_of(STORY[index]) == "LeaseGranted")
    data = data_of(STORY[index])
    entries = list(STORY)
    entries[index] = with_data(STORY[index], data | {"vram_mib": 1})
    [found] = divergences(entries)
    assert found.entry_id == STORY[index].id
    assert found.recorded is not None
    assert found.derived is not None
    assert (found.recorded["type"], found.derived["type"]) == (LeaseGranted.__name__, LeaseGranted.__name__)
    assert (found.recorded["data"]["vram_mib"], found.derived["data"]["vram_mib"]) == (1, 20_000)


@pytest.mark.parametrize("index", GENUINE)
@pytest.mark.parametrize("value", [None, 1, {"vram_mib": [1]}])
def test_a_field_added_to_a_decision_is_found_and_named(index: int, value: object) -> None:
    entries = list(STORY)
    entries[index] = with_data(STORY[index], data_of(STORY[index]) | {"glory": value})
    [found] = divergences(entries)
    assert (found.entry_id, found.problem) == (STORY[index].id, "it has fields that no scheduler writes: glory")
    assert found.recorded is not None
    assert found.derived is not None
    assert found.recorded["data"] == found.derived["data"] | {"glory": value}


@pytest.mark.parametrize("value", [b'"\xff"', b"[" * 60 + b"]" * 60, b"9" * 5_000])
def test_an_added_field_that_cannot_be_read_is_found_too(value: bytes) -> None:
    index = GENUINE[0]
    entries = list(STORY)
    tampered = b'%s,"glory":%s}' % (STORY[index].fields[3][:-1], value)
    entries[index] = Entry(STORY[index].id, [*STORY[index].fields[:3], tampered])
    assert STORY[index].id in named(entries)


def test_the_detail_of_a_rejection_is_for_people() -> None:
    index = next(index for index in GENUINE if type_of(STORY[index]) == "EventRejected")
    entries = list(STORY)
    entries[index] = with_data(STORY[index], data_of(STORY[index]) | {"detail": "said otherwise"})
    assert divergences(entries) == []


@pytest.mark.parametrize("index", GENUINE)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda entry: Entry(entry.id, [b"type", b"LeaseStateChanged", *entry.fields[2:]]),
        lambda entry: Entry(entry.id, [b"type", b"Unheard", *entry.fields[2:]]),
        lambda entry: Entry(entry.id, [*entry.fields[:3], entry.fields[3][:-1]]),
        lambda entry: Entry(entry.id, [*entry.fields[:3], b"{}"]),
        lambda entry: Entry(entry.id, entry.fields[:2]),
        lambda entry: Entry(entry.id, []),
    ],
    ids=["another type", "an unknown type", "cut", "empty", "no data", "no fields"],
)
def test_a_spoilt_decision_is_found_by_itself_or_its_cause(index: int, spoil: Callable[[Entry], Entry]) -> None:
    entries = list(STORY)
    entries[index] = spoil(STORY[index])
    found = named(entries, cursor=STORY[-1].id)
    assert {STORY[index].id, data_of(STORY[index])["cause"]} & found


@pytest.mark.parametrize(
    ("of_type", "name", "value"),
    [
        ("LeaseRequested", "vram_mib", 24_576),
        ("LeaseRequested", "lease_id", "somebody"),
        ("LeaseRequested", "priority", "middle"),
        ("LeaseReleased", "service", "stranger"),
        ("LeaseRenewed", "ttl_ms", 1),
        ("LeaseRevoked", "grace_ms", 0),
        ("ClockTicked", "now_ms", START_MS + 95_000),
        ("DeviceObserved", "total_mib", 8),
        ("PolicySet", "lock_delay_ms", 60_000),
    ],
)
def test_a_tampered_input_is_found_by_the_decision_that_no_longer_follows(
    of_type: str, name: str, value: object
) -> None:
    index = next(index for index, entry in enumerate(STORY) if type_of(entry) == of_type)
    entries = list(STORY)
    entries[index] = with_data(STORY[index], data_of(STORY[index]) | {name: value})
    found = divergences(entries)
    assert found
    assert min(tuple(map(int, each.entry_id.split("-"))) for each in found) >= tuple(
        map(int, STORY[index].id.split("-"))
    )


def test_the_log_itself_is_asked_for_forgeries_once_at_most() -> None:
    asked = []

    def forged() -> frozenset[str]:
        asked.append(True)
        return forged_in(STORY)

    verifier = Verifier(State(), forged)
    for entry in STORY:
        verifier.feed(*entry)
    assert len(asked) == 1
