"""Asking and waiting: every way in which a wait can end, and that none of them leaves anything behind."""

import asyncio

import anyio
import pytest

from gpuboss import GPUBoss, LeaseDenied, LeaseImpossible, LeaseLost, LeaseTimeout
from gpuboss.client.answers import take
from gpuboss.client.desk import Desk
from gpuboss.client.replies import Reply
from tests.client.by_hand import HandScheduler, until
from tests.real.servers import RealServer

type_of_cancel = pytest.mark.parametrize("how", ["task", "timeout", "scope"])


@pytest.fixture
def boss(server: RealServer, hand: HandScheduler) -> GPUBoss:
    return GPUBoss(server.url, "painter")


async def wait_and_give_up(boss: GPUBoss, how: str, given_up: anyio.Event) -> None:
    """Wait for a lease until `given_up`, and then be cancelled in one of the ways in which that happens."""
    if how == "scope":
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def cancel() -> None:
                    await given_up.wait()
                    scope.cancel()

                tasks.start_soon(cancel)
                await boss.acquire(vram_gb=8)
        assert scope.cancelled_caught
        return
    waiting = asyncio.create_task(boss.acquire(vram_gb=8))
    await given_up.wait()
    if how == "task":
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    else:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiting, 0)


async def test_a_request_says_who_asks_and_what_for(boss: GPUBoss, hand: HandScheduler) -> None:
    async with boss, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: boss.acquire(vram_gb=8, priority="high", wait_timeout=30))
        request = await hand.hear("LeaseRequested")
        assert request["service"] == "painter"
        assert (request["vram_mib"], request["priority"], request["wait_ms"]) == (8192, "high", 30_000)
        assert f"painter/{request['session']}".encode() in hand.redis.zrange(hand.keys.sessions, 0, -1)
        hand.grant(request)


@type_of_cancel
async def test_a_cancelled_wait_leaves_no_request_behind(boss: GPUBoss, hand: HandScheduler, how: str) -> None:
    async with boss, anyio.create_task_group() as tasks:
        given_up = anyio.Event()
        tasks.start_soon(wait_and_give_up, boss, how, given_up)
        request = await hand.hear("LeaseRequested")
        given_up.set()
        assert (await hand.hear("LeaseReleased"))["lease_id"] == request["lease_id"]


@type_of_cancel
@pytest.mark.usefixtures("slow_writes")
async def test_a_cancelled_wait_is_over_when_the_request_is_taken_back(
    boss: GPUBoss, hand: HandScheduler, how: str
) -> None:
    async with boss:
        given_up = anyio.Event()
        waiting = asyncio.create_task(wait_and_give_up(boss, how, given_up))
        request = await hand.hear("LeaseRequested")
        given_up.set()
        await waiting
        assert [event["lease_id"] for event in hand.log("LeaseReleased")] == [request["lease_id"]]


@type_of_cancel
async def test_a_grant_that_races_a_cancellation_is_released_once(boss: GPUBoss, hand: HandScheduler, how: str) -> None:
    async with boss:
        async with anyio.create_task_group() as tasks:
            given_up = anyio.Event()
            tasks.start_soon(wait_and_give_up, boss, how, given_up)
            request = await hand.hear("LeaseRequested")
            hand.grant(request)  # it is in the stream, and unread, when the wait is given up
            given_up.set()
        async with anyio.create_task_group() as tasks:  # what was read until here has been read
            tasks.start_soon(lambda: boss.acquire(vram_gb=1))
            hand.grant(await hand.hear("LeaseRequested"))
        assert [event["lease_id"] for event in hand.log("LeaseReleased")] == [request["lease_id"]]


async def test_a_cancellation_just_after_the_grant_was_read_releases_it(boss: GPUBoss, hand: HandScheduler) -> None:
    async with boss:
        session = boss._open_session()
        waiting = asyncio.create_task(boss.acquire(vram_gb=8))
        request = await hand.hear("LeaseRequested")
        told = session.desk.waiting[request["lease_id"]].tell
        # In one and the same turn of the loop: the answer is read, then the task is cancelled.
        cancelling = session.desk.waiting[request["lease_id"]]
        session.desk.waiting[request["lease_id"]] = type(cancelling)(
            cancelling.request, lambda outcome: (told(outcome), waiting.cancel())[0]
        )
        hand.grant(request)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert [event["lease_id"] for event in hand.log("LeaseReleased")] == [request["lease_id"]]


async def test_no_room_in_time_is_a_timeout(boss: GPUBoss, hand: HandScheduler) -> None:
    async with boss:
        waiting = asyncio.create_task(boss.acquire(vram_gb=8, wait_timeout=30))
        hand.deny(await hand.hear("LeaseRequested"), "timeout", "no room within 30000 ms")
        with pytest.raises(LeaseTimeout, match="no room within 30000 ms"):
            await waiting
        assert hand.log("LeaseReleased") == []


async def test_an_answer_that_never_comes_is_a_timeout_too_and_the_request_taken_back(
    boss: GPUBoss, hand: HandScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuboss.client.dealings.ANSWER_MARGIN_S", 0.05)
    async with boss:
        with pytest.raises(LeaseTimeout) as error:
            await boss.acquire(vram_gb=8, wait_timeout=0.05)
        assert [event["lease_id"] for event in hand.log("LeaseReleased")] == [error.value.lease_id]


@pytest.mark.parametrize(("reason", "kind"), [("impossible", LeaseImpossible), ("quota", LeaseDenied)])
async def test_a_denial_has_its_reason_and_the_numbers(
    boss: GPUBoss, hand: HandScheduler, reason: str, kind: type[LeaseDenied]
) -> None:
    async with boss:
        waiting = asyncio.create_task(boss.acquire(vram_gb=80))
        request = await hand.hear("LeaseRequested")
        hand.deny(request, reason, "the largest device has 24576 MiB")
        with pytest.raises(kind, match="the largest device has 24576 MiB") as error:
            await waiting
        assert (error.value.lease_id, error.value.reason) == (request["lease_id"], reason)


async def test_a_rejected_request_is_denied(boss: GPUBoss, hand: HandScheduler) -> None:
    async with boss:
        waiting = asyncio.create_task(boss.acquire(vram_gb=8))
        hand.say("EventRejected", await hand.hear("LeaseRequested"), reason="invalid", detail="no such thing")
        with pytest.raises(LeaseDenied, match=r"invalid.*no such thing"):
            await waiting


async def test_a_waiting_request_can_be_taken_back_by_its_id(boss: GPUBoss, hand: HandScheduler) -> None:
    async with boss:
        waiting = asyncio.create_task(boss.acquire(vram_gb=8))
        request = await hand.hear("LeaseRequested")
        await boss.release(request["lease_id"])
        assert (await hand.hear("LeaseReleased"))["lease_id"] == request["lease_id"]
        hand.deny(request, "cancelled")
        with pytest.raises(LeaseDenied, match="cancelled"):
            await waiting


async def test_a_grant_of_our_session_that_nobody_waits_for_is_released(boss: GPUBoss, hand: HandScheduler) -> None:
    async with boss:
        lease = asyncio.create_task(boss.acquire(vram_gb=8))
        request = await hand.hear("LeaseRequested")
        hand.grant({"lease_id": "of-somebody-else", "session": "another-session"})
        hand.grant({"lease_id": "forgotten-lease", "session": request["session"]})
        hand.grant(request)
        await lease
        assert (await hand.hear("LeaseReleased"))["lease_id"] == "forgotten-lease"
        await boss.release(await lease)
        await until("our own release", lambda: len(hand.log("LeaseReleased")) == 2)


async def test_answers_that_were_there_before_us_are_not_read(
    boss: GPUBoss, hand: HandScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def spy(desk: Desk, kind: str, reply: Reply, now_s: float) -> None:
        read.append(reply.lease_id)
        take(desk, kind, reply, now_s)

    monkeypatch.setattr("gpuboss.client.mailbox.take", spy)
    hand.grant({"lease_id": "an-old-lease", "session": "old-session"})
    async with boss:
        lease = asyncio.create_task(boss.acquire(vram_gb=8))
        hand.grant(await hand.hear("LeaseRequested"))
        assert (await lease).lease_id in read
    assert "an-old-lease" not in read


async def test_a_grant_that_is_read_together_with_its_end_is_none(boss: GPUBoss, hand: HandScheduler) -> None:
    """As after a pause of the process: nobody may begin to use what was given to somebody else meanwhile."""
    async with boss:
        waiting = asyncio.create_task(boss.acquire(vram_gb=8))
        request = await hand.hear("LeaseRequested")
        with hand.redis.pipeline(transaction=True) as both, pytest.MonkeyPatch.context() as patch:
            patch.setattr(hand, "redis", both)
            hand.grant(request)
            hand.end(request, "revoked")
            both.execute()
        with pytest.raises(LeaseLost, match="revoked"):
            await waiting


async def test_a_grant_of_what_cannot_be_an_id_stops_nobody_who_waits(boss: GPUBoss, hand: HandScheduler) -> None:
    async with boss, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: boss.acquire(vram_gb=8))
        request = await hand.hear("LeaseRequested")
        hand.grant(request | {"lease_id": "no id\n\x1b[2J"})
        assert (await hand.hear("LeaseReleased"))["lease_id"] == "no id\n\x1b[2J"  # the scheduler says what is wrong
        hand.grant(request)
