"""A reign of other rules is taken over as its decisions stand in the log; ours decide from where it ended."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuboss.core import eviction, granting, machine, placement, snapshot, takeover, verification
from gpuboss.core.ledger import Device
from gpuboss.core.placement import place
from gpuboss.core.plans import dissolve_all
from gpuboss.core.reservations import Reservations
from gpuboss.core.state import State, Turn
from gpuboss.core.takeover import NewerCore
from gpuboss.core.verification import Verifier
from gpuboss.core.waitlist import Shape
from gpuboss.events import LeaseReleased, LeaseRequested, SchedulerElected
from tests.core.lossy import recovery
from tests.core.scenario import SERVICE, Entry, Log, Scenario, fold, idled, padded
from tests.core.test_checkpoints import forged_in
from tests.core.test_determinism import busy_log
from tests.core.traffic import Traffic


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our rules are those of core 2."""
    for module in (machine, takeover, verification):
        monkeypatch.setattr(module, "CORE_VERSION", 2)


def verify(entries: Sequence[Entry]) -> Verifier:
    verifier = Verifier(State(), lambda: frozenset(forged_in(entries)))
    for entry in entries:
        verifier.feed(*entry)
    return verifier


def meaning(state: State) -> bytes:
    """The state but for what is planned, which no decision tells, and where it stands."""
    state = snapshot.load(snapshot.dump(state))
    state.reservations, state.look_is_due = Reservations(), False
    dissolve_all(Turn(state, state.last_id))
    for waiting in state.waitlist.by_id.values():
        waiting.starves, waiting.preempts_at_ms = False, None
    return snapshot.dump(state)


def taken_over(entries: Sequence[Entry]) -> Verifier:
    verifier = verify(entries)
    verifier.takeover.adopt_through(entries[-1].id)
    return verifier


@pytest.mark.usefixtures("newer")
@pytest.mark.parametrize("events", [50, 300, 1_400])
def test_the_state_after_a_busy_reign_is_the_one_that_its_own_rules_gave(events: int) -> None:
    log = busy_log(events)
    verifier = taken_over(log.entries)
    assert verifier.divergences == []
    assert verifier.takeover.decisions > 0.4 * events
    assert meaning(verifier.state) == meaning(fold(log.entries))


@pytest.mark.usefixtures("newer")
@given(st.integers(0, 2**32))
@settings(max_examples=25)
def test_whatever_the_seed(seed: int) -> None:
    log = Log()
    Traffic(log, seed).run(120)
    verifier = taken_over(log.entries)
    assert verifier.divergences == []
    assert meaning(verifier.state) == meaning(fold(log.entries))


@pytest.mark.usefixtures("newer")
def test_a_recovery_is_taken_over_too() -> None:
    scenario = recovery()
    verifier = taken_over(scenario.entries)
    assert verifier.divergences == []
    assert meaning(verifier.state) == meaning(fold(scenario.entries))


# ---------------------------------------------------------------- then our own rules


class Heir(Scenario):
    """A story in which core 1 leads at first, and a newer one afterwards, whose rules the test may change."""

    def leaves(self) -> str:
        """Core 1 is gone, and what it committed is read; returns the last entry that it decided."""
        self.state = fold(self.entries[: self._cursor])
        self._read = self._cursor
        self._held_back.clear()
        self.state.reservations = Reservations()
        for waiting in self.state.waitlist.by_id.values():
            waiting.starves = False
        return self.entries[self._cursor - 1].id


@pytest.fixture
def story(newer: None, monkeypatch: pytest.MonkeyPatch) -> Heir:
    """Core 2 shuns the first device: the first lease is of core 1, what came behind its last decision of core 2."""
    given = Heir(24_576, 24_576)
    given.request("old", 8_192)
    given.request("waits", 24_576, device="cuda:0")
    given.write(LeaseRequested(padded("tail"), SERVICE, 1_000))
    given.write(LeaseReleased(padded("nobody"), SERVICE))

    def elsewhere(shape: Shape, devices: Iterable[Device]) -> list[Device] | None:
        return place(shape, [device for device in devices if device.index or shape.device])

    cursor = given.leaves()
    monkeypatch.setattr(granting, "place", elsewhere)
    given.happens(SchedulerElected("newer", "1", 2, "log-1", cursor=cursor))
    given.request("new", 8_192)
    given.release("old")
    given.take_snapshot()
    given.settle()
    return given


def granted_on(entries: Sequence[Entry]) -> dict[str, str]:
    """Where each lease was granted."""
    grants = [json.loads(entry.fields[3]) for entry in entries if entry.fields[1] == b"LeaseGranted"]
    return {grant["lease_id"].rstrip("_"): grant["device"] for grant in grants}


def test_each_core_decides_what_it_decided(story: Heir) -> None:
    assert granted_on(story.entries) == {"old": "cuda:0", "tail": "cuda:1", "new": "cuda:1", "waits": "cuda:0"}
    verifier = verify(story.entries)
    assert (verifier.finish(), verifier.divergences) == (0, [])
    assert verifier.takeover.decisions == 1
    assert snapshot.dump(verifier.state) == snapshot.dump(story.state)


@pytest.mark.parametrize("name", ["tail", "new", "waits"])
def test_what_our_own_rules_decided_is_derived_again(story: Heir, name: str) -> None:
    found = verify(tampered(story.entries, name)).divergences
    assert len(found) == 1
    assert found[0].problem == "another decision was derived"


def test_what_others_decided_is_taken_as_it_stands_there(story: Heir) -> None:
    entries = tampered(story.entries[: at_election(story.entries)], "old")
    verifier = verify(entries)
    assert verifier.divergences == []
    assert verifier.state.ledger.leases[padded("old")].granted.fence == 77


def test_an_input_that_was_changed_under_other_rules_is_found_all_the_same(story: Heir) -> None:
    at = next(number for number, entry in enumerate(story.entries) if b'"waits' in entry.fields[3])
    fields = [*story.entries[at].fields[:3], story.entries[at].fields[3].replace(b'"pid":null', b'"pid":4711')]
    found = verify([*story.entries[:at], Entry(story.entries[at].id, fields), *story.entries[at + 1 :]]).divergences
    assert [each.between is not None for each in found] == [True]


def test_a_reign_whose_entries_are_missing_is_told(story: Heir) -> None:
    entries = story.entries
    [found, *_] = verify([*entries[:2], *entries[3:]]).divergences
    assert (found.entry_id, found.problem.partition(":")[0]) == (
        entries[3].id,
        "entries of the scheduler are missing before it",
    )


def test_a_decision_that_cannot_be_taken_over_is_told(story: Heir) -> None:
    at = next(number for number, entry in enumerate(story.entries) if entry.fields[1] == b"LeaseRequested")
    [found, *_] = verify([*story.entries[:at], *story.entries[at + 1 :]]).divergences
    assert "cannot be taken over from core 1: no request old_____ waits" in found.problem


def test_rules_never_go_on_where_newer_ones_decided(story: Heir, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (machine, takeover, verification):
        monkeypatch.setattr(module, "CORE_VERSION", 1)
    with pytest.raises(NewerCore, match="2"):
        verify(story.entries)
    monkeypatch.setattr(granting, "place", place)
    assert verify(story.entries[: at_election(story.entries)]).divergences == []


@pytest.mark.usefixtures("newer")
def test_what_others_let_wait_was_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the cursor says so; our rules, under which it is impossible, do not decide it once more."""
    given = Heir(24_576)
    given.request("old", 8_192)
    given.request("waits", 24_576)
    cursor = given.leaves()
    monkeypatch.setattr(placement, "candidates", lambda ledger, shape: [])
    given.happens(SchedulerElected("newer", "1", 2, "log-1", cursor=cursor))
    assert given.request("new", 1) == ["denied new: impossible"]
    verifier = verify(given.entries)
    assert (verifier.finish(), verifier.divergences) == (0, [])
    assert given.state.waitlist.by_id.keys() == {padded("waits")}


@pytest.mark.usefixtures("newer")
def test_what_others_meant_to_keep_free_is_planned_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Heir(24_576)
    given.request("old", 8_192, ttl_ms=60_000)
    given.request("waits", 24_576)
    begun, state = len(given.entries), snapshot.load(snapshot.dump(given.state))
    assert [each.waiting.request.lease_id for each in state.reservations.in_order] == [padded("waits")]
    cursor = given.leaves()
    monkeypatch.setattr(granting, "reserve", lambda *_: None)
    given.happens(SchedulerElected("newer", "1", 2, "log-1", cursor=cursor))
    assert given.request("new", 1) == ["granted new on cuda:0"]
    verifier = Verifier(state, frozenset)
    for entry in given.entries[begun:]:
        verifier.feed(*entry)
    assert (verifier.finish(), verifier.divergences) == (0, [])


@pytest.mark.usefixtures("newer")
def test_whom_others_let_wait_may_begin_with_the_first_entry_of_our_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Heir(24_576)
    given.request("warm", 20_000, reclaimable=True)
    given.says(idled("warm"))
    with monkeypatch.context() as others:
        others.setattr(eviction, "find", lambda *_: None)
        assert given.request("waits", 8_192) == []
        cursor = given.leaves()
    elected = SchedulerElected("newer", "1", 2, "log-1", cursor=cursor)
    assert given.happens(elected) == ["asked back warm within 15000 ms for waits"]
    verifier = verify(given.entries)
    assert (verifier.finish(), verifier.divergences) == (0, [])
    assert given.happens(SchedulerElected("again", "1", 2, "log-1")) == []


def at_election(entries: Sequence[Entry]) -> int:
    """Where the newer core's reign begins."""
    return next(number for number, entry in enumerate(entries) if b'"newer"' in entry.fields[3])


def tampered(entries: Sequence[Entry], name: str) -> list[Entry]:
    """The log with another fence in the grant of one lease."""
    found = list(entries)
    for number, entry in enumerate(entries):
        data = json.loads(entry.fields[3])
        if entry.fields[1] == b"LeaseGranted" and data["lease_id"] == padded(name):
            changed = json.dumps(data | {"fence": 77}, separators=(",", ":")).encode()
            found[number] = Entry(entry.id, [*entry.fields[:3], changed])
    return found
