"""The sign of life that a client gives, and what it does when nobody leads."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from gpuboss import GPUBoss, GPUBossError, LeaseDenied, LeaseLost, SchedulerUnavailable
from gpuboss.client.leadership import Leadership
from gpuboss.client.link import Look
from tests.client.by_hand import HandScheduler, until, until_ended
from tests.real.servers import RealServer


@pytest.fixture
async def boss(server: RealServer, hand: HandScheduler) -> AsyncIterator[GPUBoss]:
    async with GPUBoss(server.url, "painter") as boss:
        yield boss


def sessions(hand: HandScheduler) -> dict[str, float]:
    return {member.decode(): score for member, score in hand.redis.zrange(hand.keys.sessions, 0, -1, withscores=True)}


# ---------------------------------------------------------------- the heartbeat


async def test_a_session_is_due_one_ttl_after_the_servers_now(server: RealServer, hand: HandScheduler) -> None:
    hand.lead(session_ttl_ms=8_000)
    before_ms = hand.now_ms()
    async with GPUBoss(server.url, "painter") as boss:
        [(member, dies_ms)] = sessions(hand).items()
        assert member == f"painter/{boss._open_session().desk.session}"
        assert before_ms + 8_000 <= dies_ms <= hand.now_ms() + 8_000


async def test_without_a_scheduler_ever_the_contracts_ttl_holds(server: RealServer, hand: HandScheduler) -> None:
    hand.redis.delete(hand.keys.scheduler)
    async with GPUBoss(server.url, "painter"):
        [dies_ms] = sessions(hand).values()
        assert 14_000 < dies_ms - hand.now_ms() <= 15_000


async def test_it_beats_three_times_in_a_ttl(server: RealServer, hand: HandScheduler) -> None:
    hand.lead(session_ttl_ms=600)
    async with GPUBoss(server.url, "painter"):
        scores = set(sessions(hand).values())
        begun_s = time.monotonic()

        def beaten() -> bool:
            scores.update(sessions(hand).values())
            return len(scores) == 4

        await until("three more beats", beaten)
        assert 0.5 < time.monotonic() - begun_s < 1.5


async def test_a_closed_client_takes_its_session_along(server: RealServer, hand: HandScheduler) -> None:
    async with GPUBoss(server.url, "painter"):
        assert len(sessions(hand)) == 1
    assert sessions(hand) == {}


async def test_each_client_has_a_session_of_its_own(server: RealServer, hand: HandScheduler) -> None:
    async with GPUBoss(server.url, "painter"), GPUBoss(server.url, "painter", instance="replica-1"):
        assert len(sessions(hand)) == 2


async def test_a_session_that_was_dropped_while_nothing_hung_on_it_is_followed_by_a_new_one(
    server: RealServer, hand: HandScheduler
) -> None:
    hand.lead(session_ttl_ms=600)
    async with GPUBoss(server.url, "painter") as boss:
        boss._open_session()._pulse.stop()  # should the loop be late, it would put the session back unseen
        [dropped] = sessions(hand)
        hand.redis.zrem(hand.keys.sessions, dropped)
        await until("a new session alone", lambda: sessions(hand) and dropped not in sessions(hand))


async def test_a_session_with_a_lease_goes_on_when_the_zset_is_deleted(server: RealServer, hand: HandScheduler) -> None:
    hand.lead(session_ttl_ms=1_500)
    async with GPUBoss(server.url, "painter") as boss:
        acquiring = asyncio.create_task(boss.acquire(vram_gb=8))
        hand.grant(await hand.hear("LeaseRequested"))
        lease = await acquiring
        [member] = sessions(hand)
        hand.redis.delete(hand.keys.sessions)
        await until("the session to be back", lambda: member in sessions(hand))
        assert not lease.is_lost


async def test_after_a_lost_session_the_client_goes_on_with_another(boss: GPUBoss, hand: HandScheduler) -> None:
    holding = asyncio.create_task(boss.acquire(vram_gb=8))
    held = await hand.hear("LeaseRequested")
    hand.grant(held)
    lease = await holding
    waiting = asyncio.create_task(boss.acquire(vram_gb=8))
    request = await hand.hear("LeaseRequested")
    hand.end(held, "session_lost")
    hand.deny(request, "session_lost")
    with pytest.raises(LeaseDenied, match="session_lost"):
        await waiting
    assert lease.lost_reason == "session_lost"
    old = f"painter/{held['session']}"
    await until("the new session alone", lambda: len(sessions(hand)) == 1 and old not in sessions(hand))
    again = asyncio.create_task(boss.acquire(vram_gb=8))
    request = await hand.hear("LeaseRequested")
    assert f"painter/{request['session']}" in sessions(hand)
    hand.grant(request)
    await again


# ---------------------------------------------------------------- nobody leads


async def test_where_nobody_ever_led_nothing_is_asked(boss: GPUBoss, hand: HandScheduler) -> None:
    hand.redis.delete(hand.keys.scheduler)
    boss._open_session().heartbeat.ring()
    await until("the look", lambda: boss._open_session().heartbeat._leadership.is_vacant(time.monotonic()))
    with pytest.raises(SchedulerUnavailable, match=r"no scheduler leads.*start gpuboss-scheduler"):
        await boss.acquire(vram_gb=8)
    assert hand.log() == []


async def test_a_scheduler_that_fell_silent_leads_no_more(server: RealServer, hand: HandScheduler) -> None:
    hand.vanish()
    async with GPUBoss(server.url, "painter") as boss:
        with pytest.raises(SchedulerUnavailable, match="has been silent for 5 s"):
            await boss.acquire(vram_gb=8)
    assert hand.log() == []


async def test_a_scheduler_that_is_late_by_less_still_leads(server: RealServer, hand: HandScheduler) -> None:
    hand.lead(alive_for_ms=-4_000)
    async with GPUBoss(server.url, "painter") as boss:
        waiting = asyncio.create_task(boss.acquire(vram_gb=8))
        hand.grant(await hand.hear("LeaseRequested"))
        await waiting


async def test_a_scheduler_that_comes_after_the_client_is_found_when_asking(
    server: RealServer, hand: HandScheduler
) -> None:
    hand.vanish()
    async with GPUBoss(server.url, "painter") as boss:
        hand.lead()
        waiting = asyncio.create_task(boss.acquire(vram_gb=8))
        hand.grant(await hand.hear("LeaseRequested"))
        await waiting


@pytest.mark.parametrize("last_word", ["silence", "no hash"])
async def test_those_who_wait_are_told_when_nobody_leads_any_more(
    server: RealServer, hand: HandScheduler, last_word: str
) -> None:
    hand.lead(session_ttl_ms=300)
    async with GPUBoss(server.url, "painter") as boss:
        waiting = [asyncio.create_task(boss.acquire(vram_gb=8)) for _ in range(3)]
        requests = {(await hand.hear("LeaseRequested"))["lease_id"] for _ in waiting}
        hand.vanish() if last_word == "silence" else hand.redis.delete(hand.keys.scheduler)
        for each in waiting:
            with anyio.fail_after(5), pytest.raises(SchedulerUnavailable):
                await each
        assert {(await hand.hear("LeaseReleased"))["lease_id"] for _ in waiting} == requests


async def test_those_who_wait_are_told_as_soon_as_the_leaders_time_is_up(
    server: RealServer, hand: HandScheduler
) -> None:
    hand.lead(alive_for_ms=-4_500, session_ttl_ms=60_000)  # the next beat is 20 s away
    async with GPUBoss(server.url, "painter") as boss:
        with anyio.fail_after(3), pytest.raises(SchedulerUnavailable):
            await boss.acquire(vram_gb=8)


async def test_those_who_hold_go_on_when_nobody_leads(server: RealServer, hand: HandScheduler) -> None:
    hand.lead(session_ttl_ms=1_500)
    async with GPUBoss(server.url, "painter") as boss:
        holding = asyncio.create_task(boss.acquire(vram_gb=8))
        hand.grant(await hand.hear("LeaseRequested"))
        lease = await holding
        hand.vanish()
        await until("the look", lambda: boss._open_session().heartbeat._leadership.is_vacant(time.monotonic()))
        assert not lease.is_lost


@asynccontextmanager
async def in_a_handover(server: RealServer, hand: HandScheduler) -> AsyncIterator[GPUBoss]:
    """A client that waits for a lease, and has seen that its leader resigned. Behind the block, in which another is to
    begin to lead, it is granted what it waits for."""
    hand.lead(session_ttl_ms=600)
    async with GPUBoss(server.url, "painter") as boss:
        waiting = asyncio.create_task(boss.acquire(vram_gb=8))
        request = await hand.hear("LeaseRequested")
        hand.resign()
        leadership = boss._open_session().heartbeat._leadership
        await until("the resignation to be seen", lambda: not leadership.is_there(time.monotonic()))
        yield boss
        hand.grant(request)
        await waiting


async def test_a_handover_is_no_outage(server: RealServer, hand: HandScheduler) -> None:
    async with in_a_handover(server, hand) as boss:
        asking = asyncio.create_task(boss.acquire(vram_gb=8))
        await anyio.lowlevel.checkpoint()
        hand.lead(session_ttl_ms=600)
        hand.grant(await hand.hear("LeaseRequested"))
        await asking


async def test_who_asks_in_a_handover_does_not_run_over_the_server(
    server: RealServer, hand: HandScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, note = list[Look](), Leadership.note

    def noted(leadership: Leadership, look: Look) -> None:
        looks.append(look)
        note(leadership, look)

    async with in_a_handover(server, hand) as boss:
        monkeypatch.setattr(Leadership, "note", noted)
        asking = asyncio.create_task(boss.acquire(vram_gb=8))
        await anyio.sleep(1)
        assert 5 < len(looks) < 20
        hand.lead(session_ttl_ms=600)
        hand.grant(await hand.hear("LeaseRequested"))
        await asking


async def test_a_handover_to_nobody_is_an_outage(
    server: RealServer, hand: HandScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuboss.client.leadership.HANDOVER_S", 0.2)
    monkeypatch.setattr("gpuboss.client.heartbeat.HANDOVER_S", 0.2)
    hand.lead(session_ttl_ms=150)
    async with GPUBoss(server.url, "painter") as boss:
        waiting = asyncio.create_task(boss.acquire(vram_gb=8))
        await hand.hear("LeaseRequested")
        hand.resign()
        with anyio.fail_after(5), pytest.raises(SchedulerUnavailable, match="no scheduler leads"):
            await waiting
        with anyio.fail_after(5), pytest.raises(SchedulerUnavailable, match="no scheduler leads"):
            await boss.acquire(vram_gb=8)


# ---------------------------------------------------------------- closing


@pytest.mark.usefixtures("slow_writes")
async def test_a_closed_client_leaves_no_lease_and_no_request_behind(server: RealServer, hand: HandScheduler) -> None:
    async with GPUBoss(server.url, "painter") as boss:
        holding = asyncio.create_task(boss.acquire(vram_gb=8))
        held = await hand.hear("LeaseRequested")
        hand.grant(held)
        lease = await holding
        waiting = asyncio.create_task(boss.acquire(vram_gb=8))
        request = await hand.hear("LeaseRequested")
    assert {event["lease_id"] for event in hand.log("LeaseReleased")} == {held["lease_id"], request["lease_id"]}
    with pytest.raises(Exception, match="this client is closed"):
        await waiting
    assert lease.lost_reason == "closed"
    await boss.release(lease)
    assert len(hand.log("LeaseReleased")) == 2


async def test_a_block_that_runs_when_the_client_is_closed_is_cancelled(
    server: RealServer, hand: HandScheduler
) -> None:
    async def use(boss: GPUBoss) -> None:
        async with boss.lease(vram_gb=8):
            await until_ended()

    async with GPUBoss(server.url, "painter") as boss:
        using = asyncio.create_task(use(boss))
        hand.grant(await hand.hear("LeaseRequested"))
        await until("the lease", lambda: boss._open_session().desk.held)
    with pytest.raises(LeaseLost, match="closed"):
        await using
    assert len(hand.log("LeaseReleased")) == 1


async def test_an_exception_in_the_clients_block_gives_everything_back_and_goes_on_as_it_is(
    server: RealServer, hand: HandScheduler
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with GPUBoss(server.url, "painter") as boss:
            holding = asyncio.create_task(boss.acquire(vram_gb=8))
            hand.grant(await hand.hear("LeaseRequested"))
            await holding
            _ = 1 / 0
    assert len(hand.log("LeaseReleased")) == 1


async def test_a_cancelled_client_gives_everything_back(server: RealServer, hand: HandScheduler) -> None:
    async def serve() -> None:
        async with GPUBoss(server.url, "painter") as boss, boss.lease(vram_gb=8):
            await until_ended()

    serving = asyncio.create_task(serve())
    request = await hand.hear("LeaseRequested")
    hand.grant(request)
    await until("a beat", lambda: sessions(hand))
    serving.cancel()
    await asyncio.wait([serving])
    assert serving.cancelled()
    assert [event["lease_id"] for event in hand.log("LeaseReleased")] == [request["lease_id"]]
    assert sessions(hand) == {}


async def test_closing_takes_a_few_seconds_at_most_when_redis_is_gone(
    server: RealServer, hand: HandScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuboss.client.session.CLOSE_S", 0.2)
    begun_s = 0.0
    async with GPUBoss(server.url, "painter") as boss:
        holding = asyncio.create_task(boss.acquire(vram_gb=8))
        hand.grant(await hand.hear("LeaseRequested"))
        await holding
        server.kill()
        begun_s = time.monotonic()
    assert time.monotonic() - begun_s < 2


async def test_a_closed_client_asks_nothing_and_can_be_opened_again(server: RealServer, hand: HandScheduler) -> None:
    boss = GPUBoss(server.url, "painter")
    with pytest.raises(Exception, match=r"not open; expected `async with"):
        await boss.acquire(vram_gb=8)
    async with boss:
        with pytest.raises(Exception, match="open already"):
            async with boss:
                pass
    with pytest.raises(Exception, match="this client is closed"):
        await boss.acquire(vram_gb=8)
    async with boss:
        waiting = asyncio.create_task(boss.acquire(vram_gb=8))
        hand.grant(await hand.hear("LeaseRequested"))
        await waiting


async def test_a_request_that_looks_for_a_leader_is_told_at_once_when_the_client_is_closed(
    server: RealServer, hand: HandScheduler
) -> None:
    async with GPUBoss(server.url, "painter") as boss:
        hand.resign()
        boss._open_session().heartbeat.ring()
        await until("the resignation to be seen", lambda: not boss._open_session().heartbeat._leadership.is_there(0))
        asking = asyncio.create_task(boss.acquire(vram_gb=8))
        await anyio.lowlevel.checkpoint()
    with anyio.fail_after(0.5), pytest.raises(GPUBossError, match="this client is closed"):
        await asking


async def test_it_may_be_closed_by_another_task_than_opened_it(server: RealServer, hand: HandScheduler) -> None:
    boss = GPUBoss(server.url, "painter")
    await asyncio.create_task(boss.__aenter__())
    assert len(sessions(hand)) == 1
    await asyncio.create_task(boss.__aexit__(None, None, None))
    assert sessions(hand) == {}


async def test_a_bug_in_a_task_is_told_to_everybody(
    boss: GPUBoss, hand: HandScheduler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = asyncio.create_task(boss.acquire(vram_gb=8))
    request = await hand.hear("LeaseRequested")

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("gpuboss.client.mailbox.take", broken)
    hand.grant(request)
    with anyio.fail_after(5), pytest.raises(Exception, match=r"because of a bug in it.*a bug"):
        await waiting
    with pytest.raises(Exception, match="because of a bug in it"):
        await boss.acquire(vram_gb=8)
    assert "ZeroDivisionError" in caplog.text
