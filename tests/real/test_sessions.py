"""Processes that fall silent: what they hold comes back, what they wait for is never granted, nobody else suffers."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, cast

import pytest
import redis

from gpuboss_scheduler.sessions import Trust
from tests.real.one_server import served_by
from tests.real.redis_view import Entry, RedisView, Service, read
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer
from tests.real.traffic import Traffic

server_process = served_by(0)
TTL_MS = 1000


class Heartbeat:
    """Keeps sessions alive from a thread of its own, as a client library does."""

    def __init__(self, server: RealServer, *sessions: tuple[str, str], ttl_ms: int = TTL_MS) -> None:
        self._server = server
        self._sessions = sessions
        self._ttl_ms = ttl_ms
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._beat)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def _beat(self) -> None:
        with self._server.client(socket_timeout=self._ttl_ms / 1000) as client:
            view = RedisView(client)
            services = [Service(view, name, session=session, ttl_ms=self._ttl_ms) for name, session in self._sessions]
            while not self._stopping.wait(self._ttl_ms / 4000):
                with contextlib.suppress(redis.RedisError):  # the next beat tries again
                    for service in services:
                        service.beat()


@pytest.fixture
def scheduler(server: RealServer) -> SchedulerProcess:
    """Short-lived sessions; not started yet."""
    return SchedulerProcess(server.url, session_ttl=f"{TTL_MS}ms")


def silent(view: RedisView, name: str = "mortal", ttl_ms: int = TTL_MS) -> Service:
    """A process that beats when it asks and never again."""
    return Service(view, name, session=f"{name}-session", ttl_ms=ttl_ms)


def test_what_a_silent_holder_held_goes_to_who_waits(view: RedisView, scheduler: SchedulerProcess) -> None:
    mortal, other = silent(view), Service(view, "other")
    with scheduler:
        scheduler.wait_leading()
        held = mortal.lease(24_576, device="cuda:0")
        waiting = other.queue(24_576, device="cuda:0")
        ended = mortal.told(held, "LeaseEnded").data
        assert (ended["reason"], ended["freed"], ended["session"]) == ("session_lost", True, "mortal-session")
        [lost] = view.of_type("SessionLost")
        assert {key: lost.data[key] for key in ("service", "session")} == {
            "service": "mortal",
            "session": "mortal-session",
        }
        assert ended["cause"] == lost.id
        assert other.answer(waiting).data["cause"] == lost.id
        assert view.client.zscore(view.key("sessions"), "mortal/mortal-session") is None


def test_who_died_waiting_is_never_granted(view: RedisView, scheduler: SchedulerProcess) -> None:
    holder, mortal, heir = Service(view, "holder"), silent(view), Service(view, "heir")
    with scheduler:
        scheduler.wait_leading()
        held = holder.lease(24_576, device="cuda:0")
        waiting = mortal.request(24_576, device="cuda:0", priority="high")
        behind = heir.queue(24_576, device="cuda:0")
        denied = mortal.answer(waiting)
        assert (denied.type, denied.data["reason"]) == ("LeaseDenied", "session_lost")
        holder.release(held)
        assert heir.answer(behind).type == "LeaseGranted"


def test_who_died_while_nobody_led_holds_nothing_afterwards(
    view: RedisView, scheduler: SchedulerProcess, server: RealServer
) -> None:
    holder, mortal, heir = Service(view, "holder"), silent(view), Service(view, "heir")
    other = Service(view, "dead-holder", session="dead-holder-1", ttl_ms=TTL_MS)
    with scheduler:
        scheduler.wait_leading()
        held = holder.lease(24_576, device="cuda:0")
        dead_lease = other.lease(24_576, device="cuda:1")
        waiting = mortal.request(24_576, device="cuda:0", priority="high")
        behind = heir.queue(24_576, device="cuda:0")
        scheduler.kill()
    unheard = silent(view, "unheard")
    late = unheard.request(20_000, device="cuda:0", priority="high")  # asked while nobody led
    eventually(lambda: not alive(view), "all sessions to be past their time")
    holder.release(held)
    with server.client() as mortals_client, server.client() as unheards_client, ThreadPoolExecutor() as readers:
        first_told = [
            readers.submit(next_told, RedisView(client), service.address)
            for client, service in ((mortals_client, mortal), (unheards_client, unheard))
        ]
        with scheduler:
            scheduler.wait_leading()
            assert heir.answer(behind).type == "LeaseGranted"
            assert other.told(dead_lease, "LeaseEnded").data["reason"] == "session_lost"
            for lease_id, told in zip((waiting, late), first_told, strict=True):
                # All that is ever to be seen: if there is a grant, its end stands beside it from the first moment.
                assert told.result()[-1].data["reason"] == "session_lost"
                assert lease_id not in view.rows("leases")
                assert lease_id not in view.rows("queue")


def next_told(view: RedisView, address: str) -> list[Entry]:
    """What a reader who waits for a first reply is woken with: all of one commit."""
    found: Any = view.client.xread({view.key(f"replies:{address}"): "0-0"}, block=8_000)
    return [read(entry_id.decode(), fields) for entry_id, fields in found[0][1]]


def alive(view: RedisView) -> int:
    """How many sessions are not past their time."""
    seconds, microseconds = view.client.time()
    return view.client.zcount(view.key("sessions"), seconds * 1000 + microseconds // 1000, "+inf")


def test_a_session_that_never_beats_lives_for_one_ttl(view: RedisView, scheduler: SchedulerProcess) -> None:
    mortal = silent(view, ttl_ms=0)
    with scheduler:
        scheduler.wait_leading()
        held = mortal.lease(1000)
        dies_ms = view.client.zscore(view.key("sessions"), "mortal/mortal-session")
        granted_ms = mortal.answer(held).data["granted_at_ms"]
        assert dies_ms is not None
        assert granted_ms + TTL_MS <= dies_ms <= granted_ms + TTL_MS + 500
        ended = mortal.told(held, "LeaseEnded").data
        assert ended["reason"] == "session_lost"
        assert dies_ms <= ended["now_ms"] <= dies_ms + 1000


def test_heartbeats_keep_a_session_alive(view: RedisView, scheduler: SchedulerProcess, server: RealServer) -> None:
    mortal, living = silent(view), Service(view, "living", session="living-session", ttl_ms=TTL_MS)
    with scheduler, Heartbeat(server, ("living", "living-session")):
        scheduler.wait_leading()
        kept = living.lease(1000)
        for number in range(2):  # as many deaths of others as it outlives
            held = mortal.lease(1000) if number == 0 else silent(view, f"mortal-{number}").lease(1000)
            view.wait_entry("LeaseEnded", lease_id=held)
        assert kept in view.rows("leases")
        assert {entry.data["service"] for entry in view.of_type("SessionLost")} == {"mortal", "mortal-1"}


def test_a_lost_session_stays_lost(view: RedisView, scheduler: SchedulerProcess) -> None:
    mortal = silent(view)
    with scheduler:
        scheduler.wait_leading()
        mortal.told(mortal.lease(1000), "LeaseEnded")
        assert mortal.answer(mortal.request(1000)).data["reason"] == "session_lost"  # it beats again, in vain
        scheduler.kill()
    with scheduler:
        scheduler.wait_leading()
        assert mortal.answer(mortal.request(1000)).data["reason"] == "session_lost"
        fresh = Service(view, "mortal", session="another-one", ttl_ms=60_000)
        assert fresh.answer(fresh.request(1000)).type == "LeaseGranted"


@pytest.mark.parametrize("busy", [True, False], ids=["paused-under-load", "gone"])
def test_a_server_that_stood_still_kills_nobody(own_server: RealServer, busy: bool) -> None:
    """Nobody could beat while it stood still; those who do once it goes on are alive."""
    sessions = [(f"living-{number}", f"session-{number}") for number in range(5)]
    ttl_ms = 1200  # time enough for all to beat again on a busy machine
    with own_server, SchedulerProcess(own_server.url, session_ttl=f"{ttl_ms}ms") as scheduler:
        scheduler.wait_leading()
        with own_server.client() as client, Heartbeat(own_server, *sessions, ttl_ms=ttl_ms):
            view = RedisView(client)
            services = [Service(view, name, session=session, ttl_ms=ttl_ms) for name, session in sessions]
            held = {service.lease(1000) for service in services}
            with Traffic(own_server, seed=1, services=3 * busy, most_mib=9_000) as traffic:
                eventually(lambda: traffic.ended >= 20 or not busy, "traffic")
                stop, go_on = (own_server.pause, own_server.resume) if busy else (own_server.kill, own_server.start)
                stop()
                assert not threading.Event().wait(2 * ttl_ms / 1000)  # the time that nothing happens
                go_on()
                if not busy:
                    scheduler.wait_for("leading epoch=2")
                died = silent(view).lease(1000)
                view.wait_entry("LeaseEnded", lease_id=died, reason="session_lost")
            assert traffic.lost == []
            assert view.rows("leases").keys() == held
            assert [entry.data["service"] for entry in view.of_type("SessionLost")] == ["mortal"]


def test_a_jump_of_the_servers_clock_is_no_silence() -> None:
    """Sessions are timed by the server's clock. When that runs ahead, all of them are past their time at once."""
    now_s = 100.0
    trust = Trust(session_ttl_ms=15_000, monotonic=lambda: now_s)
    trust.answered(1_000_000)
    now_s += 0.25
    trust.answered(1_000_250)
    assert trust.holds()
    now_s += 0.25
    trust.answered(1_000_500 + 60_000)
    assert not trust.holds()
    now_s += 0.25
    trust.answered(1_000_750 + 60_000)
    assert not trust.holds()
    now_s += 15.0
    assert trust.holds()


def test_signs_of_life_that_were_lost_with_the_log_are_not_missed(scheduler: SchedulerProcess, view: RedisView) -> None:
    """A failover to a replica that lagged by more than a session TTL, in no time."""
    with scheduler:
        scheduler.wait_leading()
        holder = Service(view, "holder", session="session0", ttl_ms=TTL_MS)
        lease_id = holder.lease(20_000)
        copy = {key: cast(bytes, view.client.dump(key)) for key in view.client.keys("*")}
        holder.request(20_000)
        for _ in range(6):
            time.sleep(TTL_MS / 5000)
            holder.beat()
        with view.client.pipeline(transaction=True) as failover:
            failover.flushall()
            for key, value in copy.items():
                failover.restore(key, 0, value)
            failover.execute()
        eventually(lambda: any("lost" in each.data for each in view.of_type("SchedulerElected")), "the loss to be seen")
        for _ in range(6):
            time.sleep(TTL_MS / 5000)
            holder.beat()
        assert view.of_type("SessionLost") == []
        assert view.rows("leases")[lease_id]["state"] == "held"
