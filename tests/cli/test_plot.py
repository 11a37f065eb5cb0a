"""`--plot`: a picture of one schedule or of two, in two formats, and what is said where it cannot be drawn."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.cli.console import Console

TRACE = b"lease_id,submit_ms,vram_mib,hold_ms\njob-00001,0,100,60000\njob-00002,1000,100,60000\n"
ARGUMENTS = ("simulate", "-", "--devices", "cuda:0=100", "--plot")


@pytest.fixture
def nowhere() -> Console:
    """A shell in front of no server at all."""
    return Console("redis://127.0.0.1:1")


@pytest.mark.parametrize(("name", "begins"), [("waits.svg", b"<?xml"), ("waits.PNG", b"\x89PNG")])
def test_a_schedule_is_drawn(nowhere: Console, tmp_path: Path, name: str, begins: bytes) -> None:
    pytest.importorskip("matplotlib")
    plain = nowhere.call(*ARGUMENTS[:-1], stdin=TRACE)
    assert nowhere.call(*ARGUMENTS, str(tmp_path / name), stdin=TRACE) == plain
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_the_same_schedule_gives_the_same_picture(nowhere: Console, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pictures = []
    for name in ("one.svg", "two.svg"):
        assert nowhere.call(*ARGUMENTS, str(tmp_path / name), stdin=TRACE).code == 0
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0] == pictures[1]


def test_a_trace_without_requests_is_drawn_too(nowhere: Console, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ended = nowhere.call(*ARGUMENTS, str(tmp_path / "none.svg"), stdin=TRACE.splitlines()[0])
    assert ended.code == 0
    assert (tmp_path / "none.svg").exists()


def test_a_picture_that_cannot_be_written(nowhere: Console, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ended = nowhere.call(*ARGUMENTS, str(tmp_path / "no" / "such.svg"), stdin=TRACE)
    assert (ended.code, ended.out) == (2, "")
    assert "cannot write" in ended.err
    assert "No such file or directory" in ended.err


def test_another_format_is_refused(nowhere: Console) -> None:
    ended = nowhere.call(*ARGUMENTS, "waits.pdf", stdin=TRACE)
    assert (ended.code, ended.out) == (2, "")
    assert "'waits.pdf' is no picture; expected a file .png or .svg" in ended.err


def test_without_the_library_the_extra_is_named(
    nowhere: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find_spec(name, *rest)
    )
    ended = nowhere.call(*ARGUMENTS, str(tmp_path / "waits.svg"), stdin=TRACE)
    assert (ended.code, ended.out) == (3, "")
    assert "pip install 'gpuboss[plot]'" in ended.err
    assert not list(tmp_path.iterdir())
