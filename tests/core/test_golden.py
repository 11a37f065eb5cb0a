"""The golden logs: what was decided then is decided now, entry by entry, to the same digest."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from gpuboss import events
from gpuboss.core import snapshot
from gpuboss.core.machine import step
from gpuboss.core.state import State
from gpuboss.jsonl import read_jsonl
from gpuboss.log import Entry
from tests.core.auditor import audit
from tests.core.golden_logs import DIGESTS, FOLDER, STORIES

FILES = sorted(path.stem for path in FOLDER.glob("*.jsonl"))


def entries_of(name: str) -> list[Entry]:
    """A golden log as it was recorded."""
    with (FOLDER / f"{name}.jsonl").open("rb") as lines:
        return list(read_jsonl(lines, name))


def decisions_of(entries: Sequence[tuple[str, list[bytes]]]) -> tuple[list[Any], list[Any], State]:
    """Every decision twice: as the core derives it, and as the log holds it, in the order of their causes.

    Without the details of rejections, which are for people; some are worded by the JSON decoder.
    """
    state, derived, found = State(), [], []
    for entry_id, fields in entries:
        seq = state.seq
        turn = step(state, entry_id, fields)
        derived += [
            [type(told.decision).__name__, json.loads(msgspec.json.encode(told.decision))]
            for told in turn.told
            if told.is_new
        ]
        if state.seq > seq and fields[1].decode() in events.DECISIONS:
            data = json.loads(fields[3])
            del data["epoch"], data["seq"]
            found.append([fields[1].decode(), data])
    for type_name, data in derived + found:
        if type_name == "EventRejected":
            del data["detail"]
    return derived, found, state


def test_every_story_is_there():
    assert sorted(STORIES) == FILES == sorted(json.loads(DIGESTS.read_text()))


@pytest.mark.parametrize("name", FILES)
def test_what_was_decided_is_decided_again(name):
    derived, found, state = decisions_of(entries_of(name))
    assert derived == found
    assert len(found) > 10
    assert snapshot.digest(snapshot.dump(state)) == json.loads(DIGESTS.read_text())[name]


@pytest.mark.parametrize("name", FILES)
def test_the_stories_are_told_as_they_were_recorded(name):
    told, golden = STORIES[name]().entries, entries_of(name)
    assert decisions_of(told)[1] == decisions_of(golden)[1], "if that is meant, record them anew: scripts/golden"
    assert [entry.id for entry in told] == [entry.id for entry in golden]


@pytest.mark.parametrize("name", FILES)
def test_the_auditor_has_no_complaint(name):
    assert audit(entries_of(name)) == []


def test_the_stories_hold_every_type_of_event_that_is_acted_upon():
    seen = {entry.fields[1].decode() for name in FILES for entry in entries_of(name) if len(entry.fields) == 4}
    assert set(events.ALL) - seen == {"LeaseReasserted", "LeaseObserved"}
