"""What a scheduler found and had not decided yet when the next one reads the log."""

from gpuboss.keys import Keys
from gpuboss.log import LogReader
from gpuboss_scheduler.recovery import recover
from tests.real.redis_view import RedisView

LOST = {"last_id": "5-0", "fence": 70}


def stamped(view: RedisView, kind: str, seq: int, **data: object) -> str:
    """Write what the first scheduler wrote as its `seq`-th."""
    data |= {"epoch": 1, "seq": seq}
    return view.append(kind, **data)


def test_what_a_scheduler_found_and_did_not_decide_goes_with_its_numbers(view: RedisView) -> None:
    elected = stamped(view, "SchedulerElected", 1, scheduler="a", version="0", core=1, incarnation="one", lost=LOST)
    asked = view.append("LeaseReleased", lease_id="lease-none", service="nobody")
    ticked = stamped(view, "ClockTicked", 2, now_ms=1)
    revoked = stamped(view, "LeaseRevoked", 3, lease_id="lease-none", reason="its row went", by="an operator")
    recovered = recover(LogReader(view.client, Keys(view.namespace)), "", is_lost=True)
    assert [(entry.id, bool(entry.fields)) for entry in recovered.undecided] == [
        (elected, False),
        (asked, True),
        (ticked, False),
        (revoked, True),
    ]
    assert (recovered.epoch, recovered.seq, recovered.fence) == (1, 0, LOST["fence"])


def test_what_it_found_before_its_last_decision_stays(view: RedisView) -> None:
    stamped(view, "SchedulerElected", 1, scheduler="a", version="0", core=1, incarnation="one")
    named = {"lease_id": "lease-none", "service": "nobody"}
    released = view.append("LeaseReleased", **named)
    stamped(view, "ClockTicked", 2, now_ms=1)
    rejected = {"event_id": released, "reason": "unknown_lease", "detail": "as told", **named}
    stamped(view, "EventRejected", 3, cause=released, **rejected)
    ticked = stamped(view, "ClockTicked", 4, now_ms=2)
    recovered = recover(LogReader(view.client, Keys(view.namespace)), "", is_lost=True)
    assert [entry.id for entry in recovered.undecided] == [ticked]
    assert recovered.seq == 3


def test_a_jump_of_the_clock_that_it_told_is_not_told_once_more(view: RedisView) -> None:
    stamped(view, "SchedulerElected", 1, scheduler="a", version="0", core=1, incarnation="one")
    stamped(view, "ClockJumped", 2, from_id="9000-1", delta_ms=8_000)
    log = LogReader(view.client, Keys(view.namespace))
    assert recover(log, "0-0").jump_told_ms == 9_000
    assert recover(log, "0-0", is_lost=True).jump_told_ms == 0, "it goes, with all else that was found"
