"""What tests of the real scheduler may ask for: a view of Redis, whose log is checked when the test is over, and a
scheduler that leads on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.log_check import faults_of
from tests.real.redis_view import RedisView
from tests.real.schedulers import SchedulerProcess
from tests.real.servers import RealServer, available_servers


@pytest.fixture
def view(server: RealServer) -> Iterator[RedisView]:
    """An empty namespace on a real server of each kind. Whatever a test does, its log must be true at the end."""
    with server.client() as client:
        view = RedisView(client)
        yield view
        if client.exists(view.key("events")):
            assert faults_of(view) == []


@pytest.fixture
def scheduler(server: RealServer) -> Iterator[SchedulerProcess]:
    """A scheduler with two cards of 24 GiB, leading."""
    with SchedulerProcess(server.url) as process:
        process.wait_leading()
        yield process


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RealServer]:
    """A server for one test alone, which may stop, pause or configure it; not running yet. A kill loses nothing: under
    `everysec` it would lose what waits to be written while a busy disk syncs."""
    process = RealServer(tmp_path / "server", available_servers()[0], flags={"appendfsync": "always"})
    yield process
    process.stop()
