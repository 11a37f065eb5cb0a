"""The script that looks for silent sessions, where the server's clock was set back after their last beat."""

import random

from gpuboss_scheduler.sessions import _sessions
from tests.sim.server import SimulatedServer

NOW_MS = 1_700_000_000_000
TTL_MS = 15_000
SCHEDULER, SESSIONS = b"gpuboss:scheduler", b"gpuboss:sessions"


def score_after_a_look(before_ms: int) -> int:
    """What a session's score is once the leader has looked at it."""
    server = SimulatedServer(lambda: NOW_MS * 1000, random.Random(0))
    server.execute([b"HSET", SCHEDULER, b"epoch", b"1", b"leader", b"me"])
    server.execute([b"ZADD", SESSIONS, b"%d" % before_ms, b"painter/session-1"])
    keys = [b"2", SCHEDULER, SESSIONS]
    said = [b"1 me", b"%d" % TTL_MS, b"%d" % (NOW_MS + 1_000), b"painter/session-1"]
    server.execute([b"EVAL", _sessions.text.encode(), *keys, *said])
    score = server.execute([b"ZSCORE", SESSIONS, b"painter/session-1"])
    assert isinstance(score, bytes)
    return int(score)


def test_a_session_does_not_outlive_its_ttl_because_the_clock_went_back() -> None:
    assert score_after_a_look(NOW_MS + 3_600_000) == NOW_MS + TTL_MS


def test_a_session_is_not_prolonged_by_being_looked_at() -> None:
    assert score_after_a_look(NOW_MS + 5_000) == NOW_MS + 5_000
