"""Redis is away, or refuses: who asks is told so in time, and who waits or holds bears with it for a while."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import anyio
import pytest

from gpuboss import GPUBoss, SchedulerUnavailable
from gpuboss.client.link import Full, Link, Outcome, Trouble
from tests.client.by_hand import HandScheduler, asked, hold, until
from tests.client.platforms import killed_and_back
from tests.real.servers import RealServer

Told = Callable[[list[Outcome] | Trouble], None]


@pytest.fixture
async def boss(server: RealServer, hand: HandScheduler) -> AsyncIterator[GPUBoss]:
    async with GPUBoss(server.url, "painter") as boss:
        yield boss


# ---------------------------------------------------------------- Redis away


async def test_redis_unreachable_is_said_within_the_time_given(tmp_path: Path) -> None:
    begun_s = time.monotonic()
    with pytest.raises(SchedulerUnavailable, match=r"no-server\.sock does not answer.*is it running"):
        async with GPUBoss(f"unix://{tmp_path}/no-server.sock", "painter", connect_timeout=0.3):
            pytest.fail("there is nothing to talk to")
    assert 0.2 < time.monotonic() - begun_s < 2


async def test_a_redis_that_hangs_is_said_within_the_time_given(server: RealServer) -> None:
    server.pause()
    begun_s = time.monotonic()
    with pytest.raises(SchedulerUnavailable, match="does not answer"):
        async with GPUBoss(server.tcp_url, "painter", connect_timeout=0.3):
            pytest.fail("there is nobody to talk to")
    assert time.monotonic() - begun_s < 2


async def test_a_redis_that_comes_up_in_time_is_waited_for(server: RealServer) -> None:
    server.kill()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, server.start)
        async with GPUBoss(server.url, "painter"):
            pass


async def test_those_who_wait_bear_with_an_outage_for_a_while_and_are_then_told(
    server: RealServer, hand: HandScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuboss.client.heartbeat.OUTAGE_S", 0.3)
    async with GPUBoss(server.url, "painter") as boss:
        waiting = asyncio.create_task(boss.acquire(vram_gb=8))
        request = await hand.hear("LeaseRequested")
        await anyio.to_thread.run_sync(server.kill)
        with anyio.fail_after(5), pytest.raises(SchedulerUnavailable, match="does not answer"):
            await waiting
        await anyio.to_thread.run_sync(server.start)
        hand.lead()
        assert (await hand.hear("LeaseReleased"))["lease_id"] == request["lease_id"]


async def test_an_outage_is_survived_by_those_who_wait_and_those_who_hold(
    server: RealServer, hand: HandScheduler
) -> None:
    async with GPUBoss(server.url, "painter") as boss:
        lease = await hold(boss, hand)
        waiting = asyncio.create_task(boss.acquire(vram_gb=8))
        request = await hand.hear("LeaseRequested")
        await anyio.to_thread.run_sync(killed_and_back, server)
        hand.grant(request)
        with anyio.fail_after(5):
            assert (await waiting).lease_id == request["lease_id"]
        assert not lease.is_lost
        await boss.release(lease)
        assert hand.log("LeaseReleased")[0]["lease_id"] == lease.lease_id


async def test_a_new_request_in_an_outage_is_refused_in_time_and_never_sent(
    server: RealServer, hand: HandScheduler
) -> None:
    async with GPUBoss(server.url, "painter", connect_timeout=0.3) as boss:
        held = await hold(boss, hand)
        await anyio.to_thread.run_sync(server.kill)
        await until("the loss to be noticed", lambda: boss._open_session().heartbeat._failure)
        begun_s = time.monotonic()
        with pytest.raises(SchedulerUnavailable, match="does not answer"):
            await boss.acquire(vram_gb=8)
        assert time.monotonic() - begun_s < 2
        await anyio.to_thread.run_sync(server.start)
        hand.lead()
        later = await hold(boss, hand) if await hand.hear("LeaseRequested") else None  # the held one comes again
        assert later is not None
    assert set(asked(hand)) == {held.lease_id, later.lease_id}


async def test_a_release_in_an_outage_is_delivered_afterwards(
    server: RealServer, hand: HandScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuboss.client.dealings.GIVE_BACK_S", 0.1)
    async with GPUBoss(server.url, "painter") as boss:
        lease = await hold(boss, hand)
        await anyio.to_thread.run_sync(server.kill)
        await boss.release(lease)
        await anyio.to_thread.run_sync(server.start)
        assert (await hand.hear("LeaseReleased"))["lease_id"] == lease.lease_id


# ---------------------------------------------------------------- Redis refuses


def restricted(hand: HandScheduler, *rules: str) -> None:
    hand.redis.execute_command("ACL", "SETUSER", "painter", "reset", "on", ">secret", "~*", "+@all", *rules)


def as_user(server: RealServer, password: str) -> str:
    return server.tcp_url.replace("redis://", f"redis://painter:{password}@")


async def test_a_wrong_password_is_said_at_once_and_not_shown(server: RealServer, hand: HandScheduler) -> None:
    restricted(hand)
    begun_s = time.monotonic()
    with pytest.raises(SchedulerUnavailable, match=r"refuses this client.*check the user and password") as error:
        async with GPUBoss(as_user(server, "wrong-password"), "painter"):
            pytest.fail("nobody may come in")
    assert "wrong-password" not in str(error.value)
    assert time.monotonic() - begun_s < 2


async def test_a_request_that_redis_refuses_is_said_at_once(server: RealServer, hand: HandScheduler) -> None:
    restricted(hand, "-xadd")
    async with GPUBoss(as_user(server, "secret"), "painter") as boss:
        with anyio.fail_after(2), pytest.raises(SchedulerUnavailable, match="Redis refuses the request"):
            await boss.acquire(vram_gb=8)


@pytest.mark.usefixtures("short_block")
async def test_a_reply_stream_of_the_wrong_type_is_waited_out(server: RealServer, hand: HandScheduler) -> None:
    async with GPUBoss(server.url, "painter") as boss:
        await hold(boss, hand)
        key = hand.keys.replies("painter")
        hand.redis.delete(key)
        hand.redis.set(key, "vandalism")
        waiting = asyncio.create_task(boss.acquire(vram_gb=8))
        request = await hand.hear("LeaseRequested")
        hand.redis.delete(key)
        hand.grant(request)
        with anyio.fail_after(5):
            await waiting


async def test_what_a_full_server_refuses_in_both_ways_is_tried_again_but_not_without_a_pause(
    boss: GPUBoss, hand: HandScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await hold(boss, hand)
    append = Link.append
    tried: list[bool] = []

    def full(self: Link, entries: Sequence[tuple[str, bytes, bool]], told: Told) -> bool:
        tried.append(entries[0][2])
        refused: list[Outcome] = [Full("MISCONF Errors writing to the AOF file") for _ in entries]
        asyncio.get_running_loop().call_soon(told, refused)
        return True

    monkeypatch.setattr(Link, "append", full)
    await boss.release(lease)  # returns after a while, and it is delivered later
    assert tried[:3] == [False, True, True]
    assert len(tried) < 20
    monkeypatch.setattr(Link, "append", append)
    await hand.hear("LeaseReleased")
