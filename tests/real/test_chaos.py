"""Faults on real processes, a few of each: `scripts/chaos` has hundreds."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.real.chaos.clock import jump
from tests.real.chaos.failover import fail_over
from tests.real.chaos.loss import cut, lose
from tests.real.chaos.outcome import Outcome
from tests.real.chaos.pause import pause
from tests.real.chaos.server import restart, stall
from tests.real.chaos.unfenced import pause_unfenced
from tests.real.chaos.wire import cut_connections, half_open, partition
from tests.real.false_clock import NOT_HERE, library
from tests.real.servers import RealServer

SEED = int(os.environ.get("GPUBOSS_TEST_SEED", "1"))

FAULTS: dict[str, tuple[Callable[[RealServer, int, int], Outcome], int]] = {
    "pauses of leaders and services": (pause, 2),
    "cut AOF tails": (cut, 2),
    "total losses": (lose, 2),
    "restarts of the server": (restart, 2),
    "stalls of the server": (stall, 1),
    "cut connections": (cut_connections, 6),
    "half-open connections": (half_open, 1),
    "a service that is cut off alone": (partition, 1),
    "failovers to a replica that lagged": (fail_over, 2),
    "jumps of the server's clock": (jump, 4),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_doubles_and_loses_nothing(own_server: RealServer, fault: str) -> None:
    strike, count = FAULTS[fault]
    if strike is jump and library() is None:
        pytest.skip(NOT_HERE)
    outcome = strike(own_server.start(), count, SEED)
    assert outcome.doubled == []
    assert outcome.lost == []
    assert outcome.faults == count
    assert outcome.requests > 0


def test_without_the_fence_every_pause_promises_twice(own_server: RealServer) -> None:
    """The same checks see it where there is something to see."""
    outcome = pause_unfenced(own_server.start(), 2, SEED)
    assert len(outcome.doubled) == outcome.faults == 2
