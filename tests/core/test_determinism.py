"""The same log means the same: under any hash seed, in any batches, with or without snapshots in between."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gpuboss import events
from gpuboss.core import snapshot
from gpuboss.core.inputs import NO_INPUTS
from gpuboss.core.state import State, Turn
from gpuboss.events import EventRejected
from gpuboss.jsonl import to_line
from gpuboss.log import Entry as LogEntry
from tests.core.fold_log import fold_and_digest
from tests.core.scenario import Entry, Log, Scenario, fold
from tests.core.traffic import Traffic

ROOT = Path(__file__).parents[2]
SEED = 20_240_229


@functools.cache
def busy_log(events: int, seed: int = SEED) -> Log:
    """A log in which everything happens, with its decisions."""
    log = Log()
    Traffic(log, seed).run(events)
    return log


class RestartingLog(Log):
    """A log whose scheduler goes on from a snapshot after every `every` entries."""

    every = 1
    steps = 0

    def step(self, entry: Entry) -> Turn:
        """Apply the next entry, to a state that came out of a snapshot."""
        turn = super().step(entry)
        self.steps += 1
        if self.steps % self.every == 0:
            self.restart()
        return turn


@pytest.mark.parametrize("hash_seed", [0, 1, 2, 3])
def test_under_any_hash_seed(hash_seed):
    log = busy_log(1_400)
    assert len(log.entries) > 1_900
    lines = b"\n".join(to_line(LogEntry(*entry)) for entry in log.entries)
    done = subprocess.run(
        [sys.executable, "-m", "tests.core.fold_log", "100" if hash_seed == 3 else "0"],
        input=lines,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": f"{ROOT}"},
        timeout=60,
        check=True,
    )
    assert tuple(done.stdout.decode().split()) == fold_and_digest(log.entries)


def test_the_state_that_led_live_is_the_one_that_a_fold_gives():
    log = busy_log(1_400)
    assert snapshot.dump(log.state) == snapshot.dump(fold(log.entries))


@pytest.mark.parametrize(("every", "events"), [(100, 1_400), (7, 300), (1, 300)])
def test_with_a_snapshot_after_every_so_many_entries(every, events):
    log = RestartingLog()
    log.every = every
    Traffic(log, SEED).run(events)
    plain = busy_log(events)
    assert log.entries == plain.entries
    assert snapshot.dump(log.state) == snapshot.dump(plain.state)


@pytest.mark.parametrize("every", [1, 100])
def test_a_fold_may_stop_and_go_on_anywhere(every):
    entries = busy_log(300).entries
    assert fold_and_digest(entries, snapshot_every=every) == fold_and_digest(entries)


def written_again(log: Log, batch: int) -> Log:
    """The same inputs, each at a ms of its own, decided so many at a time."""
    again = Log()
    for number, entry in enumerate(log.entries):
        type_name, data = (entry.fields[1].decode(), entry.fields[3]) if entry.id in log.stamped else ("", b"")
        if type_name in events.DECISIONS:
            continue
        again.now_ms = int(entry.id.partition("-")[0]) + number
        if type_name:
            again.stamp(msgspec.json.decode(data, type=events.ALL[type_name]))
        else:
            again.append(*entry.fields)
        if number % batch == 0:
            again.read()
            again.commit()
    again.settle()
    return again


def meaning(log: Log) -> tuple[bytes, list[tuple[Any, ...]]]:
    """The state but for its last id and the digest of its inputs, and everything told: facts carry a number, and the
    details of forgeries name the next one, which do depend on what was committed when."""
    told = []
    folding = Log()
    for entry in log.entries:
        for each in folding.step(entry).told:
            forged = isinstance(each.decision, EventRejected) and each.decision.reason == "forged"
            told.append((replace(each.decision, detail="") if forged else each.decision, each.address, each.is_new))
    folding.state.last_id, folding.state.inputs = "0-0", NO_INPUTS
    return snapshot.dump(folding.state), told


def test_in_batches_of_any_size():
    log = busy_log(600)
    one, seven, thousand = (meaning(written_again(log, batch)) for batch in (1, 7, 1_000))
    assert one[1] == seven[1] == thousand[1]
    assert one[0] == seven[0] == thousand[0]
    assert len(one[1]) > 300


@given(st.integers(0, 2**32))
@settings(max_examples=5)
def test_with_snapshots_whatever_the_seed(seed):
    plain, restarting = Log(), RestartingLog()
    Traffic(plain, seed).run(120)
    Traffic(restarting, seed).run(120)
    assert restarting.entries == plain.entries


def test_a_snapshot_loaded_dumps_the_same_bytes():
    state = busy_log(1_400).state
    dumped = snapshot.dump(state)
    assert len(state.history.by_name) > 100
    assert state.ledger.leases
    assert state.waitlist.by_id
    assert snapshot.dump(snapshot.load(dumped)) == dumped


def test_an_empty_state_has_a_snapshot_too():
    dumped = snapshot.dump(State())
    assert snapshot.dump(snapshot.load(dumped)) == dumped


def test_the_digest_is_the_sha256_of_the_bytes():
    assert snapshot.digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("broken", [b"", b"{}", b"null", b'{"last_id":"0-0"}'])
def test_bytes_that_are_no_snapshot_are_refused(broken):
    with pytest.raises(msgspec.MsgspecError):
        snapshot.load(broken)


def test_whatever_differs_in_the_log_differs_in_the_digest():
    digests = set()
    stories = (
        lambda scenario: None,
        lambda scenario: scenario.request("a", 1),
        lambda scenario: scenario.request("a", 2),
        lambda scenario: scenario.request("a", 1, pid=1),
        lambda scenario: scenario.request("b", 1),
        lambda scenario: scenario.tick(after_ms=1),
        lambda scenario: scenario.device(0, 5),
    )
    for story in stories:
        scenario = Scenario(24_576)
        story(scenario)
        digests.add(snapshot.digest(snapshot.dump(scenario.state)))
    assert len(digests) == len(stories)
