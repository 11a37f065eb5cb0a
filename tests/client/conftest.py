"""What the client's tests run on: a scheduler played by hand, or the real one in a process of its own."""

from collections.abc import Iterator, Sequence

import anyio
import pytest

from gpuboss.client.link import Link, LinkLost, Refused
from tests.client.by_hand import HandScheduler
from tests.client.platforms import Platform, running
from tests.real.servers import RealServer


@pytest.fixture
def hand(server: RealServer) -> Iterator[HandScheduler]:
    """A scheduler that the test plays itself, on an empty server, leading."""
    hand = HandScheduler(server)
    hand.lead()
    yield hand
    hand.close()


@pytest.fixture
def slow_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client appends takes a while: whoever does not wait for it is found out."""
    append = Link.append

    async def slow(self: Link, entries: Sequence[tuple[str, bytes]]) -> list[LinkLost | Refused | None]:
        await anyio.sleep(0.05)
        return await append(self, entries)

    monkeypatch.setattr(Link, "append", slow)


@pytest.fixture(scope="module")
def module_platform(server_process: RealServer) -> Iterator[Platform]:
    """One real scheduler for all tests of a module: tests ask for `platform` instead."""
    with running(server_process) as platform:
        yield platform


@pytest.fixture
def platform(module_platform: Platform) -> Iterator[Platform]:
    """A real scheduler with two cards of 24 GB, of which a test must leave nothing leased."""
    yield module_platform
    module_platform.wait_until_nothing_is_left()
