"""How long a client relies on what it holds while its beats are not taken, and how it goes on afterwards."""

import asyncio
import signal
import time
from pathlib import Path

import anyio
import pytest

from gpuboss import GPUBoss, GPUBossError, LeaseLost
from gpuboss.client.leadership import TRUSTED
from gpuboss.client.link import Look
from tests.client.by_hand import HandScheduler, hold, until, until_ended
from tests.client.processes import Service
from tests.real.one_server import served_by
from tests.real.servers import RealServer, wait_for

server_process = served_by(0)
TTL_S = 1.5
LATE_S = 0.3  # how much later than it should a timer may fire on a busy machine
assert TRUSTED * TTL_S + LATE_S < TTL_S, "also then it fires before the session can be dead"


@pytest.fixture
def hand(hand: HandScheduler) -> HandScheduler:
    """It leads, with a session TTL that a test can wait for, and says nothing of sessions by itself."""
    hand.lead(session_ttl_ms=int(TTL_S * 1000))
    return hand


def sessions(hand: HandScheduler) -> dict[str, float]:
    return {member.decode(): score for member, score in hand.redis.zrange(hand.keys.sessions, 0, -1, withscores=True)}


def alive(hand: HandScheduler) -> set[str]:
    """The sessions whose time is not up. One that a late beat puts back behind its end is there for its TTL."""
    now_ms = hand.now_ms()
    return {member for member, due_ms in sessions(hand).items() if due_ms > now_ms}


def last_taken(boss: GPUBoss) -> Look:
    """The last beat that this client knows was taken."""
    look = boss._open_session().desk.trust.look
    assert look is not None
    return look


def stop_pulse(boss: GPUBoss) -> None:
    """As if the process stood still: nothing beats while its event loop is blocked. For a client just opened."""
    boss._open_session()._pulse.stop()


async def just_beaten(boss: GPUBoss) -> Look:
    """The beat that was taken this very moment: none is under way, whose answer could come after a block."""
    before = last_taken(boss)
    await until("the next beat", lambda: last_taken(boss) is not before)
    return last_taken(boss)


def block_until_s(at_s: float) -> None:
    """What a model does that computes in the event loop's own thread."""
    wait_for("the end of a computation", lambda: time.monotonic() > at_s)


# ---------------------------------------------------------------- Redis does not answer


@pytest.mark.parametrize("outage", ["paused", "killed"])
async def test_in_an_outage_leases_are_given_up_before_the_session_can_be_dead(
    server: RealServer, hand: HandScheduler, outage: str
) -> None:
    lost_s = 0.0

    async def use(boss: GPUBoss) -> None:
        nonlocal lost_s
        async with boss.lease(vram_gb=8):
            try:
                await until_ended()
            finally:
                lost_s = time.monotonic()

    async with GPUBoss(server.url, "painter") as boss:
        using = asyncio.create_task(use(boss))
        request = await hand.hear("LeaseRequested")
        hand.grant(request)
        await until("the lease", lambda: boss._open_session().desk.held)
        await anyio.to_thread.run_sync(server.pause if outage == "paused" else server.kill)
        with pytest.raises(LeaseLost, match="session_lost"):
            await using
        silent_s = lost_s - last_taken(boss).at_s
        assert TRUSTED * TTL_S <= silent_s < TRUSTED * TTL_S + LATE_S

        await anyio.to_thread.run_sync(server.resume if outage == "paused" else server.start)
        assert (await hand.hear("LeaseReleased"))["lease_id"] == request["lease_id"]
        again = asyncio.create_task(boss.acquire(vram_gb=8))
        later = await hand.hear("LeaseRequested")
        assert later["session"] != request["session"]
        hand.grant(later)
        lease = await again
        member = f"painter/{later['session']}"
        await until("the new session alone", lambda: alive(hand) == {member})
        assert not lease.is_lost
        server.pause()
        with anyio.fail_after(TTL_S):
            assert await lease.wait_lost() == "session_lost"
        server.resume()


async def test_a_short_outage_costs_no_lease(server: RealServer, hand: HandScheduler) -> None:
    hand.lead(session_ttl_ms=3_000)
    async with GPUBoss(server.url, "painter") as boss:
        lease = await hold(boss, hand)
        before = last_taken(boss)
        server.pause()
        await until("half a session TTL without a beat", lambda: time.monotonic() > before.at_s + 1.5)
        over_s = boss._open_session().desk.trust.until_s()
        server.resume()
        await until("the time at which trust would have been over", lambda: time.monotonic() > over_s + LATE_S)
        assert not lease.is_lost
    assert [event["lease_id"] for event in hand.log("LeaseReleased")] == [lease.lease_id]


async def test_beats_keep_trust_for_as_long_as_they_are_taken(server: RealServer, hand: HandScheduler) -> None:
    async with GPUBoss(server.url, "painter") as boss:
        lease = await hold(boss, hand)
        begun_s = time.monotonic()
        await until("two session TTLs to pass", lambda: time.monotonic() > begun_s + 2 * TTL_S)
        assert not lease.is_lost


async def test_who_waits_goes_on_waiting_under_the_session_that_is_no_longer_trusted(
    server: RealServer, hand: HandScheduler
) -> None:
    async with GPUBoss(server.url, "painter") as boss:
        held = await hold(boss, hand)
        waiting = asyncio.create_task(boss.acquire(vram_gb=8))
        request = await hand.hear("LeaseRequested")
        server.pause()
        assert await held.wait_lost() == "session_lost"
        server.resume()
        new, old = (f"painter/{session}" for session in (boss._open_session().desk.session, request["session"]))
        await until("both sessions", lambda: set(sessions(hand)) == {new, old})
        hand.grant(request)
        lease = await waiting
        scores = sessions(hand)
        await until("another beat for both", lambda: all(sessions(hand)[each] > scores[each] for each in (new, old)))
        block_until_s(time.monotonic() + 2 * TTL_S)
        assert min(sessions(hand).values()) > hand.now_ms(), "the pulse, too, beats for both"
        assert not lease.is_lost
        await boss.release(lease)
        await until("the new session alone", lambda: alive(hand) == {new})


async def test_a_closed_client_takes_all_its_sessions_along(server: RealServer, hand: HandScheduler) -> None:
    async with GPUBoss(server.url, "painter") as boss:
        held = await hold(boss, hand)
        waiting = asyncio.create_task(boss.acquire(vram_gb=8))
        await hand.hear("LeaseRequested")
        server.pause()
        await held.wait_lost()
        server.resume()
        await until("both sessions", lambda: len(sessions(hand)) == 2)
    with pytest.raises(GPUBossError, match="this client is closed"):
        await waiting
    assert sessions(hand) == {}


async def test_a_beat_that_is_taken_before_the_timer_came_to_look_does_not_hide_the_gap(
    server: RealServer, hand: HandScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with GPUBoss(server.url, "painter") as boss:
        session = boss._open_session()
        lease = await hold(boss, hand)
        monkeypatch.setattr(session._clock, "sleep", lambda _: anyio.sleep_forever())
        await just_beaten(boss)  # behind it the timer is set again
        server.pause()
        await until("the end of trust", lambda: session.desk.trust.is_over(time.monotonic()))
        server.resume()
        await until("a beat that counts", lambda: not session.desk.trust.is_over(time.monotonic()))
        assert lease.lost_reason == "session_lost"


# ---------------------------------------------------------------- the event loop, or the process, stands still


async def test_a_blocked_loop_keeps_its_leases_because_the_pulse_beats(server: RealServer, hand: HandScheduler) -> None:
    async with GPUBoss(server.url, "painter") as boss:
        lease = await hold(boss, hand)
        block_until_s(time.monotonic() + 2 * TTL_S)
        beaten = last_taken(boss)
        assert time.monotonic() - beaten.at_s < TRUSTED * TTL_S
        await until("a beat of the loop", lambda: last_taken(boss).at_s > beaten.at_s)
        assert not lease.is_lost


async def test_a_blocked_loop_without_a_pulse_has_lost_its_leases(server: RealServer, hand: HandScheduler) -> None:
    async with GPUBoss(server.url, "painter") as boss:
        stop_pulse(boss)
        lease = await hold(boss, hand)
        lost = await just_beaten(boss)
        block_until_s(lost.at_s + TTL_S)
        with anyio.fail_after(LATE_S):
            assert await lease.wait_lost() == "session_lost"
        await until("a beat under a new session", lambda: last_taken(boss).at_s > lost.at_s)
        assert hand.log("LeaseReleased") == [], "its memory is still in use: nobody else may be granted it yet"
        await boss.release(lease)
        assert (await hand.hear("LeaseReleased"))["lease_id"] == lease.lease_id


async def test_a_grant_that_is_read_without_trust_counts_when_it_is_told_again(
    server: RealServer, hand: HandScheduler
) -> None:
    async with GPUBoss(server.url, "painter") as boss:
        stop_pulse(boss)
        waiting = asyncio.create_task(boss.acquire(vram_gb=8))
        request = await hand.hear("LeaseRequested")
        lost = await just_beaten(boss)
        hand.grant(request)
        block_until_s(lost.at_s + TTL_S)
        again = await hand.hear("LeaseRequested")
        assert (again["lease_id"], again["session"]) == (request["lease_id"], request["session"])
        assert not waiting.done()
        hand.grant(again)
        lease = await waiting
        assert not lease.is_lost
    assert [event["lease_id"] for event in hand.log("LeaseReleased")] == [request["lease_id"]]


STEPPING = """
    import asyncio, sys, time
    from gpuboss import GPUBoss, LeaseLost

    async def main():
        async with GPUBoss(sys.argv[1], "painter") as boss:
            try:
                async with boss.lease(vram_gb=8):
                    print("holds", flush=True)
                    steps, last_s = 0, time.monotonic()
                    while True:
                        await asyncio.sleep(0)
                        now_s = time.monotonic()
                        steps = 0 if now_s > last_s + 0.5 else steps + 1
                        last_s = now_s
            except LeaseLost as error:
                print(error.reason, steps, flush=True)
            async with boss.lease(vram_gb=8) as device:
                print(device, flush=True)

    asyncio.run(main())
"""
COMPUTING = """
    import asyncio, os, sys, time
    from gpuboss import GPUBoss, LeaseLost

    async def main():
        async with GPUBoss(sys.argv[1], "painter") as boss:
            try:
                async with boss.lease(vram_gb=8):
                    print("holds", flush=True)
                    while not os.path.exists(sys.argv[2]):
                        time.sleep(0.01)
                    await asyncio.sleep(60)
            except LeaseLost as error:
                print(error.reason, flush=True)

    asyncio.run(main())
"""


def stop_for_longer_than_a_ttl(service: Service, hand: HandScheduler) -> float:
    """SIGSTOP, and SIGCONT once its session is past its time; returns when that was, on Redis' clock."""
    service.signal(signal.SIGSTOP)
    [dies_ms] = sessions(hand).values()
    wait_for("the session to be past its time", lambda: hand.now_ms() > dies_ms)
    service.signal(signal.SIGCONT)
    return dies_ms


def test_a_process_that_was_stopped_finds_its_lease_lost_as_soon_as_it_goes_on(
    server: RealServer, hand: HandScheduler
) -> None:
    with Service(STEPPING, server.url) as service:
        wait_for("the request", lambda: hand.log("LeaseRequested") or service.has_ended())
        [request] = hand.log("LeaseRequested")
        hand.grant(request)
        assert service.line() == "holds"
        stop_for_longer_than_a_ttl(service, hand)
        reason, steps = service.line().split()
        assert reason == "session_lost"
        assert int(steps) <= 5, "steps of the loop that its body went on for; a round trip to Redis takes more"
        wait_for("the next request", lambda: len(hand.log("LeaseRequested")) > 1 or service.has_ended())
        later = hand.log("LeaseRequested")[-1]
        assert later["session"] != request["session"]
        hand.grant(later)
        assert service.line() == "cuda:0"
        assert service.wait() == 0


def test_a_beat_on_waking_does_not_hide_that_the_process_was_stopped(
    server: RealServer, hand: HandScheduler, tmp_path: Path
) -> None:
    """The pulse beats before the loop, which computes, comes to look; meanwhile the lease may have been another's."""
    computed = tmp_path / "computed"
    with Service(COMPUTING, server.url, str(computed)) as service:
        wait_for("the request", lambda: hand.log("LeaseRequested") or service.has_ended())
        hand.grant(hand.log("LeaseRequested")[0])
        assert service.line() == "holds"
        dies_ms = stop_for_longer_than_a_ttl(service, hand)
        wait_for("a beat on waking", lambda: max(sessions(hand).values()) > dies_ms)
        computed.touch()
        assert service.line() == "session_lost"
        assert service.wait() == 0
