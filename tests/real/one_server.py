"""For modules to whom the kind of server hardly matters: one kind instead of all, to save time. CI takes all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.real.servers import RealServer, available_servers


def served_by(number: int) -> Any:
    """A fixture to be called `server_process` in a module: a server of one kind. 0 is the first of those that this
    machine has, -1 the last; different modules take different ones."""
    kinds = available_servers()

    @pytest.fixture(scope="module", params=kinds if os.environ.get("CI") == "true" else [kinds[number]])
    def server_process(
        request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[RealServer]:
        with RealServer(tmp_path_factory.mktemp(request.param), request.param) as process:
            yield process

    return server_process
