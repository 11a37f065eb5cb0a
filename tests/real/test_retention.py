"""The log is trimmed while it grows: nothing that is needed goes, and what goes is archived first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gpuboss.archive import segments_in
from gpuboss_scheduler.segments import SegmentWriter
from tests.real.log_check import faults_of, whole
from tests.real.one_server import served_by
from tests.real.redis_view import RedisView, Service
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer
from tests.real.traffic import Traffic
from tests.real.witness import Witness

KILLS = int(os.environ.get("GPUBOSS_TEST_RETENTION_KILLS", "3"))
COUNT = 200

server_process = served_by(0)
pytestmark = pytest.mark.timeout(60 + 20 * KILLS)


@pytest.fixture
def view(server: RealServer) -> Iterator[RedisView]:
    """A view of a log that need not hold its beginning."""
    with server.client() as client:
        yield RedisView(client)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "deeper" / "archive"


def length(view: RedisView) -> int:
    return int(view.client.xlen(view.key("events")))


def trimmed_through(view: RedisView) -> str:
    return view.scheduler().get("trimmed_through", "0-0")


def await_trimming(view: RedisView) -> None:
    before = trimmed_through(view)
    eventually(lambda: trimmed_through(view) != before, "more to be trimmed")


def work(server: RealServer, requests: int) -> None:
    """A log of some length."""
    with Traffic(server, seed=1) as traffic:
        traffic.await_more(requests)


def gpuboss(server: RealServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gpuboss", *arguments, "--redis-url", server.url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def assert_whole(view: RedisView, server: RealServer, archive: Path) -> None:
    """Archive and log are one log, by the tests' own measures and by what a person would run."""
    assert faults_of(view, archive) == []
    told = gpuboss(server, "replay", "--archive", str(archive), "--json")
    assert told.returncode == 0, told.stdout + told.stderr
    document = json.loads(told.stdout)
    assert (document["from"], document["divergences"]) == ("beginning", [])
    assert document["events"] == len(whole(view, archive))
    assert document["digest"] == json.loads(gpuboss(server, "replay", "--json").stdout)["digest"]


# ---------------------------------------------------------------- what goes, and what stays


def test_by_count_with_leaders_that_are_killed(view: RedisView, server: RealServer, archive: Path) -> None:
    options: dict[str, Any] = {"retention_count": str(COUNT), "archive": str(archive)}
    with ExitStack() as stack:
        witness = stack.enter_context(Witness(server))
        leader = stack.enter_context(SchedulerProcess(server.url, **options))
        leader.wait_leading()
        with Traffic(server, seed=7) as traffic:
            for _ in range(KILLS):
                standby = stack.enter_context(SchedulerProcess(server.url, **options))
                standby.wait_for("standing by")
                await_trimming(view)
                leader.kill()
                standby.wait_leading()
                leader = standby
        assert traffic.lost == []
        eventually(lambda: length(view) <= COUNT + COUNT // 100, "the log to be as short as it is wanted")
        assert witness.contradicts(whole(view, archive)) == []
    assert_whole(view, server, archive)


def test_by_age_until_the_last_entry_which_stays(view: RedisView, server: RealServer, archive: Path) -> None:
    with SchedulerProcess(server.url, retention_age="4s", archive=str(archive)) as scheduler:
        scheduler.wait_leading()
        service = Service(view, "service")
        held = service.lease(1_000)
        work(server, 50)
        eventually(lambda: length(view) == 2, "all but the last entry, and that of its snapshot, to be too old")
        assert_whole(view, server, archive)
        scheduler.terminate()
    with SchedulerProcess(server.url) as scheduler:
        scheduler.wait_leading()  # from the snapshot, and without the setting
        assert view.rows("leases").keys() == {held}
        service.release(held)
        assert service.told(held, "LeaseEnded").data["reason"] == "released"
        assert length(view) > 1
    assert_whole(view, server, archive)


def test_without_an_archive_what_goes_is_gone(view: RedisView, server: RealServer) -> None:
    with SchedulerProcess(server.url, retention_count="50") as scheduler:
        scheduler.wait_leading()
        work(server, 60)
        eventually(lambda: length(view) <= 50, "the log to be as short as it is wanted")
        scheduler.kill()
    told = gpuboss(server, "replay", "--json")
    assert told.returncode == 0
    assert json.loads(told.stdout)["from"].startswith("snapshot ")
    with SchedulerProcess(server.url, retention_count="50") as scheduler:
        scheduler.wait_leading()
        Service(view, "service").lease(8_000)


def test_nothing_goes_where_nothing_is_set(view: RedisView, server: RealServer, archive: Path) -> None:
    with SchedulerProcess(server.url, archive=str(archive)) as scheduler:
        scheduler.wait_leading()
        work(server, 20)
        assert "SchedulerElected" in view.entries()[0].type
        assert not archive.exists()


def test_without_its_snapshot_the_log_is_let_be_until_there_is_one(view: RedisView, server: RealServer) -> None:
    with SchedulerProcess(server.url, retention_count="50") as scheduler:
        scheduler.wait_leading()
        work(server, 60)
        eventually(lambda: length(view) <= 50, "the log to be as short as it is wanted")
        view.client.set(view.key("snapshot"), "no snapshot")
        work(server, 60)
        eventually(lambda: length(view) <= 50, "the log to be trimmed again")
        assert view.client.hget(view.key("snapshot"), "id") is not None


# ---------------------------------------------------------------- trouble with the archive


def test_where_the_archive_cannot_be_written_nothing_goes(view: RedisView, server: RealServer, archive: Path) -> None:
    archive.parent.write_text("a file where the folder should be")
    options: dict[str, Any] = {"retention_count": "50", "archive": str(archive)}
    with SchedulerProcess(server.url, **options) as scheduler:
        scheduler.wait_leading()
        scheduler.wait_for("nothing is taken out of the log: cannot write the archive")
        first_id = view.entries()[0].id
        work(server, 60)  # it goes on leading
        assert view.entries()[0].id == first_id
        eventually(lambda: "trouble" in view.scheduler(), "it to be shown")
        assert f"cannot write the archive {archive}" in gpuboss(server, "status").stdout
        archive.parent.unlink()
        eventually(lambda: trimmed_through(view) != "0-0", "it to be tried again", 30)
        eventually(lambda: "trouble" not in view.scheduler(), "it to be shown no more")
        assert len([line for line in scheduler.lines if "cannot write" in line]) == 1
    assert_whole(view, server, archive)


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_full_disk_leaves_no_half_segment(archive: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def fails(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    writer = SegmentWriter(archive, epoch=3)
    assert writer.open() == "0-0"
    with monkeypatch.context() as patched:
        patched.setattr(os, at, fails)
        error = writer.write("1-1", "1-2", "0-0", [b"{}"]).exception(10)
        assert isinstance(error, OSError)
    assert list(archive.iterdir()) == []
    assert writer.write("1-1", "1-2", "0-0", [b"{}"]).exception(10) is None
    assert [segment.last for segment in segments_in(archive)] == ["1-2"]


def test_a_draft_that_was_left_behind_goes(archive: Path) -> None:
    archive.mkdir(parents=True)
    (archive / "epoch-2.partial").touch()
    (archive / "notes.txt").touch()
    SegmentWriter(archive, epoch=3).open()
    assert [path.name for path in archive.iterdir()] == ["notes.txt"]


def test_a_leader_with_another_archive_names_the_gap(
    view: RedisView, server: RealServer, archive: Path, tmp_path: Path
) -> None:
    with SchedulerProcess(server.url, retention_count="50", archive=str(archive)) as scheduler:
        scheduler.wait_leading()
        work(server, 60)
        eventually(lambda: length(view) <= 50, "the log to be as short as it is wanted")
        assert "is missing here" not in scheduler.stderr
        scheduler.terminate()
    other = tmp_path / "other"
    through = trimmed_through(view)
    with SchedulerProcess(server.url, retention_count="50", archive=str(other)) as scheduler:
        scheduler.wait_leading()
        scheduler.wait_for(f"the archive {other} ends at 0-0, but the log was trimmed through {through}")
        work(server, 60)
        eventually(lambda: length(view) <= 50, "the log to be as short as it is wanted")
    told = gpuboss(server, "replay", "--archive", str(other))
    assert told.returncode == 1
    assert f"goes on from {through}" in told.stderr
    for segment in segments_in(archive):
        segment.path.rename(other / segment.path.name)
    assert_whole(view, server, other)


# ---------------------------------------------------------------- what others remember of the log


def test_a_scheduler_that_was_away_does_not_take_trimming_for_a_loss(
    view: RedisView, server: RealServer, tmp_path: Path
) -> None:
    file = str(tmp_path / "known-log.json")
    with SchedulerProcess(server.url, memory_file=file) as scheduler:
        scheduler.wait_leading()
        work(server, 10)
        scheduler.terminate()
    remembered = Path(file).read_bytes()
    known = json.loads(remembered)["last_id"]
    with SchedulerProcess(server.url, retention_count="50") as scheduler:
        scheduler.wait_leading()
        work(server, 60)
        eventually(lambda: length(view) <= 50, "the log to be as short as it is wanted")
        assert not view.client.xrange(view.key("events"), known, known)
        scheduler.terminate()
    with SchedulerProcess(server.url, memory_file=file) as scheduler:
        scheduler.wait_leading()
        assert "are gone" not in scheduler.stderr
        scheduler.terminate()
    Path(file).write_bytes(remembered)
    view.client.xtrim(view.key("events"), maxlen=0, approximate=False)
    with SchedulerProcess(server.url, memory_file=file) as scheduler:
        scheduler.wait_for("entries of the log are gone")


def test_a_leader_that_was_paused_trims_nothing(view: RedisView, server: RealServer, archive: Path) -> None:
    options: dict[str, Any] = {"retention_count": "50", "archive": str(archive)}
    with ExitStack() as stack:
        first = stack.enter_context(SchedulerProcess(server.url, **options))
        first.wait_leading()
        second = stack.enter_context(SchedulerProcess(server.url, **options))
        second.wait_for("standing by")
        work(server, 60)
        first.signal(signal.SIGSTOP)
        second.wait_leading()
        work(server, 60)
        first.signal(signal.SIGCONT)
        first.wait_for("another scheduler leads")
        eventually(lambda: length(view) <= 50, "the log to be as short as it is wanted")
    assert_whole(view, server, archive)
