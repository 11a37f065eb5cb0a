"""Who leads: one at a time, another within two seconds of a kill, and nobody who was replaced without knowing it."""

from __future__ import annotations

import contextlib
import signal
import threading
import time

import pytest

from gpuboss.connection import connect
from gpuboss.events import ClockTicked
from gpuboss.keys import Keys
from gpuboss_scheduler.reign import Reign
from gpuboss_scheduler.scripts import Deposed
from tests.real.one_server import served_by
from tests.real.redis_view import RedisView, Service
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer
from tests.real.traffic import Traffic

server_process = served_by(-1)
TAKEOVER_S = 2.0

# What a scheduler without a fence would do: grant what fits, going by what it read before it was paused.
UNFENCED = """
local held = tonumber(redis.call('HGET', KEYS[1], 'held') or '0')
redis.call('HSET', KEYS[1], 'held', held + ARGV[1])
return redis.call('XADD', KEYS[2], '*', 'type', 'LeaseGranted', 'data', ARGV[2])
"""
FENCED = "if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[3] then return 'FENCED' end\n" + UNFENCED


def test_a_standby_takes_over_from_one_that_was_killed(server: RealServer, view: RedisView) -> None:
    service = Service(view, "worker")
    with SchedulerProcess(server.url) as first, SchedulerProcess(server.url, node="node-a") as second:
        leader, standby = elected(first, second)
        standby.wait_for("standing by")
        held = service.lease(24_576, device="cuda:0")
        waiting = service.queue(24_576, device="cuda:0")
        leader.signal(signal.SIGKILL)
        began_s = time.monotonic()
        service.release(held)  # nobody leads who could see it
        answer = service.answer(waiting)
        took_s = time.monotonic() - began_s
        assert answer.type == "LeaseGranted"
        assert took_s <= TAKEOVER_S, f"it took {took_s:.2f} s"
        assert view.scheduler()["epoch"] == "2"
        leader.wait()
        assert standby.stderr.splitlines()[0] == "standing by"
        standby.wait_for("leading epoch=2 cursor=")


def elected(first: SchedulerProcess, second: SchedulerProcess) -> tuple[SchedulerProcess, SchedulerProcess]:
    """Which of two that started together leads, and which stands by."""
    eventually(lambda: "leading" in first.stderr + second.stderr, "one to lead")
    return (first, second) if "leading" in first.stderr else (second, first)


def test_a_clean_end_hands_over_at_once(server: RealServer, view: RedisView) -> None:
    service = Service(view, "worker")
    with SchedulerProcess(server.url) as leader:
        leader.wait_leading()
        with SchedulerProcess(server.url) as standby:
            standby.wait_for("standing by")
            held = service.lease(1000)
            began_s = time.monotonic()
            leader.signal(signal.SIGTERM)
            standby.wait_for("leading epoch=2")
            took_s = time.monotonic() - began_s
            assert took_s < 1.0, f"it took {took_s:.2f} s"
            assert leader.wait() == 0
            service.release(held)
            service.told(held, "LeaseEnded")
            assert standby.terminate() == 0


def test_a_standby_ends_cleanly(server: RealServer, view: RedisView) -> None:
    with SchedulerProcess(server.url) as leader:
        leader.wait_leading()
        with SchedulerProcess(server.url) as standby:
            standby.wait_for("standing by")
            assert standby.terminate() == 0
        assert view.scheduler()["epoch"] == "1"
        interrupted = SchedulerProcess(server.url)
        with interrupted:
            interrupted.wait_for("standing by")
            interrupted.signal(signal.SIGINT)
            assert interrupted.wait() == 0


def test_one_that_was_paused_changes_nothing(server: RealServer, view: RedisView) -> None:
    service = Service(view, "worker")
    with SchedulerProcess(server.url) as paused:
        paused.wait_leading()
        with SchedulerProcess(server.url) as other:
            other.wait_for("standing by")
            held = service.lease(24_576, device="cuda:0")
            paused.signal(signal.SIGSTOP)
            waiting = [service.request(24_576, device="cuda:0") for _ in range(2)]
            service.release(held)  # both see that there is room for one
            other.wait_for("leading epoch=2")
            paused.signal(signal.SIGCONT)
            paused.wait_for("another scheduler leads")
            assert service.answer(waiting[0]).type == "LeaseGranted"
            assert waiting[1] in view.rows("queue")
            assert {entry.data["epoch"] for entry in view.of_type("LeaseGranted") if entry.data["fence"] > 1} == {2}
            assert view.scheduler()["epoch"] == "2"
            paused.wait_for("standing by")
            other.signal(signal.SIGKILL)
            paused.wait_for("leading epoch=3")
            service.release(waiting[0])
            assert service.answer(waiting[1]).type == "LeaseGranted"
            assert view.of_type("LeaseGranted")[-1].data["epoch"] == 3


def test_pauses_under_load_double_nothing(server: RealServer, view: RedisView) -> None:
    """Whoever leads is paused in the middle of whatever it does, until the other leads. The log tells the rest."""
    with SchedulerProcess(server.url) as first, SchedulerProcess(server.url) as second:
        leader, standby = elected(first, second)
        with Traffic(server, seed=3) as traffic:
            for epoch in (2, 3, 4):
                traffic.await_more(10)
                leader.signal(signal.SIGSTOP)
                standby.wait_for(f"leading epoch={epoch}")
                leader.signal(signal.SIGCONT)
                leader.wait_for("another scheduler leads")
                leader.wait_for("standing by")
                leader, standby = standby, leader
        assert traffic.lost == []


def test_without_the_fence_the_same_story_grants_twice(server: RealServer) -> None:
    """That a paused leader would do harm, were it not for the epoch in its commit."""
    with server.client() as client:
        for script, grants in ((UNFENCED, 2), (FENCED, 1)):
            client.flushall()
            client.hset("toy:scheduler", mapping={"epoch": 1, "held": 0})
            free_mib = 24_576 - int(client.hget("toy:scheduler", "held") or 0)  # the first reads, and is paused
            client.hset("toy:scheduler", "epoch", 2)  # the second leads, reads the same, and grants
            for epoch in (2, 1):  # then the first goes on where it was
                if free_mib >= 24_576:
                    client.eval(script, 2, "toy:scheduler", "toy:events", 24_576, "{}", epoch)
            assert client.xlen("toy:events") == grants


def test_what_takes_long_is_not_taken_for_death(server: RealServer, view: RedisView) -> None:
    """While a leader works off a long log, or writes a large snapshot, a thread says that it is alive."""
    with SchedulerProcess(server.url) as scheduler:
        scheduler.wait_leading()
        scheduler.kill()
    beats = set()
    with (
        contextlib.closing(connect(server.url)) as client,
        Reign(client, Keys(), 1, 0, view.entries()[-1].id, view.scheduler()["leader"]).kept_alive(),
    ):

        def has_beaten_thrice() -> bool:
            beats.add(view.scheduler()["alive_until_ms"])
            return len(beats) > 3

        eventually(has_beaten_thrice, "three beats")
    threads = {thread.name for thread in threading.enumerate()}
    assert "beat" not in threads


def test_of_many_one_leads(server: RealServer, view: RedisView) -> None:
    with contextlib.ExitStack() as stack:
        all_of_them = [stack.enter_context(SchedulerProcess(server.url)) for _ in range(4)]
        began_s = None
        for epoch in (1, 2, 3):
            eventually(lambda: any(leads(each) for each in all_of_them), "one to lead")
            took_s = 0.0 if began_s is None else time.monotonic() - began_s
            assert took_s <= TAKEOVER_S, f"it took {took_s:.2f} s"
            [leader] = [each for each in all_of_them if leads(each)]
            assert f"leading epoch={epoch} " in leader.stderr
            assert view.scheduler()["leader"].split(":")[1] == str(leader.process.pid if leader.process else "")
            all_of_them.remove(leader)
            for each in all_of_them:
                each.wait_for("standing by")
            began_s = time.monotonic()
            leader.kill()
        [last] = all_of_them
        last.wait_for("leading epoch=4")
        assert [entry.data["epoch"] for entry in view.of_type("SchedulerElected")] == [1, 2, 3, 4]
        incarnations = {entry.data["incarnation"] for entry in view.of_type("SchedulerElected")}
        assert incarnations == {view.scheduler()["incarnation"]}


def leads(scheduler: SchedulerProcess) -> bool:
    return "leading" in scheduler.stderr


def test_another_leader_of_the_same_epoch_is_another_all_the_same(server: RealServer) -> None:
    """Two that lead one after the other on servers that lost everything cannot know of each other's epochs."""
    with contextlib.closing(connect(server.url)) as client:
        keys = Keys("twins")
        client.delete(keys.scheduler, keys.events)
        client.hset(keys.scheduler, mapping={"epoch": 2, "seq": 0, "leader": "second"})
        with pytest.raises(Deposed):
            Reign(client, keys, 2, 0, "0-0", "first").append([ClockTicked(now_ms=1)])
        Reign(client, keys, 2, 0, "0-0", "second").append([ClockTicked(now_ms=1)])
        assert client.xlen(keys.events) == 1
        client.delete(keys.scheduler, keys.events)
