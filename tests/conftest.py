"""What every test may ask for: a real server, and hypothesis set up so that a failure can be had again."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.real.servers import RealServer, available_servers

# No deadline per example: on a busy machine it fails tests that are right; pytest's time-out catches what hangs.
settings.register_profile("here", deadline=None, print_blob=True)
settings.register_profile("ci", parent=settings.get_profile("here"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as `real` whatever uses a real server, so that nobody has to remember to."""
    for item in items:
        if "server" in getattr(item, "fixturenames", ()) or item.nodeid.startswith("tests/real/"):
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """asyncio alone: redis-py's asynchronous side does not run on trio."""
    return "asyncio"


@pytest.fixture(scope="session", params=available_servers())
def server_process(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """One server for the whole run, of each kind that this machine has; tests ask for `server` instead."""
    with RealServer(tmp_path_factory.mktemp(request.param), request.param, tcp=True) as process:
        yield process


@pytest.fixture
def server(server_process: RealServer) -> RealServer:
    """A real server, running and empty, whatever the test before did to it: kill, stop, pause, fill.

    A test that needs other flags, or changes them by CONFIG SET, starts a `RealServer` of its own.
    """
    try:
        server_process.resume()
    except RuntimeError:
        server_process.start()
    with server_process.client() as client:
        client.flushall()
    return server_process
