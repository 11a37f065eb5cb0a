"""What tests of the real scheduler may ask for: a view of Redis, whose log is checked when the test is over, and a
scheduler that leads on it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.real.embedded_servers import connected
from tests.real.log_check import faults_of
from tests.real.redis_view import RedisView
from tests.real.schedulers import SchedulerProcess
from tests.real.servers import RealServer, available_servers, binary_of


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


@pytest.fixture
def short_runtime_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sockets of these tests, away from those of this user's own servers; none is served after a test."""
    with tempfile.TemporaryDirectory(prefix="gpuboss-test-", dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        monkeypatch.delenv("GPUBOSS_SERVER_BINARY", raising=False)
        yield
        for left_over in Path(folder).glob("gpuboss*/*.sock"):  # of a test that failed half way
            with connected(f"unix://{left_over}") as client, contextlib.suppress(redis.RedisError):
                client.shutdown(nosave=True)


@pytest.fixture(params=available_servers())
def binary(request: pytest.FixtureRequest) -> Path:
    """The server's binary, of each kind that there is."""
    found = binary_of(request.param)
    assert found is not None
    return found
