"""What is said of a clock that jumped: where entries from before and from behind the jump were read at once, and where
it jumped while nobody led."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from gpuboss.core.state import State
from gpuboss.events import ClockJumped
from gpuboss.keys import Keys
from gpuboss_scheduler.clock import LogClock
from gpuboss_scheduler.leader import Leader
from gpuboss_scheduler.sessions import Trust
from tests.sim.test_heirs import Stage
from tests.sim.world import World

BEGAN_MS = 1_000
HOUR_MS = 3_600_000


def said_after_reading(*at_ms: int) -> list[ClockJumped]:
    """What a leader appends, by whose clock it is `BEGAN_MS`, once it has read entries of these times at once."""
    said: list[ClockJumped] = []
    others: Any = SimpleNamespace(
        keys=Keys(),
        tell_jump=lambda from_ms, delta_ms: said.append(ClockJumped(from_id=f"{from_ms}-0", delta_ms=delta_ms)),
        snapshots=SimpleNamespace(count=lambda entries: None),
    )
    leader = Leader(others, others, State(), others, "0-0", LogClock(BEGAN_MS, lambda: 0.0), others)
    leader._decide([(b"%d-0" % ms, [b"type", b"Nonsense", b"data", b"{}"]) for ms in at_ms])
    leader._look_at_clock()
    return said


def test_a_jump_is_dated_by_the_first_entry_behind_it() -> None:
    [jumped] = said_after_reading(1_001, 3_601_000, 3_601_007)
    assert jumped == ClockJumped(from_id="3601000-0", delta_ms=3_601_007 - BEGAN_MS)


def test_a_late_read_is_no_jump() -> None:
    assert said_after_reading(1_001, 1_009) == []


class Looked:
    """What a standby knows of a server's clock, which is set while it looks; its own shows 0 s at the beginning."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self.ahead_ms = BEGAN_MS
        self.trust = Trust(15_000, lambda: self._now_s)
        self.trust.answered(self.ahead_ms)

    def after(self, seconds: float, by_ms: int = 0) -> int:
        """Time passes, and the server's clock is set in it. Returns what that shows then, ms."""
        self._now_s += seconds
        self.ahead_ms += by_ms
        shown_ms = self.ahead_ms + round(self._now_s * 1000)
        self.trust.answered(shown_ms)
        return shown_ms


def test_a_jump_behind_the_last_entry_is_seen_by_whoever_looked() -> None:
    looked = Looked()
    entry_ms = looked.after(10.0)
    behind_ms = looked.after(0.1, HOUR_MS)
    assert looked.trust.jumped_since_ms(entry_ms) == HOUR_MS
    assert looked.trust.jumped_since_ms(BEGAN_MS - 5_000) == HOUR_MS, "nobody looked by then"
    assert looked.trust.jumped_since_ms(behind_ms) == 0, "the last leader has seen it"


@pytest.mark.parametrize("by_ms", [HOUR_MS, -HOUR_MS])
def test_a_clock_that_was_set_right_again_is_where_it_was(by_ms: int) -> None:
    looked = Looked()
    entry_ms = looked.after(10.0)
    looked.after(0.1, by_ms)
    looked.after(5.0, -by_ms)
    assert looked.trust.jumped_since_ms(entry_ms) == 0


def test_a_clock_that_was_put_back_is_not_ahead() -> None:
    looked = Looked()
    entry_ms = looked.after(10.0)
    looked.after(0.1, -HOUR_MS)
    assert looked.trust.jumped_since_ms(entry_ms) == 0


class Vacancy(World):
    """The leader dies, and the server's clock is set ahead by an hour before a standby leads."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, Stage())
        self.timeline.at(5_000_000, self._strike)

    def _strike(self) -> None:
        [leader] = [host for host in self.schedulers if host.leads]
        assert leader.process is not None
        leader.process.kill()
        self.timeline.after(300_000, lambda: self.host.jump(HOUR_MS * 1000))


def test_a_jump_while_nobody_leads_is_said_by_whoever_leads_next() -> None:
    world = Vacancy(1)
    world.run()
    assert world.problems == []
    entries: Any = world.host.server.execute([b"XRANGE", b"gpuboss:events", b"-", b"+"])
    [jumped] = [json.loads(fields[3]) for _, fields in entries if fields[1] == b"ClockJumped"]
    assert abs(jumped["delta_ms"] - HOUR_MS) < 2_000
