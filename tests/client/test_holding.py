"""Holding: what the body of a lease lives through until it is over, and what is told to the log."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import pytest

from gpuboss import ConfigError, Device, GPUBoss, Lease, LeaseDenied, LeaseLost, SchedulerUnavailable
from tests.client.by_hand import HandScheduler, until, until_ended
from tests.real.servers import RealServer


@pytest.fixture
async def boss(server: RealServer, hand: HandScheduler) -> AsyncIterator[GPUBoss]:
    async with GPUBoss(server.url, "painter") as boss:
        yield boss


async def acquired(boss: GPUBoss, hand: HandScheduler, wish: dict[str, Any] | None = None, **grant: Any) -> Lease:
    """A lease by `acquire`, granted by hand."""
    acquiring = asyncio.create_task(boss.acquire(**wish or {"vram_gb": 8}))
    hand.grant(await hand.hear("LeaseRequested"), **grant)
    return await acquiring


class Granted:
    """`boss.lease()`, granted by hand."""

    def __init__(self, boss: GPUBoss, hand: HandScheduler, **grant: Any) -> None:
        self.boss, self.hand, self.grant = boss, hand, grant
        self.block: AbstractAsyncContextManager[Device] = boss.lease(vram_gb=8)
        self.request: dict[str, Any] = {}

    async def __aenter__(self) -> Device:
        granting = asyncio.create_task(self._grant())  # a group here would be left after the block was entered
        device = await self.block.__aenter__()
        await granting
        return device

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self.block.__aexit__(*error)

    async def _grant(self) -> None:
        self.request = await self.hand.hear("LeaseRequested")
        self.hand.grant(self.request, **self.grant)


def released(hand: HandScheduler) -> list[str]:
    return [event["lease_id"] for event in hand.log("LeaseReleased")]


# ---------------------------------------------------------------- lease()


@pytest.mark.usefixtures("slow_writes")
async def test_the_block_gets_the_device_and_gives_the_lease_back(boss: GPUBoss, hand: HandScheduler) -> None:
    async with Granted(boss, hand, device="cuda:1") as device:
        assert device == "cuda:1"
        assert device.lease.device == "cuda:1"
        assert released(hand) == []
    assert released(hand) == [device.lease.lease_id]


async def test_an_exception_in_the_body_gives_the_lease_back_and_goes_on(boss: GPUBoss, hand: HandScheduler) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Granted(boss, hand) as device:
            _ = 1 / 0
    assert released(hand) == [device.lease.lease_id]


@pytest.mark.usefixtures("slow_writes")
async def test_a_cancelled_body_gives_the_lease_back(boss: GPUBoss, hand: HandScheduler) -> None:
    with anyio.CancelScope() as scope:
        async with Granted(boss, hand) as device:
            scope.cancel()
            await until_ended()
    assert scope.cancelled_caught
    assert released(hand) == [device.lease.lease_id]


@pytest.mark.parametrize("reason", ["revoked", "expired", "session_lost", "device_lost", "released"])
async def test_a_lost_lease_cancels_the_body_and_raises(boss: GPUBoss, hand: HandScheduler, reason: str) -> None:
    was_cancelled = False
    with pytest.raises(LeaseLost) as error:
        async with (granted := Granted(boss, hand)) as device:
            hand.end(granted.request, reason)
            try:
                await until_ended()
            finally:
                was_cancelled = True
    assert was_cancelled
    assert (error.value.lease_id, error.value.reason) == (device.lease.lease_id, reason)
    assert device.lease.is_lost
    assert released(hand) == []


async def test_a_body_in_a_task_group_is_cancelled_whole(boss: GPUBoss, hand: HandScheduler) -> None:
    with pytest.raises(LeaseLost):
        async with (granted := Granted(boss, hand)), asyncio.TaskGroup() as tasks:
            tasks.create_task(until_ended())
            hand.end(granted.request, "revoked")
            await until_ended()


async def test_a_body_that_does_not_notice_is_told_at_its_end(boss: GPUBoss, hand: HandScheduler) -> None:
    with pytest.raises(LeaseLost):
        async with (granted := Granted(boss, hand)) as device:
            hand.end(granted.request, "revoked")
            with anyio.CancelScope(shield=True):
                await device.lease.wait_lost()


async def test_the_bodys_own_exception_is_not_hidden_by_the_loss(boss: GPUBoss, hand: HandScheduler) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        async with (granted := Granted(boss, hand)) as device:
            hand.end(granted.request, "revoked")
            with anyio.CancelScope(shield=True):
                await device.lease.wait_lost()
            raise RuntimeError("CUDA out of memory")


async def test_after_a_loss_the_task_goes_on_as_if_never_cancelled(boss: GPUBoss, hand: HandScheduler) -> None:
    with pytest.raises(LeaseLost):
        async with (granted := Granted(boss, hand)):
            hand.end(granted.request, "revoked")
            await until_ended()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    async with Granted(boss, hand) as device:
        await anyio.sleep(0)
    assert not device.lease.is_lost


async def test_a_cancellation_from_outside_wins_over_the_loss(boss: GPUBoss, hand: HandScheduler) -> None:
    async def body() -> None:
        async with (granted := Granted(boss, hand)) as device:
            task = asyncio.current_task()
            assert task is not None
            device.lease.when_lost(task.cancel)
            hand.end(granted.request, "revoked")
            await until_ended()

    task = asyncio.create_task(body())
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_lease_with_a_ttl_ends_by_our_own_clock_when_the_scheduler_is_mute(
    boss: GPUBoss, hand: HandScheduler
) -> None:
    with pytest.raises(LeaseLost) as error:
        async with Granted(boss, hand, now_ms=50_000, expires_at_ms=50_080):
            await until_ended()
    assert error.value.reason == "expired"


# ---------------------------------------------------------------- acquire() and release()


async def test_a_lease_knows_what_it_is(boss: GPUBoss, hand: HandScheduler) -> None:
    lease = await acquired(boss, hand, device="cuda:1", fence=42, expires_at_ms=99_000)
    [request] = hand.log("LeaseRequested")
    assert str(lease) == lease.lease_id == request["lease_id"]
    assert (lease.device, lease.devices, lease.uuids) == ("cuda:1", ["cuda:1"], ["GPU-11111111"])
    assert (lease.node, lease.vram_mib, lease.expires_at_ms, lease.fence) == ("node-a", 8192, 99_000, 42)


@pytest.mark.parametrize("by_id", [False, True])
async def test_a_lease_is_given_back_by_itself_or_by_its_id(boss: GPUBoss, hand: HandScheduler, by_id: bool) -> None:
    lease = await acquired(boss, hand)
    await boss.release(str(lease) if by_id else lease)
    assert hand.log("LeaseReleased")[0].items() >= {"lease_id": lease.lease_id, "service": "painter"}.items()


async def test_a_lease_of_another_process_of_the_service_can_be_given_back(boss: GPUBoss, hand: HandScheduler) -> None:
    await boss.release("of-another-process")
    assert released(hand) == ["of-another-process"]


async def test_giving_back_twice_is_as_good_as_once(boss: GPUBoss, hand: HandScheduler) -> None:
    lease = await acquired(boss, hand)
    await boss.release(lease)
    await boss.release(lease)
    assert released(hand) == [lease.lease_id]
    assert not lease.is_lost


async def test_a_lost_lease_is_told_and_its_release_does_nothing(boss: GPUBoss, hand: HandScheduler) -> None:
    lease = await acquired(boss, hand)
    hand.end({"lease_id": lease.lease_id, "session": boss._open_session().desk.session}, "revoked")
    with anyio.fail_after(5):
        assert await lease.wait_lost() == "revoked"
        assert await lease.wait_lost() == "revoked"
    assert (lease.is_lost, lease.lost_reason) == (True, "revoked")
    await boss.release(lease)
    assert released(hand) == []


async def test_a_lease_that_is_asked_back_says_until_when(boss: GPUBoss, hand: HandScheduler) -> None:
    lease = await acquired(boss, hand)
    asked = asyncio.create_task(lease.wait_asked_back())
    to = {"lease_id": lease.lease_id, "session": boss._open_session().desk.session}
    before_s = anyio.current_time()
    hand.say("YieldRequested", to, now_ms=50_000, deadline_ms=65_000)
    with anyio.fail_after(5):
        deadline = await asked
    assert lease.deadline == deadline
    assert before_s + 15 <= deadline <= anyio.current_time() + 15
    assert not lease.is_lost


# ---------------------------------------------------------------- renew()


async def test_a_renewal_moves_the_end(boss: GPUBoss, hand: HandScheduler) -> None:
    lease = await acquired(boss, hand, now_ms=50_000, expires_at_ms=50_100)
    renewing = asyncio.create_task(boss.renew(lease, ttl=60))
    asked = await hand.hear("LeaseRenewed")
    assert (asked["lease_id"], asked["ttl_ms"]) == (lease.lease_id, 60_000)
    to = {"lease_id": lease.lease_id, "session": boss._open_session().desk.session}
    hand.say("LeaseExtended", to, now_ms=50_010, expires_at_ms=110_010)
    await renewing
    assert lease.expires_at_ms == 110_010
    with anyio.move_on_after(0.2):
        await lease.wait_lost()
    assert not lease.is_lost


async def test_a_refused_renewal_says_why_and_the_lease_goes_on(boss: GPUBoss, hand: HandScheduler) -> None:
    lease = await acquired(boss, hand, expires_at_ms=99_000)
    renewing = asyncio.create_task(boss.renew(str(lease), ttl=60))
    await hand.hear("LeaseRenewed")
    to = {"lease_id": lease.lease_id, "session": boss._open_session().desk.session}
    hand.say("EventRejected", to, event_id="1-1", reason="reserved", detail="lease b waits for cuda:0")
    with pytest.raises(LeaseDenied, match=r"reserved.*lease b waits"):
        await renewing
    assert not lease.is_lost
    assert lease.expires_at_ms == 99_000


async def test_a_lease_that_is_over_cannot_be_renewed(boss: GPUBoss, hand: HandScheduler) -> None:
    lease = await acquired(boss, hand)
    renewing = asyncio.create_task(boss.renew(lease, ttl=60))
    await hand.hear("LeaseRenewed")
    hand.end({"lease_id": lease.lease_id, "session": boss._open_session().desk.session}, "revoked")
    with pytest.raises(LeaseLost):
        await renewing
    with pytest.raises(LeaseLost):
        await boss.renew(lease, ttl=60)
    assert len(hand.log("LeaseRenewed")) == 1


async def test_a_renewal_without_an_answer_is_given_up(
    boss: GPUBoss, hand: HandScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuboss.client.dealings.ANSWER_S", 0.05)
    lease = await acquired(boss, hand)
    with pytest.raises(SchedulerUnavailable, match="no answer to the renewal"):
        await boss.renew(lease, ttl=60)


@pytest.mark.parametrize("ttl", [0, -1, "soon", None])
async def test_a_renewal_needs_a_time(boss: GPUBoss, hand: HandScheduler, ttl: Any) -> None:
    with pytest.raises(ConfigError, match="ttl"):
        await boss.renew("some-lease-id", ttl=ttl)


# ---------------------------------------------------------------- CUDA_VISIBLE_DEVICES


@pytest.mark.parametrize("visible", ["1,0", "GPU-1111,GPU-0000"])
async def test_the_device_is_the_processs_own_ordinal(
    boss: GPUBoss, hand: HandScheduler, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    async with Granted(boss, hand, device="cuda:1") as device:
        assert device == "cuda:0"
        assert device.lease.device == "cuda:1"


async def test_a_device_that_the_process_cannot_see_is_given_back(
    boss: GPUBoss, hand: HandScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ConfigError, match=r"cuda:1 \(GPU-11111111\).*CUDA_VISIBLE_DEVICES='0'"):
        async with Granted(boss, hand, device="cuda:1"):
            pytest.fail("the body must not run")
    await until("the release", lambda: len(released(hand)) == 1)
