"""kill -9 of the scheduler between any two of its steps, under traffic: nothing is lost, nothing is granted twice."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from gpuboss_scheduler.failpoints import NAMES
from tests.real.chaos.kill import kill_at
from tests.real.chaos.outcome import Outcome
from tests.real.schedulers import SchedulerProcess
from tests.real.servers import RealServer

KILLS = int(os.environ.get("GPUBOSS_TEST_KILLS", "1"))  # at each point, on each kind of server
SEED = int(os.environ.get("GPUBOSS_TEST_SEED", "1"))
AT_ONCE = 4  # mostly they wait for one another

pytestmark = pytest.mark.timeout(120 + 60 * KILLS)


@pytest.fixture(scope="module")
def outcomes(server_process: RealServer) -> Mapping[str, Future[Outcome]]:
    """What is left after kills at each point, each in a namespace of its own."""
    with server_process.client() as client:
        client.flushall()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return {point: threads.submit(kill_at, server_process, point, KILLS, SEED, f"at-{point}") for point in NAMES}


@pytest.mark.parametrize("point", NAMES)
def test_a_kill_loses_and_doubles_nothing(outcomes: Mapping[str, Future[Outcome]], point: str) -> None:
    outcome = outcomes[point].result()
    assert outcome.doubled == []
    assert outcome.lost == []
    assert outcome.faults == KILLS
    assert outcome.requests > 0


def test_a_misspelt_point_is_refused(server: RealServer) -> None:
    """Or a test would pass because nobody was killed."""
    with SchedulerProcess(server.url, environ={"GPUBOSS_FAILPOINT": "comitted"}) as scheduler:
        assert scheduler.wait() != 0
        assert "committed" in scheduler.stderr
