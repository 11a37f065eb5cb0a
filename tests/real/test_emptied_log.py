"""A log that somebody emptied, and into which a leader that had not noticed yet still wrote what it had decided."""

import json
from typing import Any

import pytest

from gpuboss.keys import Keys
from gpuboss.log import LogDamaged, LogReader
from gpuboss_scheduler.recovery import recover
from tests.real.redis_view import RedisView

LOST = {"last_id": "5-0", "fence": 70}


def stamped(view: RedisView, kind: str, seq: int, **data: Any) -> str:
    """Write what the first scheduler wrote as its `seq`-th."""
    data |= {"epoch": 1, "seq": seq}
    return view.append(kind, **data)


def test_what_was_decided_there_keeps_nobody_from_beginning_anew(view: RedisView) -> None:
    view.append("LeaseReleased", lease_id="lease-none", service="nobody")
    view.client.xtrim(view.key("events"), maxlen=0, approximate=False)
    ticked = view.client.xadd(
        view.key("events"), {"type": "ClockTicked", "data": json.dumps({"now_ms": 1, "epoch": 1, "seq": 10})}
    )
    log = LogReader(view.client, Keys(view.namespace))
    assert [entry.id for entry in recover(log, "", is_lost=True).undecided] == [ticked.decode()]
    with pytest.raises(LogDamaged, match="beginning of the log is gone"):
        recover(log, "")
    view.client.delete(view.key("events"))  # it is no log that anybody led to its end


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
    stamped(view, "ClockTicked", 2, now_ms=1)
    stamped(view, "LeaseEnded", 3, cause="0-0", lease_id="lease-none", service="nobody", reason="released", freed=True)
    ticked = stamped(view, "ClockTicked", 4, now_ms=2)
    recovered = recover(LogReader(view.client, Keys(view.namespace)), "", is_lost=True)
    assert [entry.id for entry in recovered.undecided] == [ticked]
    assert recovered.seq == 3
    view.client.delete(view.key("events"))  # its decision follows from nothing
