"""What an entry of a log says is changed: a verification names it, or the first decision that no longer follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from gpuboss.events import LeaseGranted
from tests.core.scenario import START_MS, Entry
from tests.core.verified import GENUINE, STORY, data_of, divergences, named, type_of, with_data


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
