"""A campaign of many seeds, as somebody starts it, stops it, and stops listening to it."""

import os
import signal
import subprocess
import sys

import pytest

from tests.rules.sources import ROOT


def start(*arguments: str) -> subprocess.Popen[str]:
    """`scripts/sim` with these, in a group of its own."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), f"{ROOT}/scheduler"])}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sim", "--short", *arguments],
        env=environ,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(("signal_number", "jobs"), [(signal.SIGINT, "1"), (signal.SIGTERM, "2")])
def test_one_that_is_stopped_says_what_was_done_so_far(signal_number: int, jobs: str) -> None:
    process = start("--seeds", "0..100000", "--jobs", jobs, "--every", "0.1")
    progress = process.stderr.readline()
    assert " of 100,000 seeds, " in progress
    assert " 0 broken" in progress
    os.killpg(process.pid, signal_number)  # as a terminal and `timeout` do: the workers get it, too
    said, complaints = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert said.startswith("stopped; what was done so far, of 100,000 seeds:\n")
    assert int(said.splitlines()[1].split(" seeds")[0]) >= 1
    assert "promises broken: 0" in said
    assert "Traceback" not in complaints


def test_one_that_nobody_listens_to_any_more_goes_on_to_the_end() -> None:
    process = start("--seeds", "0..4")
    process.stdout.close()
    complaints = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert complaints.startswith("4 seeds, ")
    assert "Traceback" not in complaints
