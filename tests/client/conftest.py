"""What the client's tests run on: a scheduler played by hand, or the real one in a process of its own."""

import asyncio
from collections.abc import Callable, Iterator, Sequence

import pytest

from gpuboss import GPUBoss, Resident
from gpuboss.client.link import Link, Outcome, Trouble
from tests.client.by_hand import HandScheduler
from tests.client.clerk import Clerk
from tests.client.platforms import Platform, running
from tests.client.residents import Card, Model
from tests.real.servers import RealServer

Told = Callable[[list[Outcome] | Trouble], None]


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

    def slow(self: Link, entries: Sequence[tuple[str, bytes, bool]], told: Told) -> bool:
        asyncio.get_running_loop().call_later(0.05, append, self, entries, told)
        return True

    monkeypatch.setattr(Link, "append", slow)


@pytest.fixture
def short_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads that find nothing end soon: that is when the reader looks whether the stream is still the same."""
    monkeypatch.setattr("gpuboss.client.link.BLOCK_S", 0.1)


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


@pytest.fixture
def clerk() -> Iterator[Clerk]:
    clerk = Clerk()
    yield clerk
    ids = [*clerk.desk.waiting, *clerk.desk.held, *clerk.desk.leaving]
    assert len(ids) == len(set(ids)), "an id in two places"


@pytest.fixture
def card() -> Card:
    return Card()


@pytest.fixture
def resident(boss: GPUBoss, card: Card) -> Resident[Model]:
    """A model of 8 GB that `card` looks after; the module says whose `boss` it is."""
    return boss.resident(load=card.load, unload=card.unload, vram_gb=8)
