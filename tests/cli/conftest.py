"""What tests of the command line may ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.cli.console import Console
from tests.real.servers import RealServer


@pytest.fixture
def console(server: RealServer) -> Console:
    """A shell in front of an empty server."""
    return Console(server.url)


@pytest.fixture
def client(server: RealServer) -> Iterator[redis.Redis]:
    """Plain commands on the same server."""
    with server.client() as client:
        yield client
