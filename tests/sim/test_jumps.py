"""What a leader says of a clock that jumped, where entries from before and from behind the jump were read at once."""

from types import SimpleNamespace
from typing import Any

from gpuboss.core.state import State
from gpuboss.events import ClockJumped
from gpuboss.keys import Keys
from gpuboss_scheduler.clock import LogClock
from gpuboss_scheduler.leader import Leader

BEGAN_MS = 1_000


def said_after_reading(*at_ms: int) -> list[ClockJumped]:
    """What a leader appends, by whose clock it is `BEGAN_MS`, once it has read entries of these times at once."""
    said: list[ClockJumped] = []
    others: Any = SimpleNamespace(
        keys=Keys(), append=said.extend, snapshots=SimpleNamespace(count=lambda entries: None)
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
