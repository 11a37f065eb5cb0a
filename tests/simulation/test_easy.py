"""Against published schedules: every job starts when it does there, and each rule for ties at one ms is needed."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "easy.py"
PUBLISHED = "GPUBOSS_PUBLISHED_SWF"  # names a log with its published waits, which is too large to keep here


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("easy", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["easy"] = module
    spec.loader.exec_module(module)
    return module


EASY = script()

Job = tuple[int, int, int, int, int]  # submission, start, run time, processors, requested time; in s, all by hand

# On ten processors. `waits` asks for all of them, and what has no end by then may not pass it.
BACKFILL: list[Job] = [
    (0, 0, 100, 6, 100),
    (10, 100, 50, 8, 50),  # waits for the first: by 100
    (20, 20, 60, 4, 80),  # ends by then
    (30, 80, 500, 2, 1000),  # there is room beside it
    (31, 150, 10, 2, 100),  # ends too late, and there is no more room beside it
]
EXPIRY_LAST: list[Job] = [
    (0, 0, 50, 3, 50),
    (0, 0, 80, 4, 80),
    (1, 80, 5, 10, 5),
    (2, 50, 20, 5, 20),  # goes into what expires at 50
    (50, 70, 10, 3, 10),  # and not this one, which came as it expired, into what was free before
]
RELEASES_FIRST: list[Job] = [
    (0, 0, 50, 3, 90),
    (0, 0, 50, 3, 90),
    (0, 0, 100, 4, 100),
    (1, 100, 5, 10, 5),
    (2, 60, 40, 5, 40),  # would go into both that are given back at 50
    (50, 50, 10, 3, 10),  # if this one had not gone into the first of them
]
RELEASES_BY_ID: list[Job] = [
    (0, 0, 10, 8, 10),
    (1, 10, 40, 4, 60),  # given back at 50, the second
    (2, 2, 48, 2, 60),  # given back at 50, the first: it was granted before
    (11, 11, 89, 4, 89),
    (12, 100, 5, 10, 5),
    (13, 50, 30, 5, 40),  # goes into both
    (14, 105, 20, 3, 40),  # would have gone into the larger of them
]


def swf(jobs: list[Job]) -> str:
    """The jobs as a log of the archive, the last first: it is their ids that count."""
    lines = [
        f"{number} {submit} {start - submit} {run} {size} -1 -1 {size} {requested} -1 1 1 1 1 1 1 -1 -1"
        for number, (submit, start, run, size, requested) in enumerate(jobs, start=1)
    ]
    return "\n".join(["; Version: 2", "; MaxProcs: 10", *reversed(lines)]) + "\n"


@pytest.mark.parametrize("jobs", [BACKFILL, EXPIRY_LAST, RELEASES_FIRST, RELEASES_BY_ID])
def test_every_job_starts_when_it_was_computed_to(jobs: list[Job]) -> None:
    published = EASY.read(swf(jobs))
    assert (published.device_mib, len(published.jobs)) == (10, len(jobs))
    assert EASY.differences(published, EASY.RIGHT_TIES) == []


@pytest.mark.parametrize(
    ("wrong", "jobs"),
    [("expiry-last", EXPIRY_LAST), ("releases-first", RELEASES_FIRST), ("releases-by-id", RELEASES_BY_ID)],
)
def test_a_tie_that_is_broken_the_other_way_is_seen(wrong: str, jobs: list[Job]) -> None:
    assert EASY.differences(EASY.read(swf(jobs)), EASY.RULES[wrong]) != []


def test_what_is_not_equal_is_counted_and_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.swf"
    log.write_text(swf(BACKFILL))
    assert EASY.main([str(log)]) == 0
    assert capsys.readouterr().out.startswith("5 of 5 starts equal, ")
    log.write_text(swf([*BACKFILL[:-1], (31, 151, 10, 2, 100)]))
    assert EASY.main([str(log)]) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("4 of 5 starts equal, ")
    assert shown.err == "job-00000005: starts at 150000 ms, published 151000 ms\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [("1 0 0 1 1", "MaxProcs"), ("; MaxProcs: 1\n1 0 0 1", "line 2"), ("; MaxProcs: 1\n1 a", "line 2")],
)
def test_what_is_no_such_log_is_refused_with_the_reason(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.swf"
    log.write_text(text)
    assert EASY.main([str(log)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(not os.environ.get(PUBLISHED), reason=f"{PUBLISHED} names no published schedule")
def test_a_published_schedule_is_met_start_for_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert EASY.main([os.environ[PUBLISHED]]) == 0, capsys.readouterr().err
