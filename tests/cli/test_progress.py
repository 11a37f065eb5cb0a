"""How far a long read is: a bar for people at a terminal, and nothing at all for others."""

from __future__ import annotations

import gc
import io
from collections.abc import Iterator

import pytest

from gpuboss.cli.progress import LONG_ENTRIES, shown, without_collector
from gpuboss.log import Entry


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


def entries(count: int) -> Iterator[Entry]:
    return (Entry(f"{number}-0", []) for number in range(count))


@pytest.mark.parametrize(
    ("stderr", "count", "is_shown"),
    [(Terminal(), LONG_ENTRIES, True), (Terminal(), LONG_ENTRIES - 1, False), (io.StringIO(), LONG_ENTRIES, False)],
)
def test_a_bar_is_shown_at_a_terminal_for_a_long_log(
    monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO, count: int, is_shown: bool
) -> None:
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    read = list(shown(entries(count), count, "replaying"))
    assert read == list(entries(count))
    assert ("replaying" in stderr.getvalue()) == is_shown
    assert bool(stderr.getvalue()) == is_shown


def test_the_collector_rests_and_is_woken_again() -> None:
    assert gc.isenabled()
    with without_collector():
        assert not gc.isenabled()
        with without_collector():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
