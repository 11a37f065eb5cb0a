"""An input that was changed after the fact is found between two snapshots, also where nothing else follows from it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from random import Random

import msgspec
import pytest

from gpuboss.core import checkpoints, snapshot
from gpuboss.core.checkpoints import Checkpoints
from gpuboss.core.divergence import Divergence
from gpuboss.core.inputs import NO_INPUTS, chained
from gpuboss.core.state import State
from gpuboss.core.stream_ids import parse_id
from gpuboss.core.verification import Verifier
from gpuboss.events import DECISIONS, LeaseReleased, LeaseRequested, LogLost, SnapshotTaken
from gpuboss.jsonl import read_jsonl, to_line
from gpuboss.log import Entry as LogEntry
from tests.core.lossy import RECOVERY_MS, Lossy, elected
from tests.core.scenario import SERVICE, Entry, Log, Scenario, fold, padded
from tests.core.traffic import Traffic

SEED = 20_240_229
FLIPS = 200


@functools.cache
def archive() -> tuple[list[Entry], list[str]]:
    """A busy log with several snapshots, and the entries at which these stand, from the beginning on."""
    log = Log()
    traffic = Traffic(log, SEED)
    for _ in range(6):
        traffic.run(60)
        log.write(LeaseReleased("lease-00000", "imajin"))
        log.settle()
        log.take_snapshot()
        log.settle()
    return log.entries, ["0-0", *through_in(log.entries)]


def through_in(entries: Sequence[Entry]) -> list[str]:
    """The entries at which the snapshots stand that a log tells of."""
    return [taken.through for taken in map(taken_in, entries) if taken is not None]


def taken_in(entry: Entry) -> SnapshotTaken | None:
    if entry.fields[1:2] != [b"SnapshotTaken"]:
        return None
    return msgspec.json.decode(entry.fields[3], type=SnapshotTaken)


def exported(entries: Sequence[Entry]) -> list[Entry]:
    """What is read of a log that was written to a file."""
    lines = [to_line(LogEntry(*entry)) + b"\n" for entry in entries]
    return [Entry(*entry) for entry in read_jsonl(lines, "log")]


def verify(entries: Sequence[Entry], state: State | None = None) -> Verifier:
    verifier = Verifier(state or State(), lambda: frozenset(forged_in(entries)))
    for entry in entries:
        verifier.feed(*entry)
    verifier.finish()
    return verifier


def forged_in(entries: Sequence[Entry]) -> set[str]:
    rejected = [entry.fields[3] for entry in entries if entry.fields[1:2] == [b"EventRejected"]]
    found = [msgspec.json.decode(data, type=dict[str, object]) for data in rejected if b'"forged"' in data]
    return {str(data["event_id"]) for data in found}


def windows(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """Between which snapshots an input was changed."""
    return [found.between for found in verify(entries).divergences if found.between is not None]


def window_of(entry_id: str) -> tuple[str, str]:
    """The pair of snapshots between which an entry of the archive stands."""
    marks = archive()[1]
    at = next(number for number, mark in enumerate(marks) if parse_id(entry_id) <= parse_id(mark))
    return marks[at - 1], marks[at]


def inputs_of(entries: Sequence[Entry]) -> list[int]:
    """Where the inputs are that stand before the last snapshot; those behind it nothing vouches for."""
    last = parse_id(archive()[1][-1])
    forged = forged_in(entries)
    return [
        index
        for index, entry in enumerate(entries)
        if any(entry.fields) and parse_id(entry.id) <= last and (entry.id in forged or not is_decision(entry))
    ]


def is_decision(entry: Entry) -> bool:
    return entry.fields[1].decode("latin-1") in DECISIONS


def flipped(entry: Entry, chance: Random) -> Entry:
    """The entry with one bit of one of its fields turned."""
    fields = list(entry.fields)
    which = chance.choice([number for number, field in enumerate(fields) if field])
    field = bytearray(fields[which])
    field[chance.randrange(len(field))] ^= 1 << chance.randrange(8)
    fields[which] = bytes(field)
    return Entry(entry.id, fields)


# ---------------------------------------------------------------- the digest


def test_the_digest_is_a_chain_that_another_program_can_follow() -> None:
    # MessagePack: an array of three, 32 bytes, a text of 3, an array of two byte strings
    framed = b"\x93\xc4\x20" + bytes(32) + b"\xa31-0" + b"\x92\xc4\x04type\xc4\x01T"
    assert chained(NO_INPUTS, "1-0", [b"type", b"T"]) == hashlib.sha256(framed).digest()


def test_decisions_are_no_part_of_it() -> None:
    scenario = Scenario(24_576)
    scenario.write(LeaseRequested(padded("a"), SERVICE, 1))
    scenario.read()
    before = scenario.state.inputs
    scenario.commit()
    scenario.settle()
    assert scenario.state.inputs == before != NO_INPUTS
    assert scenario.entries[-1].fields[1] == b"LeaseGranted"


def test_every_other_entry_is() -> None:
    scenario = Scenario(24_576)
    digests = {scenario.state.inputs}
    changes: list[Callable[[], object]] = [
        lambda: scenario.release("nobody"),
        lambda: scenario.append(b"no", b"event"),
        lambda: scenario.writes(b"LeaseGranted", b'{"cause":"1-1","epoch":9,"seq":9}'),
        lambda: scenario.tick(),
        lambda: scenario.take_snapshot(),
    ]
    for number, change in enumerate(changes, start=2):
        change()
        scenario.settle()
        digests.add(scenario.state.inputs)
        assert len(digests) == number


# ---------------------------------------------------------------- honest logs


def test_an_honest_archive_differs_nowhere() -> None:
    entries, marks = archive()
    assert len(marks) > 6
    assert len(entries) > 450
    verifier = verify(exported(entries))
    assert verifier.divergences == []
    assert verifier.checkpoints.compared == len(marks) - 1
    assert verifier.checkpoints.through == marks[-1]


def test_a_replay_that_begins_at_a_snapshot_goes_on_from_its_digest() -> None:
    entries, marks = archive()
    for mark in marks[1:-1:3]:
        at = next(number for number, entry in enumerate(entries) if entry.id == mark) + 1
        state = snapshot.load(snapshot.dump(fold(entries[:at])))
        verifier = verify(entries[at:], state)
        assert verifier.divergences == []
        assert verifier.checkpoints.compared == len(marks) - marks.index(mark)
        changed = change_pid(entries[at:], after=mark)
        [found] = between_snapshots(verify(changed, snapshot.load(snapshot.dump(fold(entries[:at])))))
        assert found.between is not None
        assert parse_id(found.between[0]) >= parse_id(mark)


def between_snapshots(verifier: Verifier) -> list[Divergence]:
    return [found for found in verifier.divergences if found.between is not None]


def change_pid(entries: Sequence[Entry], after: str = "0-0") -> list[Entry]:
    """The entries with a pid in the first request that has none, which leads to no other decision."""
    at = next(
        number
        for number, entry in enumerate(entries)
        if entry.fields[1:2] == [b"LeaseRequested"] and b'"pid":null' in entry.fields[3] and entry.id > after
    )
    fields = [*entries[at].fields[:3], entries[at].fields[3].replace(b'"pid":null', b'"pid":4711')]
    return [*entries[:at], Entry(entries[at].id, fields), *entries[at + 1 :]]


def test_one_that_begins_behind_a_snapshots_entry_cannot_compare_that_one() -> None:
    scenario = Scenario(24_576)
    scenario.take_snapshot()
    scenario.request("a", 1)
    begun = snapshot.load(snapshot.dump(scenario.state))
    scenario.take_snapshot()
    scenario.settle()
    verifier = verify(scenario.entries[-1:], begun)
    assert (verifier.divergences, verifier.checkpoints.compared) == ([], 1)
    early = verify(scenario.entries[2:3], begun)
    assert early.checkpoints.compared == 0


def test_what_comes_while_a_snapshot_is_written_is_counted_behind_it() -> None:
    scenario = Scenario(24_576)
    scenario.request("a", 1)
    scenario.write(LeaseReleased(padded("nobody"), SERVICE))
    scenario.take_snapshot()  # which stands behind that, and does not speak of it
    scenario.settle()
    scenario.take_snapshot()
    scenario.settle()
    assert verify(scenario.entries).divergences == []
    at = next(number for number, entry in enumerate(scenario.entries) if b"nobody" in entry.fields[3])
    between = [(through_in(scenario.entries)[0], through_in(scenario.entries)[1])]
    assert windows([*scenario.entries[:at], *scenario.entries[at + 1 :]]) == between


def test_more_than_is_kept_meanwhile_cannot_be_compared_and_the_next_one_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "RECENT_MAX", 4)
    scenario = Scenario(24_576)
    for _ in range(8):
        scenario.write(LeaseReleased(padded("nobody"), SERVICE))
    scenario.take_snapshot()
    scenario.settle()
    scenario.take_snapshot()
    scenario.settle()
    verifier = verify(scenario.entries)
    assert (verifier.divergences, verifier.checkpoints.compared) == ([], 1)
    assert windows(change(scenario.entries, 3)) == [("0-0", through_in(scenario.entries)[1])]


def change(entries: Sequence[Entry], index: int) -> list[Entry]:
    """The entries with a field more in one of them, which no reader knows."""
    entry = entries[index]
    changed = Entry(entry.id, [*entry.fields[:3], entry.fields[3][:-1] + b',"unknown":1}'])
    return [*entries[:index], changed, *entries[index + 1 :]]


# ---------------------------------------------------------------- changed, dropped, inserted, swapped


@pytest.mark.parametrize("part", range(4))
def test_each_flipped_bit_of_an_input_is_found_between_the_right_snapshots(part: int) -> None:
    entries, _ = archive()
    where = inputs_of(entries)
    for seed in range(part, FLIPS, 4):
        chance = Random(seed)
        index = chance.choice(where)
        tampered = [*entries[:index], flipped(entries[index], chance), *entries[index + 1 :]]
        found, at = windows(exported(tampered)), entries[index].id
        if taken_in(entries[index]) is None:
            assert found == [window_of(at)], f"seed {seed}, entry {at}"
        else:  # what is left of the snapshots brackets it
            assert any(parse_id(since) < parse_id(at) <= parse_id(through) for since, through in found), f"seed {seed}"


def test_a_change_that_leads_to_nothing_else_is_the_only_divergence() -> None:
    entries, _ = archive()
    [found] = verify(change_pid(entries)).divergences
    assert found.between is not None
    assert found.between[0] == "0-0"
    assert "between the beginning of the log and" in found.problem
    assert found.recorded is not None
    assert found.derived is not None
    assert found.recorded["data"]["inputs"] != found.derived["data"]["inputs"]


def test_two_changes_between_different_snapshots_are_two_divergences() -> None:
    entries, marks = archive()
    changed = change_pid(change_pid(entries), after=marks[-3])
    assert len(windows(changed)) == 2


@pytest.mark.parametrize("seed", range(20))
def test_an_input_that_was_taken_out_is_missed(seed: int) -> None:
    entries, _ = archive()
    index = Random(seed).choice([index for index in inputs_of(entries) if taken_in(entries[index]) is None])
    assert windows([*entries[:index], *entries[index + 1 :]]) == [window_of(entries[index].id)]


@pytest.mark.parametrize("seed", range(20))
def test_an_input_that_was_put_in_is_noticed(seed: int) -> None:
    entries, _ = archive()
    following = [index for index in inputs_of(entries) if entries[index].id.endswith("-0")]
    index = Random(seed).choice(following)
    put_in = Entry(f"{parse_id(entries[index].id)[0] - 1}-9999", [b"type", b"LeaseReleased", b"data", b"{}"])
    assert windows([*entries[:index], put_in, *entries[index:]]) == [window_of(put_in.id)]


@pytest.mark.parametrize("seed", range(20))
def test_two_inputs_that_changed_places_are_noticed(seed: int) -> None:
    entries, _ = archive()
    where = [index for index in inputs_of(entries) if taken_in(entries[index]) is None]
    chance = Random(seed)
    one, other = sorted(chance.sample(where, 2))
    swapped = list(entries)
    swapped[one] = Entry(entries[one].id, entries[other].fields)
    swapped[other] = Entry(entries[other].id, entries[one].fields)
    expected = {window_of(entries[one].id), window_of(entries[other].id)}
    assert entries[one].fields != entries[other].fields
    assert set(windows(swapped)) == expected


def test_a_state_that_its_inputs_do_not_lead_to_is_found() -> None:
    scenario = Scenario(24_576)
    scenario.request("a", 1)
    scenario.state.fence += 1  # a bit of the scheduler's memory turned
    scenario.take_snapshot()
    [found] = verify(scenario.entries).divergences
    assert found.between is None
    assert "lead to another state" in found.problem


# ---------------------------------------------------------------- a log that was lost


def test_a_tail_that_was_cut_is_no_change_of_what_is_left() -> None:
    for cut in range(1, 7):
        scenario = Lossy(24_576)
        scenario.request("a", 8_192)
        scenario.take_snapshot()
        scenario.settle()
        scenario.request("b", 8_192)
        scenario.request("c", 8_192)
        scenario.loses(cut)
        scenario.take_snapshot()
        scenario.settle()
        scenario.tick(RECOVERY_MS)
        scenario.take_snapshot()
        verifier = verify(scenario.entries)
        assert verifier.divergences == [], cut
        assert verifier.checkpoints.compared == (3 if cut < 5 else 2)


def test_a_change_of_what_a_loss_left_is_found_in_the_new_incarnation() -> None:
    scenario = Lossy(24_576)
    scenario.request("a", 8_192)
    scenario.take_snapshot()
    scenario.settle()
    scenario.request("b", 8_192, model="sdxl")
    scenario.request("c", 8_192)
    scenario.loses(1)
    scenario.take_snapshot()
    at = next(number for number, entry in enumerate(scenario.entries) if b"sdxl" in entry.fields[3])
    fields = [*scenario.entries[at].fields[:3], scenario.entries[at].fields[3].replace(b"sdxl", b"sdxk")]
    tampered = [*scenario.entries[:at], Entry(scenario.entries[at].id, fields), *scenario.entries[at + 1 :]]
    assert windows(tampered) == [tuple(through_in(scenario.entries))]


def test_what_is_said_of_an_entry_that_is_gone_is_held_against_what_stands_before_it() -> None:
    log = Lossy(24_576)
    log.request("a", 1)
    log.take_snapshot()
    log.settle()
    at = next(number for number, entry in enumerate(log.entries) if entry.id == through_in(log.entries)[0])
    assert log.entries[at].fields[1] == b"LeaseGranted"
    assert windows([*log.entries[:at], *log.entries[at + 1 :]]) == [], "a decision is missed by its number"
    assert Checkpoints(State()).through == "0-0"
    assert elected(LogLost("1-1", 1)).lost is not None
