"""A log that somebody emptied, and into which a leader that had not noticed yet still wrote what it had decided."""

import json

import pytest

from gpuboss.keys import Keys
from gpuboss.log import LogDamaged, LogReader
from gpuboss_scheduler.recovery import recover
from tests.real.redis_view import RedisView, Service
from tests.real.schedulers import SchedulerProcess
from tests.real.servers import RealServer


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


def test_who_never_saw_it_is_told_by_the_hash_how_far_it_went(server: RealServer, view: RedisView) -> None:
    with SchedulerProcess(server.url) as first:
        first.wait_leading()
        Service(view, "worker").lease(8192)
        first.terminate()
    view.client.delete(view.key("events"), view.key("snapshot"))
    view.append("LeaseRequested", lease_id="lease-b", service="worker", vram_mib=24_000)
    with SchedulerProcess(server.url) as second:  # nobody leads, so that it claims at its first look
        second.wait_leading()
        assert "entries of the log are gone" in second.stderr
        assert view.of_type("SchedulerElected")[-1].data["lost"] is not None
        assert view.of_type("LeaseGranted") == []


def test_what_its_leader_still_decided_there_hides_from_nobody_how_far_it_went(
    server: RealServer, view: RedisView
) -> None:
    with SchedulerProcess(server.url) as first:
        first.wait_leading()
        Service(view, "worker").lease(8192)
        with view.client.pipeline() as emptied:  # between two beats, as nearly always
            emptied.xtrim(view.key("events"), maxlen=0, approximate=False)
            emptied.delete(view.key("snapshot"))
            emptied.xadd(view.key("events"), {"type": "LeaseReleased", "data": '{"lease_id":"lease-x","service":"w"}'})
            emptied.execute()
        view.wait_entry("EventRejected")
        first.kill()
    with SchedulerProcess(server.url) as second:
        second.wait_leading()
        assert "entries of the log are gone" in first.stderr + second.stderr
        assert any(elected.data.get("lost") for elected in view.of_type("SchedulerElected"))
    view.client.delete(view.key("events"))  # what was decided in the emptied log stands in it, and counts for nothing
