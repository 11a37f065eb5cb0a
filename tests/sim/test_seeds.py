"""Seeds of the simulated world: each must keep the promise, and each guard that is switched off must be missed."""

import os
import subprocess
import sys
from contextlib import closing

import pytest

from tests.rules.sources import ROOT
from tests.sim import campaign
from tests.sim.campaign import run_seed, run_seeds
from tests.sim.cards import Cards
from tests.sim.found import FOUND
from tests.sim.guards import Guards
from tests.sim.world import World

SEEDS = 500
JOBS = os.cpu_count() or 1


@pytest.mark.timeout(900)  # 40 s on two processors that have nothing else to do
def test_the_promise_holds_in_every_seed() -> None:
    seen, broken = set(), []
    for outcome in run_seeds(range(SEEDS), JOBS, is_short=True):
        seen.add(outcome.seed)
        if outcome.problems:
            broken.append(f"scripts/sim {outcome.seed} --short --trace: {outcome.problems[0]}")
    assert broken == []
    assert seen == set(range(SEEDS))


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_found_once_is_not_there_any_more(seed: int) -> None:
    assert run_seed(seed).problems == []


def digest_under(hash_seed: str, seed: int) -> str:
    """The digest of a seed in an interpreter that hashes texts differently."""
    code = f"from tests.sim.campaign import run_seed; print(run_seed({seed}, is_short=True).digest)"
    environ = os.environ | {
        "PYTHONHASHSEED": hash_seed,
        "PYTHONPATH": os.pathsep.join([str(ROOT), f"{ROOT}/scheduler"]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("seed", [452, 24])  # many faults; rows of a projection that are taken out together
def test_a_seed_is_the_same_run_to_the_byte(seed: int) -> None:
    assert digest_under("1", seed) == digest_under("2", seed) == run_seed(seed, is_short=True).digest


def test_seeds_run_in_processes_come_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "SEEDS_OF_WORKERS", 3)
    alone = [(outcome.seed, outcome.digest) for outcome in run_seeds(range(4), is_short=True)]
    assert sorted((outcome.seed, outcome.digest) for outcome in run_seeds(range(4), jobs=2, is_short=True)) == alone


@pytest.mark.parametrize(
    ("guard", "seeds"),
    [
        ("epoch", range(20)),
        ("quarantine", range(20)),
        ("de-duplication", range(20)),
        ("fsync", range(40)),
        ("hold", range(10)),
        ("reclaiming", range(100)),
        ("self-fence", range(30)),
        ("tombstones", range(5)),
        ("deletions", range(6)),
    ],
)
def test_a_guard_that_is_switched_off_is_missed(guard: str, seeds: range) -> None:
    with closing(run_seeds(seeds, JOBS, guard)) as outcomes:
        assert any(outcome.problems for outcome in outcomes)


def test_what_processes_rely_on_is_judged_beside_what_they_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cards, "_check_used", lambda cards, devices: None)
    worlds = (World(seed, Guards("self-fence")).run() for seed in range(30))
    assert any("are trusted by service-" in problem for world in worlds for problem in world.problems)
