"""Faults on real processes, a few of each: `scripts/chaos` has hundreds."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.real.chaos.loss import cut, lose
from tests.real.chaos.outcome import Outcome
from tests.real.chaos.pause import pause
from tests.real.chaos.server import restart, stall
from tests.real.servers import RealServer

SEED = int(os.environ.get("GPUBOSS_TEST_SEED", "1"))

FAULTS: dict[str, tuple[Callable[[RealServer, int, int], Outcome], int]] = {
    "pauses of leaders and services": (pause, 2),
    "cut AOF tails": (cut, 2),
    "total losses": (lose, 2),
    "restarts of the server": (restart, 2),
    "stalls of the server": (stall, 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_doubles_and_loses_nothing(own_server: RealServer, fault: str) -> None:
    strike, count = FAULTS[fault]
    outcome = strike(own_server.start(), count, SEED)
    assert outcome.doubled == []
    assert outcome.lost == []
    assert outcome.faults == count
    assert outcome.requests > 0
