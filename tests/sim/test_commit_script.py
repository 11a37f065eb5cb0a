"""The script of a commit, where others write into the log between the scheduler's read and its commit."""

import random
from typing import Any

from gpuboss_scheduler.commit import commit_script
from tests.sim.server import SimulatedServer

SCHEDULER, EVENTS = b"gpuboss:scheduler", b"gpuboss:events"
KEYS = [b"6", SCHEDULER, EVENTS, b"gpuboss:leases", b"gpuboss:queue", b"gpuboss:devices", b"gpuboss:sessions"]
READ_MS = b"9000000"  # ahead of the server's clock, so that each id is the one that follows the last


def commit_of_three(*written_meanwhile: bytes) -> tuple[list[Any], list[tuple[bytes, bytes]]]:
    """The answer to a commit of three decisions behind an entry that was read, and what stands behind that then."""
    server = SimulatedServer(lambda: 5_000_000, random.Random(0))
    server.execute([b"HSET", SCHEDULER, b"epoch", b"1", b"leader", b"me", b"cursor", b"0-0"])
    for number, data in enumerate([b"read", *written_meanwhile]):
        server.execute([b"XADD", EVENTS, b"%b-%d" % (READ_MS, number), b"type", b"T", b"data", data])
    said = [b"1 me", b"0-0", READ_MS + b"-0", b"3", READ_MS, b"0", READ_MS + b"-3", b"10", b"1000"]
    log = [b"log", b"4", b"T", b"first", b"second", b"third"]
    answer: Any = server.execute([b"EVAL", commit_script.text.encode(), *KEYS, *said, *log])
    entries: Any = server.execute([b"XRANGE", EVENTS, b"(" + READ_MS + b"-0", b"+"])
    return answer, [(entry_id, fields[-1]) for entry_id, fields in entries]


def test_decisions_stand_right_behind_what_was_read() -> None:
    answer, entries = commit_of_three()
    assert [data for _, data in entries] == [b"first", b"second", b"third"]
    assert answer == [b"OK", READ_MS + b"-1", READ_MS + b"-3", []]


def test_where_others_wrote_meanwhile_it_tells_what_stands_there_instead() -> None:
    """The question that went with the commit is about what comes behind these ids: nothing may be missed."""
    answer, entries = commit_of_three(b"others")
    assert entries == [(READ_MS + b"-%d" % n, d) for n, d in enumerate([b"others", b"first", b"second", b"third"], 1)]
    assert answer[:3] == [b"OK", READ_MS + b"-2", READ_MS + b"-4"]
    assert [(entry_id, fields[-1]) for entry_id, fields in answer[3]] == entries[:3]
