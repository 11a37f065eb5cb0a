"""A resident model and a scheduler that is played by hand: nothing is used before it is answered that it may be."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gpuboss import GPUBoss, LeaseLost, Resident, SchedulerUnavailable
from tests.client.by_hand import HandScheduler, until
from tests.client.residents import Card, Model, use, use_until_ended
from tests.real.servers import RealServer

TTL_S = 1.5


@pytest.fixture
async def boss(server: RealServer, hand: HandScheduler) -> AsyncIterator[GPUBoss]:
    async with GPUBoss(server.url, "painter") as boss:
        yield boss


class Play:
    """One use of a resident after the other, and what the scheduler answers."""

    def __init__(self, hand: HandScheduler, resident: Resident[Model]) -> None:
        self.hand = hand
        self.resident = resident

    async def first_use(self) -> dict[str, Any]:
        """Up to the moment where it is said that the lease is idle; returns the request."""
        using = asyncio.create_task(use(self.resident))
        request = await self.hand.hear("LeaseRequested")
        assert request["reclaimable"] is True
        self.hand.grant(request)
        await using
        await self.hand.hear("LeaseIdled")
        return request

    async def is_idle(self, request: dict[str, Any]) -> None:
        self.hand.say("LeaseStateChanged", request, state="idle")
        await until("the answer", lambda: self.resident.lease is not None and self.resident.lease.is_idle)


@pytest.fixture
def play(hand: HandScheduler, resident: Resident[Model]) -> Play:
    return Play(hand, resident)


def released(hand: HandScheduler) -> list[str]:
    return [event["lease_id"] for event in hand.log("LeaseReleased")]


async def test_an_idle_model_is_not_used_before_it_is_answered(hand: HandScheduler, play: Play, card: Card) -> None:
    request = await play.first_use()
    await play.is_idle(request)
    using = asyncio.create_task(use(play.resident))
    await hand.hear("LeaseResumed")
    await asyncio.sleep(0.05)
    assert not using.done()
    hand.say("LeaseStateChanged", request, state="held")
    await using
    assert card.loads == 1


async def test_whoever_comes_before_idling_is_answered_waits_for_the_answer_to_resuming(
    hand: HandScheduler, play: Play, card: Card
) -> None:
    request = await play.first_use()
    using = asyncio.create_task(use(play.resident))
    await hand.hear("LeaseResumed")
    hand.say("LeaseStateChanged", request, state="idle")
    await asyncio.sleep(0.05)
    assert not using.done()
    hand.say("LeaseStateChanged", request, state="held")
    await using
    assert card.loads == 1


async def test_what_was_asked_back_before_it_was_resumed_is_loaded_again_on_another_lease(
    hand: HandScheduler, play: Play, card: Card
) -> None:
    request = await play.first_use()
    await play.is_idle(request)
    using = asyncio.create_task(use(play.resident))
    await hand.hear("LeaseResumed")
    hand.say("EventRejected", request, event_id="1-1", reason="yielding", detail="it is asked back")
    other = await hand.hear("LeaseRequested")
    assert (card.unloads, released(hand)) == (1, [request["lease_id"]])
    hand.grant(other)
    await using
    assert card.loads == 2


async def test_asked_back_before_idling_is_answered_it_is_unloaded(hand: HandScheduler, play: Play, card: Card) -> None:
    request = await play.first_use()
    hand.say("YieldRequested", request, deadline_ms=65_000)
    await until("the release", lambda: released(hand) == [request["lease_id"]])
    assert card.models == []


async def test_whoever_is_cancelled_while_it_resumes_leaves_it_idle(
    hand: HandScheduler, play: Play, card: Card
) -> None:
    request = await play.first_use()
    await play.is_idle(request)
    using = asyncio.create_task(use(play.resident))
    await hand.hear("LeaseResumed")
    using.cancel()
    await hand.hear("LeaseIdled")
    hand.say("LeaseStateChanged", request, state="held")
    hand.say("LeaseStateChanged", request, state="idle")
    again = asyncio.create_task(use(play.resident))
    await hand.hear("LeaseResumed")
    hand.say("LeaseStateChanged", request, state="held")
    await again
    assert card.loads == 1


async def test_that_it_is_idle_is_said_until_it_is_answered(
    hand: HandScheduler, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuboss.client.dealings.ANSWER_S", 0.05)
    monkeypatch.setattr("gpuboss.client.keeper.IDLE_AGAIN_S", 0.05)
    request = await play.first_use()
    await hand.hear("LeaseIdled")
    monkeypatch.setattr("gpuboss.client.dealings.ANSWER_S", 10)
    said = len(hand.log("LeaseIdled"))
    await until("one that is patient", lambda: len(hand.log("LeaseIdled")) > said)
    for _ in hand.log("LeaseIdled"):
        await play.is_idle(request)
    said = len(hand.log("LeaseIdled"))
    await asyncio.sleep(0.3)
    assert len(hand.log("LeaseIdled")) == said


async def test_whoever_gets_no_answer_is_told_so_and_the_model_stays(
    hand: HandScheduler, play: Play, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = await play.first_use()
    await play.is_idle(request)
    with monkeypatch.context() as impatient:
        impatient.setattr("gpuboss.client.dealings.ANSWER_S", 0.05)
        with pytest.raises(SchedulerUnavailable, match="do not use its model"):
            await use(play.resident)
    assert len(card.models) == 1
    await hand.hear("LeaseIdled")
    again = asyncio.create_task(use(play.resident))
    await until("it to be asked for again", lambda: len(hand.log("LeaseResumed")) == 2)
    for state in ("idle", "held"):
        hand.say("LeaseStateChanged", request, state=state)
    await again
    assert card.loads == 1


@pytest.mark.parametrize("when", ["used", "idle"])
async def test_in_an_outage_it_is_given_up_before_the_session_can_be_dead(
    server: RealServer, hand: HandScheduler, card: Card, when: str
) -> None:
    hand.lead(session_ttl_ms=int(TTL_S * 1000))
    using: asyncio.Task[None] | None = None
    async with GPUBoss(server.url, "painter") as boss:
        play = Play(hand, boss.resident(load=card.load, unload=card.unload, vram_gb=8))
        request = await play.first_use()
        await play.is_idle(request)
        if when == "used":
            using = asyncio.create_task(use_until_ended(play.resident))
            await hand.hear("LeaseResumed")
            hand.say("LeaseStateChanged", request, state="held")
            await until("the use", lambda: play.resident._keeper.users.using)
        server.pause()
        try:
            await until("the model to be unloaded", lambda: not card.models, deadline_s=TTL_S)
        finally:
            server.resume()
        if using is not None:
            with pytest.raises(LeaseLost, match="session_lost"):
                await using
        await until("the release of what was given up", lambda: released(hand) == [request["lease_id"]])
