"""Idling and resuming a lease by hand: what is asked, when it is so, and what is told where it is not."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from gpuboss import ConfigError, GPUBoss, GPUBossError, Lease, LeaseDenied, LeaseLost, SchedulerUnavailable
from gpuboss.client.desk import Ask, reassertions
from gpuboss.events import LeaseReasserted
from tests.client.by_hand import HandScheduler, until
from tests.client.clerk import Clerk
from tests.client.platforms import Platform
from tests.real.servers import RealServer


@pytest.fixture
async def boss(server: RealServer, hand: HandScheduler) -> AsyncIterator[GPUBoss]:
    async with GPUBoss(server.url, "painter") as boss:
        yield boss


@pytest.fixture
async def lease(boss: GPUBoss, hand: HandScheduler) -> Lease:
    """A reclaimable one."""
    acquiring = asyncio.create_task(boss.acquire(vram_gb=8, reclaimable=True))
    hand.grant(await hand.hear("LeaseRequested"))
    return await acquiring


def to(boss: GPUBoss, lease: Lease) -> dict[str, Any]:
    return {"lease_id": lease.lease_id, "session": boss._open_session().desk.session}


async def test_a_lease_is_idle_once_the_scheduler_says_so(boss: GPUBoss, hand: HandScheduler, lease: Lease) -> None:
    idling = asyncio.create_task(lease.idle(reload_ms=12_000))
    asked = await hand.hear("LeaseIdled")
    assert (asked["lease_id"], asked["service"], asked["reload_ms"]) == (lease.lease_id, "painter", 12_000)
    assert not lease.is_idle
    assert not idling.done()
    hand.say("LeaseStateChanged", to(boss, lease), state="idle")
    await idling
    assert lease.is_idle


async def test_it_is_used_again_once_the_scheduler_says_so(boss: GPUBoss, hand: HandScheduler, lease: Lease) -> None:
    lease.is_idle = True
    resuming = asyncio.create_task(lease.resume(reload_ms=9))
    assert (await hand.hear("LeaseResumed"))["reload_ms"] == 9
    assert not resuming.done()
    hand.say("LeaseStateChanged", to(boss, lease), state="held")
    await resuming
    assert not lease.is_idle


async def test_what_was_asked_back_meanwhile_cannot_be_resumed(
    boss: GPUBoss, hand: HandScheduler, lease: Lease
) -> None:
    resuming = asyncio.create_task(lease.resume())
    await hand.hear("LeaseResumed")
    hand.say("EventRejected", to(boss, lease), event_id="1-1", reason="yielding", detail="it is asked back")
    with pytest.raises(LeaseDenied) as denied:
        await resuming
    assert denied.value.reason == "yielding"
    assert not lease.is_lost


async def test_what_is_known_to_be_asked_back_is_not_even_asked_for(
    boss: GPUBoss, hand: HandScheduler, lease: Lease
) -> None:
    hand.say("YieldRequested", to(boss, lease), deadline_ms=65_000)
    await lease.wait_asked_back()
    for change in (lease.idle, lease.resume):
        with pytest.raises(LeaseDenied, match=r"yielding.*unload and release"):
            await change()
    assert hand.log("LeaseIdled") == hand.log("LeaseResumed") == []


async def test_only_a_reclaimable_lease_can_be_idle(boss: GPUBoss, hand: HandScheduler) -> None:
    acquiring = asyncio.create_task(boss.acquire(vram_gb=8))
    hand.grant(await hand.hear("LeaseRequested"))
    lease = await acquiring
    with pytest.raises(ConfigError, match="reclaimable=True"):
        await lease.idle()
    assert hand.log("LeaseIdled") == []


@pytest.mark.parametrize("reload_ms", [-1, 1.5, "soon", 2**60])
async def test_the_cost_is_whole_milliseconds(hand: HandScheduler, lease: Lease, reload_ms: Any) -> None:
    with pytest.raises(ConfigError, match="reload_ms"):
        await lease.idle(reload_ms=reload_ms)
    assert hand.log("LeaseIdled") == []


async def test_a_lease_that_is_lost_is_told_so(boss: GPUBoss, hand: HandScheduler, lease: Lease) -> None:
    idling = asyncio.create_task(lease.idle())
    await hand.hear("LeaseIdled")
    hand.end(to(boss, lease), "revoked")
    with pytest.raises(LeaseLost, match="revoked"):
        await idling
    with pytest.raises(LeaseLost, match="revoked"):
        await lease.resume()
    assert hand.log("LeaseResumed") == []


async def test_a_lease_that_was_released_is_not_idled(boss: GPUBoss, hand: HandScheduler, lease: Lease) -> None:
    await boss.release(lease)
    with pytest.raises(GPUBossError, match="was released"):
        await lease.idle()
    assert hand.log("LeaseIdled") == []


async def test_without_an_answer_it_is_not_known(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuboss.client.dealings.ANSWER_S", 0.05)
    with pytest.raises(SchedulerUnavailable, match="do not use its model"):
        await lease.resume()


async def test_without_a_gpu_every_lease_may_be_idle(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("gpu: {enabled: false}")
    async with GPUBoss.from_config(config, service="painter") as boss:
        lease = await boss.acquire(vram_gb=8)
        await lease.idle()
        assert lease.is_idle
        await lease.resume()
        assert not lease.is_idle


# ---------------------------------------------------------------- on a real scheduler


async def test_the_real_scheduler_shows_it_and_asks_it_back_only_once(platform: Platform) -> None:
    async with GPUBoss(platform.url, "painter") as boss:
        lease = await boss.acquire(vram_gb=8, reclaimable=True)
        await lease.idle(reload_ms=500)
        assert platform.leases()[lease.lease_id]["state"] == "idle"
        await lease.resume()
        assert platform.leases()[lease.lease_id]["state"] == "held"
        await lease.idle()
        platform.revoke(lease.lease_id, grace_ms=60_000)
        with pytest.raises(LeaseDenied, match="yielding"):
            await lease.resume()
        with anyio.fail_after(5):
            await lease.wait_asked_back()
        await boss.release(lease)
        await until("its end", lambda: platform.log("LeaseEnded"))
        assert [ended["reason"] for ended in platform.log("LeaseEnded")][-1] == "yielded"


# ---------------------------------------------------------------- the desk


def test_answers_go_to_whoever_asked_for_that(clerk: Clerk) -> None:
    clerk.hold("lease-01")
    told: list[str] = []
    clerk.desk.held["lease-01"].asked += [
        Ask("extended", lambda _: told.append("a renewal")),
        Ask("idle", lambda _: told.append("idle")),
        Ask("held", lambda _: told.append("held")),
    ]
    clerk.hear("LeaseStateChanged", lease_id="lease-01", cause="5-1", state="idle")  # the renewal's answer was missed
    assert told == ["idle"]
    clerk.hear("LeaseStateChanged", lease_id="lease-01", cause="5-1", state="idle")  # read again
    clerk.hear("LeaseStateChanged", lease_id="lease-01", cause="5-2", state="idle")  # the same, sent twice
    assert told == ["idle"]
    clerk.hear("LeaseStateChanged", lease_id="lease-01", cause="5-3", state="held")
    assert told == ["idle", "held"]
    assert clerk.desk.held["lease-01"].asked == [], "a later renewal gets an answer of its own"


def test_an_older_answer_that_is_read_again_changes_no_state(clerk: Clerk) -> None:
    lease = clerk.hold("lease-01")
    clerk.hear("LeaseStateChanged", lease_id="lease-01", cause="5-1", state="idle")
    clerk.hear("LeaseStateChanged", lease_id="lease-01", cause="5-2", state="held")
    clerk.hear("LeaseStateChanged", lease_id="lease-01", cause="5-1", state="idle")
    assert not lease.is_idle


def test_a_state_of_a_later_version_is_none_that_we_know(clerk: Clerk) -> None:
    lease = clerk.hold("lease-01")
    clerk.hear("LeaseStateChanged", lease_id="lease-01", cause="5-1", state="idle")
    clerk.hear("LeaseStateChanged", lease_id="lease-01", cause="5-2", state="frozen")
    assert lease.is_idle


def test_a_new_log_is_told_what_is_idle_and_what_may_be_or_asked_back(clerk: Clerk) -> None:
    clerk.ask("lease-01", reclaimable=True)
    clerk.ask("lease-02", reclaimable=True)
    clerk.ask("lease-03", preemptible=False)
    for lease_id in ("lease-01", "lease-02", "lease-03"):
        clerk.grant(lease_id, vram_mib=8192)
    clerk.hear("LeaseStateChanged", lease_id="lease-01", cause="5-1", state="idle")
    said = [event for event in reassertions(clerk.desk) if isinstance(event, LeaseReasserted)]
    assert [(event.state, event.reclaimable) for event in said] == [("idle", True), ("held", True), ("held", False)]
    assert [event.preemptible for event in said] == [True, True, False]
