"""A log whose tail a power failure cut off: what was granted in it is missed, and half a commit does not come back."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.real.log_check import faults_of
from tests.real.lost_logs import OPTIONS, assert_granted_late, elected_anew, row_of
from tests.real.redis_view import RedisView, Service
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer, available_servers, last_aof


class Cut:
    """A server whose AOF loses what was written after `mark`, as with a power failure under everysec."""

    def __init__(self, server: RealServer) -> None:
        self.server = server
        self._size = 0

    def _file(self) -> Path:
        return last_aof(self.server)

    def mark(self) -> None:
        """What is written from here on will be lost."""
        self._size = self._file().stat().st_size

    def mark_amid_the_last(self, written: bytes) -> None:
        """What is written from the last of these bytes on will be lost."""
        self._size = self._file().read_bytes().rindex(written)

    def power_failure(self) -> None:
        """Kill the server, cut its AOF, and start it again."""
        self.server.kill()
        with self._file().open("r+b") as file:
            file.truncate(self._size)
        self.server.start()


@pytest.fixture
def cut(own_server: RealServer) -> Cut:
    own_server.start()
    return Cut(own_server)


def test_what_was_granted_in_a_tail_that_is_gone_is_not_granted_again(cut: Cut) -> None:
    with SchedulerProcess(cut.server.url, **OPTIONS) as scheduler, cut.server.client() as client:
        view = RedisView(client)
        scheduler.wait_leading()
        first, second = Service(view, "first"), Service(view, "second")
        released = first.lease(20_000)
        asked = second.queue(20_000)
        cut.mark()
        first.release(released)
        row = row_of(view, second.answer(asked).data["lease_id"])
        eventually(lambda: view.scheduler()["fence"] == str(row["fence"]), "a beat after the grant")
        scheduler.signal(signal.SIGSTOP)
        cut.power_failure()
        # What was asked before anybody noticed must not be decided as if nothing had happened.
        small = Service(view, "early").request(4_000)
        early = Service(view, "early").request(20_000)
        scheduler.signal(signal.SIGCONT)
        elected = elected_anew(view)
        view.append("LeaseReasserted", **row)
        view.append("LeaseReleased", lease_id=released, service="first")
        assert_granted_late(Service(view, "early"), small, elected)
        assert view.rows("leases").keys() == {asked, small}
        second.release(asked)
        assert Service(view, "early").answer(early).type == "LeaseGranted"
        assert faults_of(view) == []
        scheduler.terminate()
    with SchedulerProcess(cut.server.url, **OPTIONS) as scheduler:
        scheduler.wait_leading()  # it derives all of it again, and goes on


def test_what_was_granted_just_before_the_power_failed_is_missed(cut: Cut) -> None:
    with SchedulerProcess(cut.server.url, **OPTIONS) as scheduler, cut.server.client() as client:
        view = RedisView(client)
        scheduler.wait_leading()
        holder = Service(view, "holder")
        holder.release(holder.lease(1))
        cut.mark()
        row = row_of(view, holder.lease(20_000))
        cut.power_failure()  # before another beat, nearly always
        elected = elected_anew(view)
        view.append("LeaseReasserted", **row)
        small = Service(view, "other").request(4_000)
        assert_granted_late(Service(view, "other"), small, elected)
        assert view.rows("leases").keys() == {row["lease_id"], small}
        assert faults_of(view) == []


@pytest.mark.parametrize("kind", available_servers())
def test_half_a_commit_does_not_come_back_with_the_next_restart(kind: str, tmp_path: Path) -> None:
    """Redis leaves it in its file, and would carry it out with the next transaction."""
    with RealServer(tmp_path, kind) as own_server:
        _cut_amid_a_commit(Cut(own_server))


def _cut_amid_a_commit(cut: Cut) -> None:
    with SchedulerProcess(cut.server.url, **OPTIONS) as scheduler, cut.server.client() as client:
        view = RedisView(client)
        scheduler.wait_leading()
        service = Service(view, "service")
        first, second = service.lease(20_000), service.queue(20_000)
        service.release(first)  # one commit ends the first and grants the second
        service.answer(second)
        cut.mark_amid_the_last(b"LeaseGranted")
        cut.power_failure()
        service.release(first)
        service.answer(second)
        eventually(lambda: client.info("persistence")["aof_rewrites"], "the AOF to be written anew")
        eventually(lambda: not client.info("persistence")["aof_rewrite_in_progress"], "that to end")
        cut.server.kill()
        cut.server.start()
        service.release(second)
        service.lease(20_000)
        assert faults_of(view) == []
