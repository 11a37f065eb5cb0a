"""The script that begins a reign, where entries of the log were lost: whoever asks meanwhile is decided after that."""

import random
from typing import Any

import pytest

from gpuboss_scheduler.election import _claim
from tests.sim.server import SimulatedServer

SCHEDULER, EVENTS, SNAPSHOT = b"gpuboss:scheduler", b"gpuboss:events", b"gpuboss:snapshot"
ELECTED = [b"SchedulerElected", b"{}"]


def claimed(what_is_lost: bytes, read_through: bytes = b"1-0", most_fields: int = 1_000) -> SimulatedServer:
    """One entry came in, and another after it, before the claimant claimed."""
    server = SimulatedServer(lambda: 5_000_000, random.Random(0))
    server.execute([b"XADD", EVENTS, b"1-0", b"data", b"read"])
    server.execute([b"XADD", EVENTS, b"2-0", b"data", b"late"])
    claim = [b"", b"", b"", b"1", b"1", b"1000", b"1-0", what_is_lost, read_through]
    claim += [b"0-7", b"%d" % most_fields]
    keys = [b"3", SCHEDULER, EVENTS, SNAPSHOT]
    server.execute([b"EVAL", _claim.text.encode(), *keys, *claim, b"1", *ELECTED, b"0"])
    return server


def log_after_claim(what_is_lost: bytes, read_through: bytes = b"1-0", most_fields: int = 1_000) -> list[bytes]:
    """The data of all entries then."""
    entries: Any = claimed(what_is_lost, read_through, most_fields).execute([b"XRANGE", EVENTS, b"-", b"+"])
    return [fields[-1] for _, fields in entries]


def test_what_came_in_after_the_claimant_read_moves_behind_its_election() -> None:
    assert log_after_claim(b"log") == [b"read", b"{}", b"late"]


def test_all_of_it_moves_where_the_log_was_empty_when_it_was_read() -> None:
    assert log_after_claim(b"log", read_through=b"") == [b"{}", b"read", b"late"]


def test_where_nothing_is_lost_nothing_moves() -> None:
    assert log_after_claim(b"") == [b"read", b"late", b"{}"]


def test_what_has_too_many_fields_is_no_event_and_stays() -> None:
    assert log_after_claim(b"log", most_fields=1) == [b"read", b"late", b"{}"]


@pytest.mark.parametrize(("what_is_lost", "read_through"), [(b"log", b"5000-0"), (b"", b"0-7")])
def test_what_it_deletes_itself_is_no_further_loss(what_is_lost: bytes, read_through: bytes) -> None:
    assert claimed(what_is_lost).execute([b"HGET", SCHEDULER, b"read_through"]) == read_through
