"""Lost connections, lost answers, lost logs: what is said again, and what is never done twice."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import anyio
import pytest

from gpuboss import GPUBoss
from gpuboss.client.link import Link, LinkLost, Outcome, Trouble
from tests.client.by_hand import HandScheduler, asked, hold, until
from tests.real.servers import RealServer

Told = Callable[[list[Outcome] | Trouble], None]


@pytest.fixture
async def boss(server: RealServer, hand: HandScheduler) -> AsyncIterator[GPUBoss]:
    async with GPUBoss(server.url, "painter") as boss:
        yield boss


def cut_connections(hand: HandScheduler) -> None:
    """Close the client's connections, the reading one too."""
    for connection in hand.redis.client_list():
        if connection["name"] == "gpuboss:painter":
            hand.redis.client_kill_filter(_id=connection["id"])


# ---------------------------------------------------------------- sending


async def test_a_write_whose_answer_was_lost_is_repeated_with_the_same_id(
    boss: GPUBoss, hand: HandScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Link.append
    losses = iter([True, True])

    def lossy(self: Link, entries: Sequence[tuple[str, bytes, bool]], told: Told) -> bool:
        lost = next(losses, False)
        return append(self, entries, lambda results: told(LinkLost("the answer was lost") if lost else results))

    monkeypatch.setattr(Link, "append", lossy)
    lease = await hold(boss, hand)
    await until("two repetitions", lambda: len(asked(hand)) == 3)
    assert set(asked(hand)) == {lease.lease_id}


async def test_of_a_batch_only_what_was_not_taken_is_repeated(
    boss: GPUBoss, hand: HandScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Link.append
    refusals = iter([True])

    def full(self: Link, entries: Sequence[tuple[str, bytes, bool]], told: Told) -> bool:
        if len(entries) > 1 and next(refusals, False):
            refused = [LinkLost("LOADING the server starts") for _ in entries[1:]]
            return append(
                self, entries[:1], lambda first: told([*first, *refused] if isinstance(first, list) else first)
            )
        return append(self, entries, told)

    monkeypatch.setattr(Link, "append", full)
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(lambda: boss.acquire(vram_gb=1))
        for _ in range(3):
            hand.grant(await hand.hear("LeaseRequested"))
    assert len(asked(hand)) == len(set(asked(hand))) == 3


async def test_what_gathers_meanwhile_goes_in_one_round_trip(
    boss: GPUBoss, hand: HandScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Link.append
    batches: list[int] = []

    def counting(self: Link, entries: Sequence[tuple[str, bytes, bool]], told: Told) -> bool:
        batches.append(len(entries))
        return append(self, entries, told)

    monkeypatch.setattr(Link, "append", counting)
    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(lambda: boss.acquire(vram_gb=1))
        for _ in range(100):
            hand.grant(await hand.hear("LeaseRequested"))
    assert batches == [1, 99]


# ---------------------------------------------------------------- reading


async def test_after_a_reconnect_everything_open_is_repeated(boss: GPUBoss, hand: HandScheduler) -> None:
    lease = await hold(boss, hand)
    over = await hold(boss, hand)
    await boss.release(over)
    waiting = asyncio.create_task(boss.acquire(vram_gb=8))
    request = await hand.hear("LeaseRequested")
    cut_connections(hand)
    again = {(await hand.hear("LeaseRequested"))["lease_id"] for _ in range(2)}
    assert again == {lease.lease_id, request["lease_id"]}
    hand.grant(request)
    assert (await waiting).lease_id == request["lease_id"]
    assert not lease.is_lost
    assert {released["lease_id"] for released in hand.log("LeaseReleased")} == {over.lease_id}, "nobody told of its end"


async def test_after_a_reconnect_the_stream_is_read_from_its_beginning(boss: GPUBoss, hand: HandScheduler) -> None:
    """After a failover the grant may stand below what was read before."""
    await hold(boss, hand)
    waiting = asyncio.create_task(boss.acquire(vram_gb=8))
    request = await hand.hear("LeaseRequested")
    hand.redis.delete(hand.keys.replies("painter"))
    hand.grant(request, entry_id="1-1")
    cut_connections(hand)
    with anyio.fail_after(3):  # less than a read may block: there, too, it would be noticed
        assert (await waiting).lease_id == request["lease_id"]


@pytest.mark.usefixtures("short_block")
async def test_a_stream_that_was_replaced_is_noticed_without_a_reconnect(
    server: RealServer, hand: HandScheduler
) -> None:
    async with GPUBoss(server.url, "painter") as boss:
        lease = await hold(boss, hand)
        waiting = asyncio.create_task(boss.acquire(vram_gb=8))
        request = await hand.hear("LeaseRequested")
        hand.redis.delete(hand.keys.replies("painter"))
        hand.grant(request, entry_id="1-1")
        with anyio.fail_after(5):
            assert (await waiting).lease_id == request["lease_id"]
        again = await hand.hear("LeaseRequested")
        assert again["lease_id"] in (lease.lease_id, request["lease_id"])


async def test_answers_that_were_trimmed_unread_are_asked_for_again(
    boss: GPUBoss, hand: HandScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuboss.client.mailbox.SUSPICIOUS", 2)
    await hold(boss, hand)
    waiting = asyncio.create_task(boss.acquire(vram_gb=8))
    request = await hand.hear("LeaseRequested")
    # In one transaction, for the reader is quick: the grant, and so much behind it that the stream is cut.
    connection, hand.redis = hand.redis, hand.redis.pipeline()
    hand.grant(request)
    for _ in range(8):
        hand.end({"lease_id": "of-another", "session": "another-session"}, "released")
    hand.redis.xtrim(hand.keys.replies("painter"), maxlen=3, approximate=False)
    hand.redis.execute()
    hand.redis = connection
    again = [await hand.hear("LeaseRequested"), await hand.hear("LeaseRequested")]
    assert request["lease_id"] in [event["lease_id"] for event in again]
    hand.grant(request)
    assert (await waiting).lease_id == request["lease_id"]


@pytest.mark.parametrize("batch", [2, 1000])
async def test_old_grants_read_again_release_nothing(
    boss: GPUBoss, hand: HandScheduler, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Also where a grant is the last of one batch, and its end the first of the next."""
    monkeypatch.setattr("gpuboss.client.link.READ_MAX", batch)
    monkeypatch.setattr("gpuboss.client.mailbox.READ_MAX", batch)
    session = boss._open_session().desk.session
    hand.end({"lease_id": "of-another", "session": "another-session"}, "released")
    for number in range(5):
        over = {"lease_id": f"old-lease-{number}", "session": session}
        hand.grant(over)
        hand.end(over, "released")
    lease = await hold(boss, hand)
    cut_connections(hand)
    assert (await hand.hear("LeaseRequested"))["lease_id"] == lease.lease_id
    await boss.release(lease)
    assert [event["lease_id"] for event in hand.log("LeaseReleased")] == [lease.lease_id]


# ---------------------------------------------------------------- a log that was lost


async def test_a_new_incarnation_is_told_what_is_held_and_asked_again_for_the_rest(
    server: RealServer, hand: HandScheduler
) -> None:
    hand.lead(session_ttl_ms=1_500)
    async with GPUBoss(server.url, "painter") as boss:
        lease = await hold(boss, hand)
        waiting = asyncio.create_task(boss.acquire(vram_gb=4))
        request = await hand.hear("LeaseRequested")
        hand.lead(session_ttl_ms=1_500, incarnation="second")
        asserted = await hand.hear("LeaseReasserted")
        assert (asserted["lease_id"], asserted["device"], asserted["fence"]) == (lease.lease_id, "cuda:0", 1)
        again = await hand.hear("LeaseRequested")
        assert again["lease_id"] == request["lease_id"]
        hand.grant(again)
        await waiting
        assert lease.lease_id not in {event["lease_id"] for event in hand.log("LeaseRequested")[2:]}


async def test_to_a_new_incarnation_releases_come_first_and_a_lease_that_is_granted_again_goes_on(
    server: RealServer, hand: HandScheduler
) -> None:
    hand.lead(session_ttl_ms=1_500)
    async with GPUBoss(server.url, "painter") as boss:
        lease, left = await hold(boss, hand), await hold(boss, hand)
        await boss.release(left)
        hand.lead(session_ttl_ms=1_500, incarnation="second")
        asserted = await hand.hear("LeaseReasserted")
        hand.grant(asserted, expires_at_ms=None)
        later = await hold(boss, hand)  # whose grant is read after that
        assert not lease.is_lost
        assert not later.is_lost
    told = [(event["type"], event["lease_id"]) for event in hand.log()]
    second = told.index(("LeaseReleased", left.lease_id)) + 1
    assert told[second : second + 2] == [("LeaseReleased", left.lease_id), ("LeaseReasserted", lease.lease_id)]


@pytest.mark.parametrize("is_done", [True, False])
async def test_to_a_new_incarnation_what_was_revoked_is_released_by_who_is_done_with_it(
    server: RealServer, hand: HandScheduler, is_done: bool
) -> None:
    hand.lead(session_ttl_ms=1_500)
    async with GPUBoss(server.url, "painter") as boss:
        lease, held = await hold(boss, hand), await hold(boss, hand)
        hand.end({"lease_id": lease.lease_id, "session": hand.log("LeaseRequested")[0]["session"]}, "revoked")
        with anyio.fail_after(5):
            await lease.wait_lost()
        if is_done:
            await boss.release(lease)
        assert hand.log("LeaseReleased") == []
        hand.lead(session_ttl_ms=1_500, incarnation="second")
        assert (await hand.hear("LeaseReasserted"))["lease_id"] == held.lease_id
        if not is_done:
            assert hand.log("LeaseReleased") == []
            await boss.release(lease)
        assert (await hand.hear("LeaseReleased"))["lease_id"] == lease.lease_id


async def test_a_lease_that_the_new_log_does_not_take_over_is_lost(boss: GPUBoss, hand: HandScheduler) -> None:
    lease = await hold(boss, hand)
    hand.say("EventRejected", {"lease_id": lease.lease_id}, event_id="1-1", reason="unknown_lease")
    with anyio.fail_after(5):
        assert await lease.wait_lost() == "revoked"
