"""A log that somebody emptied, and into which a leader that had not noticed yet still wrote what it had decided."""

import json
import time

import pytest

from gpuboss.keys import Keys
from gpuboss.log import LogDamaged, LogReader
from gpuboss_scheduler.recovery import recover
from tests.real.redis_view import RedisView, Service
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer


def empty(view: RedisView, *others: str) -> None:
    """Take all entries out of the log, and write one into it, between two beats, as nearly always. `others`: keys that
    go as well."""
    with view.client.pipeline() as emptied:
        emptied.xtrim(view.key("events"), maxlen=0, approximate=False)
        for name in others:
            emptied.delete(view.key(name))
        emptied.xadd(view.key("events"), {"type": "LeaseReleased", "data": '{"lease_id":"lease-x","service":"w"}'})
        emptied.execute()


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
        empty(view, "snapshot")
        view.wait_entry("EventRejected")
        first.kill()
    with SchedulerProcess(server.url) as second:
        second.wait_leading()
        assert "entries of the log are gone" in first.stderr + second.stderr
        assert any(elected.data.get("lost") for elected in view.of_type("SchedulerElected"))
    view.client.delete(view.key("events"))  # what was decided in the emptied log stands in it, and counts for nothing


def test_whoever_stands_by_leaves_the_one_alone_who_began_anew(server: RealServer, view: RedisView) -> None:
    with SchedulerProcess(server.url) as before:
        before.wait_leading()
        before.terminate()  # its last snapshot stands for what is gone later
    with SchedulerProcess(server.url) as first, SchedulerProcess(server.url) as second:
        said = ("leading", "standing by")
        eventually(lambda: all(any(word in each.stderr for word in said) for each in (first, second)), "both to look")
        empty(view)
        view.wait_entry("SchedulerElected")
        time.sleep(1.5)  # so many looks, and no entry that anybody has to decide
        [elected] = view.of_type("SchedulerElected")
        assert elected.data["lost"] is not None
    view.client.delete(view.key("events"))  # as above
