"""The trimming of one reign, slice by slice, without its process: what each slice checks before it goes on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuboss.archive import segments_in
from gpuboss.config import RetentionConfig
from gpuboss.connection import connect
from gpuboss.core.state import State
from gpuboss.keys import Keys
from gpuboss.log import LogDamaged, LogReader
from gpuboss_scheduler import retention
from gpuboss_scheduler.clock import LogClock
from gpuboss_scheduler.recovery import Overtaken, recover
from gpuboss_scheduler.reign import Reign
from gpuboss_scheduler.retention import PAGE, SETTLED_MS, Retention
from gpuboss_scheduler.scripts import Deposed, Script
from gpuboss_scheduler.segments import SegmentWriter
from gpuboss_scheduler.snapshots import Snapshots
from tests.cli.console import append, keep_snapshot, store
from tests.core.scenario import Scenario, fold
from tests.real.one_server import served_by
from tests.real.schedulers import eventually
from tests.real.servers import RealServer

server_process = served_by(-1)
KEYS = Keys()


class Trimming:
    """A log of some length on a server, and the trimming of a reign whose slices are worked off by hand."""

    def __init__(self, client: Any, folder: Path | None, **rules: int) -> None:
        self.client = client
        self.log = Scenario(24_576)
        for number in range(3 * PAGE):
            self.log.request(f"lease-{number}", 1_000)
            self.log.release(f"lease-{number}")
        store(client, self.log)
        self.state = fold(self.log.entries)
        leader = (client.hget(KEYS.scheduler, "leader") or b"").decode()
        self.reign = Reign(client, KEYS, self.state.epoch, self.state.seq, self.state.last_id, leader)
        self.snapshots = Snapshots(self.reign, self.state, 10_000)
        self.troubles: list[str] = []
        self.writer = None if folder is None else SegmentWriter(folder, self.state.epoch)
        self.retention = self.by(**rules)

    def by(self, later_ms: int = SETTLED_MS + 1, **rules: int) -> Retention:
        """The trimming by some rules, so long after the last entry."""
        clock = LogClock(self.state.now_ms + later_ms, monotonic=lambda: 0.0)

        def beat() -> None:
            self.reign.beat()

        common = self.reign, self.state, clock, self.snapshots
        return Retention(*common, RetentionConfig(**rules), self.writer, beat, self.troubles.append)

    def ids(self) -> list[str]:
        return [entry.id for entry in LogReader(self.client, KEYS).entries()]

    def work_until(self, condition: Callable[[], object], what: str) -> None:
        def holds() -> object:
            self.retention.work()
            return condition()

        eventually(holds, what)

    def work(self, slices: int) -> None:
        for _ in range(slices):
            self.retention.work()


@pytest.fixture
def client(server: RealServer) -> Iterator[Any]:
    with connect(server.url) as client:
        yield client


def test_no_more_goes_than_is_too_many(client: Any, tmp_path: Path) -> None:
    trimming = Trimming(client, tmp_path, count=50)
    ids = trimming.ids()
    trimming.work_until(lambda: len(trimming.ids()) == 50, "the log to be as short as it is wanted")
    trimming.work(5)
    assert trimming.ids()[:-1] == ids[-49:], "and the entry of the snapshot that had to be taken"
    assert LogReader(client, KEYS).trimmed_through() == ids[-50]
    segments = segments_in(tmp_path)
    assert (segments[0].first, segments[0].before, segments[-1].last) == (ids[0], "0-0", ids[-50])


def test_a_little_more_than_is_wanted_is_let_be(client: Any) -> None:
    trimming = Trimming(client, None)
    length = len(trimming.ids())
    trimming.retention = trimming.by(count=length - length // 150)
    trimming.work(10)
    assert len(trimming.ids()) == length


def test_what_a_power_failure_may_take_back_stays(client: Any) -> None:
    trimming = Trimming(client, None)
    length = len(trimming.ids())
    trimming.retention = trimming.by(later_ms=0, count=1)
    trimming.work(length // PAGE + 10)
    assert len(trimming.ids()) == length
    trimming.retention = trimming.by(count=1)
    trimming.work(length // PAGE + 10)
    assert len(trimming.ids()) == 2, "the last one that was read, and the entry of the snapshot behind it"


def test_nothing_goes_before_its_segment_is_on_the_disk(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, asked = threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        asked.set()
        assert synced.wait(20)

    monkeypatch.setattr(os, "fsync", slow)
    trimming = Trimming(client, tmp_path, count=50)
    length = len(trimming.ids())
    trimming.work_until(asked.is_set, "the segment to be written")
    trimming.work(5)
    assert (len(trimming.ids()), segments_in(tmp_path)) == (length + 1, []), "a snapshot was taken"
    synced.set()
    trimming.work_until(lambda: len(trimming.ids()) == 50, "the log to be as short as it is wanted")


def test_the_last_entry_stays(client: Any) -> None:
    trimming = Trimming(client, None, age_ms=1)
    last = trimming.ids()[-1]
    trimming.work_until(lambda: len(trimming.ids()) == 2, "all others to go, but for the entry of the snapshot")
    trimming.work(5)
    assert trimming.ids()[0] == last


def test_what_a_leader_read_that_was_deposed_meanwhile_is_not_archived(client: Any, tmp_path: Path) -> None:
    """Another leader may have trimmed between two of its pages: its run could have a hole."""
    trimming = Trimming(client, tmp_path, count=50)
    trimming.work(3)  # open, look, a page
    client.hset(KEYS.scheduler, "epoch", trimming.reign.epoch + 1)
    with pytest.raises(Deposed):
        trimming.work(20)
    assert segments_in(tmp_path) == []


def test_large_runs_are_several_segments(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SEGMENT_ENTRIES", 2 * PAGE)
    trimming = Trimming(client, tmp_path, count=50)
    trimming.work_until(lambda: len(trimming.ids()) == 50, "the log to be as short as it is wanted")
    segments = segments_in(tmp_path)
    assert len(segments) > 2
    assert [segment.before for segment in segments] == ["0-0", *(segment.last for segment in segments[:-1])]


# ---------------------------------------------------------------- the script


def trimmed(trimming: Trimming, *, epoch: int = 0, snapshot: str = "", there: str = "") -> list[Any]:
    state = trimming.state
    keys = [KEYS.scheduler, KEYS.events, KEYS.snapshot]
    through, stays = trimming.ids()[9:11]
    arguments = [epoch or trimming.reign.token, snapshot or state.last_id, there or state.last_id, stays, through]
    return Script("trim")(trimming.client, keys, arguments)


def test_the_script_trims(client: Any) -> None:
    trimming = Trimming(client, None)
    keep_snapshot(client, trimming.state)
    ids = trimming.ids()
    assert trimmed(trimming) == [10]
    assert trimming.ids() == ids[10:]
    assert client.hget(KEYS.scheduler, "trimmed_through").decode() == ids[9]


@pytest.mark.parametrize("wrong", [{"epoch": 99}, {"there": "1-1"}])
def test_the_script_refuses_a_leader_that_is_none_and_a_log_that_is_another(client: Any, wrong: dict[str, Any]) -> None:
    trimming = Trimming(client, None)
    keep_snapshot(client, trimming.state)
    ids = trimming.ids()
    with pytest.raises(Deposed):
        trimmed(trimming, **wrong)
    assert trimming.ids() == ids


@pytest.mark.parametrize("stored", [None, "other", "no hash"])
def test_the_script_lets_be_what_no_snapshot_stands_in_for(client: Any, stored: str | None) -> None:
    trimming = Trimming(client, None)
    if stored == "other":
        keep_snapshot(client, State())
    elif stored is not None:
        client.set(KEYS.snapshot, stored)
    ids = trimming.ids()
    assert trimmed(trimming) == [b""]
    assert trimming.ids() == ids


# ---------------------------------------------------------------- starting meanwhile


def test_a_log_that_becomes_another_while_it_is_read_is_not_called_damaged(client: Any) -> None:
    given = Scenario(24_576)
    given.request("lease", 1_000)
    given.release("lease")
    given.entries[4:5] = []  # the grant
    append(client, given)
    cursor = given.entries[-1].id
    with pytest.raises(LogDamaged):
        recover(LogReader(client, KEYS), cursor)
    with pytest.raises(Overtaken):
        recover(LogReader(client, KEYS), cursor, is_stale=lambda: True)
