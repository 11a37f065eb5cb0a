"""For modules to whom the kind of server does not matter: one kind instead of all, to save time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.real.servers import RealServer, available_servers


def served_by(number: int) -> Any:
    """A fixture to be called `server_process` in a module: a server of one kind. 0 is the first of those that this
    machine has, -1 the last; different modules take different ones."""
    kind = available_servers()[number]

    @pytest.fixture(scope="module")
    def server_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
        with RealServer(tmp_path_factory.mktemp(kind), kind) as process:
            yield process

    return server_process
