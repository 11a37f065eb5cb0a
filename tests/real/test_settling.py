"""What a look at the devices shows of the leases that settle there, and what it does not."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from gpuboss_scheduler.devices.nvml import NvmlUnavailable
from gpuboss_scheduler.devices.settling import Settling
from tests.core.scenario import Scenario, policy, reclaimed
from tests.real.servers import wait_for

CARD, OTHER = "GPU-alpha-0", "GPU-alpha-1"
MARGIN_MIB = 256


class Farm(Scenario):
    """Two real devices here and one elsewhere. `a`, `b` and `c` hold 8,000 MiB of the first each. `used_mib` is what
    the driver says; until `goes_on` is set it says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.happens(replace(policy(lock_delay_ms=60_000), settle_ms=5_000))
        for number, node in ((0, "alpha"), (1, "alpha"), (0, "beta")):
            self.device(number, 32_768, node, simulated=False, margin_mib=MARGIN_MIB, foreign_mib=100)
        for name in "abc":
            assert self.request(name, 8_000, device=CARD) == [f"granted {name} on cuda:0"]
        self.settling = Settling(self._asked_driver)
        self.used_mib: Mapping[str, int] | None = {}
        self.looks = 0
        self.goes_on = threading.Event()
        self.goes_on.set()

    def _asked_driver(self) -> Mapping[str, int]:
        self.looks += 1
        self.goes_on.wait()
        if self.used_mib is None:
            raise NvmlUnavailable("it fell off the bus")
        return self.used_mib

    def begin(self) -> None:
        """A look begins."""
        assert self.settling.seen_back(self.state.ledger) == set()

    def ends(self) -> set[str]:
        """What the look has shown that is under way."""
        found: set[str] = set()

        def is_over() -> bool:
            found.update(self.settling.seen_back(self.state.ledger))
            return not self.settling.is_looking

        wait_for("the end of a look", is_over)
        return {lease_id.rstrip("_") for lease_id in found}

    def seen(self, used_mib: Mapping[str, int] | None) -> set[str]:
        """What a look shows if so much is used."""
        self.used_mib = used_mib
        self.begin()
        return self.ends()


@pytest.fixture
def farm() -> Farm:
    return Farm()


@pytest.mark.parametrize(("used_mib", "shown"), [(16_000 + 100 + MARGIN_MIB, {"a"}), (16_357, set()), (0, {"a"})])
def test_memory_is_back_where_no_more_is_used_than_by_the_others(farm: Farm, used_mib: int, shown: set[str]) -> None:
    farm.release("a")
    assert farm.seen({CARD: used_mib}) == shown


@pytest.mark.parametrize(("used_mib", "shown"), [(24_000, set()), (16_000, {"a"}), (8_000, {"a", "b"})])
def test_of_several_only_as_many_are_back_as_are_missing(farm: Farm, used_mib: int, shown: set[str]) -> None:
    farm.release("a")
    farm.release("b")
    assert farm.seen({CARD: used_mib}) == shown


def test_a_gang_is_back_once_all_of_it_is(farm: Farm) -> None:
    assert farm.request("gang", 8_000, gpus=2, node="alpha") == ["granted gang on cuda:0+cuda:1"]
    farm.release("gang")
    assert farm.seen({CARD: 24_000, OTHER: 8_000}) == set()
    assert farm.seen({CARD: 24_000, OTHER: 0}) == {"gang"}


@pytest.mark.parametrize("used_mib", [{}, {OTHER: 0}, None])
def test_what_is_not_known_is_not_back(farm: Farm, used_mib: Mapping[str, int] | None) -> None:
    farm.release("a")
    assert farm.seen(used_mib) == set()


def test_whoever_is_granted_something_meanwhile_hides_nothing(farm: Farm) -> None:
    farm.release("a")
    farm.goes_on.clear()
    farm.used_mib = {CARD: 24_000}  # all of it is still there
    farm.begin()
    assert farm.request("new", 8_000, device=CARD) == ["granted new on cuda:0"]
    farm.goes_on.set()
    assert farm.ends() == set()


def test_what_is_given_back_meanwhile_waits_for_the_next_look(farm: Farm) -> None:
    farm.release("a")
    farm.goes_on.clear()
    farm.used_mib = {CARD: 16_000}
    farm.begin()
    farm.release("b")
    farm.goes_on.set()
    assert farm.ends() == {"a"}
    farm.happens(reclaimed("a"))
    assert farm.seen({CARD: 8_000}) == {"b"}


def test_a_look_that_hangs_is_waited_for_and_no_other_begins(farm: Farm) -> None:
    farm.release("a")
    farm.goes_on.clear()
    for _ in range(10):
        farm.begin()
    assert farm.settling.is_looking
    farm.goes_on.set()
    farm.ends()
    assert farm.looks == 1


def test_where_nothing_settles_nobody_looks(farm: Farm) -> None:
    farm.begin()
    farm.revoke("a")  # it did not give it back: what it uses is not known
    farm.begin()
    assert (farm.looks, farm.settling.is_looking) == (0, False)
