"""The comparison of policies: what is counted, by hand; the order they come out in; and the table in the docs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gpuboss.simulation.uses import Model, Use, Used
from scripts import policies
from scripts.easy import read
from scripts.policies import BEST_EFFORT, EASY, HALF, HEADINGS, IDLE_LEASES, MORE, POLICIES, STRICT_FIFO, Load
from scripts.workload import DAYS, SEED, STREAMS, Draws, workload
from tests.simulation.test_easy import BACKFILL, EXPIRY_LAST, PUBLISHED, swf

DOCS = Path(__file__).parents[2] / "docs" / "policy.md"
LARGE = Model("imajin-prompt", "large", 100, load_ms=1_000)
SMALL = Model("imajin-diffusion", "small", 50, load_ms=3_000, unload_ms=500)


def of_size(use: Use) -> tuple[str, ...]:
    return "all", use.model.name


def load_of(uses: list[Use]) -> Load:
    return Load("by hand", ((0, 100), (1, 60)), uses, ("all", "small", "large"), of_size, POLICIES)


def test_waits_shares_and_loads_are_counted_as_they_are_defined() -> None:
    load = load_of([Use(SMALL, 1_000, 0, 0), Use(LARGE, 2_000, 0, 0), Use(SMALL, 3_000, 0, 0), Use(SMALL, 4_000, 0, 0)])
    used = [
        Used(4_000, 6_000, True),  # waits for 3 s
        Used(9_999, 10_999, True),  # 7,999 ms, rounded down
        Used(6_000, 8_000, False),  # 3 s
        Used(4_000, 4_000, False),  # at once
    ]
    result = policies.measured(load, used)
    waits = result.wait_ms
    assert list(waits) == ["all", "small", "large"]
    assert (waits["all"].requests, waits["all"].mean, waits["all"].median, waits["all"].longest) == (
        4,
        3_499,
        3_000,
        7_999,
    )
    assert (waits["small"].mean, waits["large"].p99) == (2_000, 7_999)
    # Of 160 MiB for 9,999 ms: 50 MiB for 4 s and 100 for 1; and 50 for 3 s and 100 for 1.
    assert (result.in_use_permille, result.loading_permille, result.loads) == (187, 156, 2)
    rows = policies.rows_of(load, [result] * 2)
    assert rows == [
        ["by hand", "4", "", "", "", ""],
        ["all", "4", *["3 / 3 / 7 / 7"] * 2, "", ""],
        ["small", "3", *["2 / 3 / 3 / 3"] * 2, "", ""],
        ["large", "1", *["7 / 7 / 7 / 7"] * 2, "", ""],
        ["in use", "", *["18.7 %"] * 2, "", ""],
        ["loading", "", *["15.6 %"] * 2, "", ""],
        ["models loaded", "", "2", "2", "", ""],
    ]


def test_a_use_that_is_denied_is_no_result() -> None:
    with pytest.raises(ValueError, match="101 MiB at 7 ms was denied"):
        policies.result_of(load_of([Use(Model("imajin", "huge", 101), 7, 1, 1)]), EASY)


def flood(count: int = 100) -> Load:
    """Two small ones at any time, and one for which both have to be over at once."""
    small, large = Model("imajin", "small", 50), Model("imajin", "large", 100)
    uses = [Use(small, 10 * number, 20, 25) for number in range(count)]
    uses.insert(1, Use(large, 5, 10, 10))
    return load_of(uses)._replace(devices=((0, 100),))


def test_under_a_flood_of_small_ones_a_large_one_waits_for_its_end_or_for_its_reservation() -> None:
    longest = {policy.name: policies.result_of(flood(), policy).wait_ms["large"].longest for policy in POLICIES}
    assert longest["best effort"] == 1_005, "the last of the flood comes at 990, and is over at 1,010"
    assert longest["EASY"] == longest["strict FIFO"] == 15, "the first is over at 20"
    assert policies.result_of(flood(), BEST_EFFORT).wait_ms["small"].longest == 0
    assert policies.result_of(flood(), EASY).wait_ms["small"].longest == 20, "the price"


def test_in_strict_fifo_who_fits_waits_for_who_does_not() -> None:
    uses = [Use(SMALL, 0, 9_000, 9_000), Use(LARGE, 1, 5_000, 5_000), Use(SMALL, 2, 1_000, 1_000)]
    load = load_of(uses)._replace(devices=((0, 100),))
    longest = [policies.result_of(load, policy).wait_ms["small"].longest for policy in (STRICT_FIFO, EASY)]
    assert longest == [21_498, 3_000], "loaded after both, or beside the first"


def test_idle_leases_spare_loading() -> None:
    load = load_of([Use(SMALL, 10_000 * number, 2_000, 5_000) for number in range(5)])
    assert [policies.result_of(load, policy).loads for policy in (EASY, IDLE_LEASES)] == [5, 1]


def test_a_recorded_log_is_one_device_and_its_waits_are_those_published() -> None:
    """Of ten processors one job has all, and one just half."""
    load = policies.recorded("log", read(swf(EXPIRY_LAST)))
    waits = policies.result_of(load, EASY).wait_ms
    assert (waits[HALF].requests, waits[HALF].longest) == (4, 48_000)
    assert (waits[MORE].requests, waits[MORE].longest) == (1, 79_000)
    assert IDLE_LEASES not in load.policies


def test_numbers_are_drawn_as_splitmix64_has_them() -> None:
    """The first three from seed 1234567, as its authors' reference implementation prints them."""
    draws = Draws(1234567)
    assert [draws.below(2**64) for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_the_workload_follows_from_its_seed_and_is_within_its_streams() -> None:
    uses = workload(1, 7)
    assert uses == workload(1, 7) != workload(1, 8)
    assert [use.submit_ms for use in uses] == sorted(use.submit_ms for use in uses)
    for stream in STREAMS:
        mine = [use for use in uses if (use.model, use.priority) == (stream.model, stream.priority)]
        assert {use.limit_ms for use in mine} == {stream.limit_ms}
        assert min(use.use_ms for use in mine) >= stream.use_ms.least
        assert max(use.use_ms for use in mine) <= stream.use_ms.most <= stream.limit_ms
        by_day, by_night = stream.bursts
        expected = (14 * by_day + 10 * by_night) * (stream.uses.least + stream.uses.most) // 2
        assert 3 * expected < 4 * len(mine) < 5 * expected


@pytest.fixture
def small_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "workload", lambda days, seed: workload(1, seed)[:40])


@pytest.mark.usefixtures("small_day")
def test_it_prints_a_table_for_people_for_the_docs_and_for_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.swf"
    log.write_text(swf(BACKFILL))
    assert policies.main([str(log)]) == 0
    people = capsys.readouterr().out.splitlines()
    assert people[0].split("  ")[0] == HEADINGS[0]
    assert policies.main([str(log), "--markdown"]) == 0
    docs = capsys.readouterr().out.splitlines()
    assert len(docs) == len(people) + 1
    assert {line.count("|") for line in docs} == {len(HEADINGS) + 1}
    assert [line for line in docs if line.startswith("| **")] == [
        f"| **made up, days: {DAYS}, seed: {SEED}** | 40 |  |  |  |  |",
        "| **log** | 5 |  |  |  |  |",
    ]
    assert policies.main([str(log), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document["log"]) == ["strict FIFO", "best effort", "EASY"]
    assert document["log"]["EASY"]["wait_ms"][HALF]["requests"] == 3


def test_what_is_no_log_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.swf"
    log.write_text("1 0 0 1 1")
    assert policies.main([str(log)]) == 2
    assert "MaxProcs" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        policies.main(["--days", "0"])
    assert stop.value.code == 2


def table_in_docs() -> list[str]:
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(f"| {HEADINGS[0]} |"))
    return [line for line in lines[first : lines.index("", first)] if line.startswith("|")]


def test_the_table_in_the_docs_is_about_this_workload() -> None:
    """Its names and counts; the figures take a minute, and are compared where there is a log."""
    load = policies.made_up(DAYS, SEED)
    never = policies.measured(load, [Used(use.submit_ms, use.submit_ms + 1, True) for use in load.uses])
    printed = policies.markdown(HEADINGS, policies.rows_of(load, [never])).splitlines()
    shown = table_in_docs()
    assert [line.split(" | ")[:2] for line in printed] == [line.split(" | ")[:2] for line in shown[: len(printed)]]


@pytest.mark.skipif(
    "kth-sp2" not in os.environ.get(PUBLISHED, ""), reason=f"{PUBLISHED} does not name the log of KTH-SP2"
)
@pytest.mark.timeout(600)
def test_the_table_in_the_docs_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert policies.main([os.environ[PUBLISHED], "--markdown"]) == 0
    assert capsys.readouterr().out.splitlines() == table_in_docs()
