"""Traces as CSV: read in any order of columns, with each mistake named by its line; outcomes written beside them."""

from __future__ import annotations

import io

import pytest

from gpuboss.simulation.schedule import Job, Outcome
from gpuboss.simulation.trace import BadTrace, read_trace, write_outcomes
from tests.simulation.traces import asks

HEADER = "lease_id,submit_ms,vram_mib,hold_ms"
ROW = "a_______,5,1,1"


def read(text: str | bytes, ignored: list[str] | None = None) -> list[Job]:
    raw = text.encode() if isinstance(text, str) else text
    return read_trace(raw.splitlines(keepends=True), "t.csv", ([] if ignored is None else ignored).extend)


def test_the_columns_come_in_any_order_and_strange_ones_are_told() -> None:
    ignored: list[str] = []
    text = "user,hold_ms, gpus ,vram_mib,submit_ms,lease_id,exclusive,priority,device,ttl_ms,wait_ms,service\n"
    text += "eve,10,2,8192,5,a_______,true,high,cuda:1,7,8,imajin\n"
    fields = {"gpus": 2, "exclusive": True, "priority": "high", "device": "cuda:1", "ttl_ms": 7, "wait_ms": 8}
    assert read(text, ignored) == [asks("a", 5, 8_192, 10, **fields)]
    assert ignored == ["user"]


def test_an_empty_cell_is_not_given_and_an_empty_line_is_skipped() -> None:
    text = f"\ufeff{HEADER},priority,ttl_ms,service\n\na_______,5,8192,10,,,\n,,,,,,\r\n"
    assert read(text) == [asks("a", 5, 8_192, 10, service="trace")]


def test_a_header_alone_is_an_empty_trace() -> None:
    assert read(HEADER) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "t.csv:1: the header is empty, but not lease_id, submit_ms, vram_mib, hold_ms; expected a header with"),
        ("lease_id,vram_mib\n", "t.csv:1: the header has 'lease_id', 'vram_mib', but not submit_ms, hold_ms; expected"),
        (f"{HEADER},hold_ms\n", "t.csv:1: the header has hold_ms twice"),
        (f"{HEADER}\na_______,5,8192\n", "t.csv:2: 3 cells; expected 4"),
        (f"{HEADER}\na_______,5,8192,1,1\n", "t.csv:2: 5 cells; expected 4"),
        (f"{HEADER}\n\na_______,5,8192,\n", "t.csv:3: hold_ms: '' does not fit; expected a whole number from 0"),
        (f"{HEADER}\na_______,-5,8192,1\n", "t.csv:2: submit_ms: '-5' does not fit; expected a whole number from 0"),
        (f"{HEADER}\na_______,5,0,1\n", "t.csv:2: vram_mib: '0' does not fit; expected a whole number from 1 to"),
        (f"{HEADER}\na_______,5,8GB,1\n", "t.csv:2: vram_mib: '8GB' does not fit; expected a whole number"),
        (f"{HEADER}\na_______,5,8192,1.5\n", "t.csv:2: hold_ms: '1.5' does not fit; expected a whole number"),
        (f"{HEADER}\nshort,5,8192,1\n", "t.csv:2: lease_id: 'short' is no lease_id; expected 8 to 64 of"),
        (f"{HEADER}\n{ROW}\nb_______,5,1,1\n{ROW}\n", "t.csv:4: lease_id a_______ is there twice, first on line 2"),
        (f"{HEADER},priority\n{ROW},urgent\n", "t.csv:2: priority: 'urgent' does not fit; expected one of low"),
        (f"{HEADER},ttl_ms\na_______,5,1,1,0\n", "t.csv:2: ttl_ms: '0' does not fit; expected a whole number from 1"),
        (f"{HEADER},wait_ms\na_______,5,1,1,0\n", "t.csv:2: wait_ms: '0' does not fit"),
        (f"{HEADER},gpus\na_______,5,1,1,1025\n", "t.csv:2: gpus: '1025' does not fit; expected a whole number from"),
        (f"{HEADER},device\na_______,5,1,1,gpu0\n", "t.csv:2: device: 'gpu0' names no device"),
        (f"{HEADER},exclusive\na_______,5,1,1,maybe\n", "t.csv:2: exclusive: 'maybe' is neither yes nor no"),
        (f"{HEADER},service\na_______,5,1,1,Imajin\n", "t.csv:2: service: 'Imajin' is not a name"),
        (f'{HEADER}\n"a_______"x,5,1,1\n', "t.csv:2: no CSV: "),
        (f'{HEADER}\n"a_______,5,1,1\n', "t.csv:2: no CSV: "),
        (HEADER.encode() + b"\na_______,5,1,\xff\n", "t.csv:2: not UTF-8"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line(text: str | bytes, said: str) -> None:
    with pytest.raises(BadTrace) as caught:
        read(text)
    assert str(caught.value).startswith(said)


def test_outcomes_are_written_in_the_order_of_the_jobs() -> None:
    file = io.StringIO()
    outcomes = [Outcome(5, 9, ("cuda:0", "cuda:2"), "released"), Outcome(None, 7, (), "timeout"), Outcome(9), Outcome()]
    write_outcomes(file, [asks(name, 1, 1, 1) for name in "zayb"], outcomes)
    assert file.getvalue().splitlines() == [
        "lease_id,granted_at_ms,ended_at_ms,devices,reason",
        "z_______,5,9,cuda:0 cuda:2,released",
        "a_______,,7,,timeout",
        "y_______,9,,,",
        "b_______,,,,",
    ]
