"""Lost connections, lost answers, lost logs: what is said again, and what is never done twice."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import anyio
import pytest

from gpuboss import ConfigError, GPUBoss, Lease, SchedulerUnavailable
from gpuboss.client.link import Full, Link, LinkLost, Outcome, Trouble
from tests.client.by_hand import HandScheduler, until
from tests.client.platforms import killed_and_back
from tests.real.servers import RealServer

Told = Callable[[list[Outcome] | Trouble], None]


@pytest.fixture
async def boss(server: RealServer, hand: HandScheduler) -> AsyncIterator[GPUBoss]:
    async with GPUBoss(server.url, "painter") as boss:
        yield boss


@pytest.fixture
def short_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads that find nothing end soon: that is when the reader looks whether the stream is still the same."""
    monkeypatch.setattr("gpuboss.client.link.BLOCK_S", 0.1)


async def hold(boss: GPUBoss, hand: HandScheduler) -> Lease:
    acquiring = asyncio.create_task(boss.acquire(vram_gb=8))
    hand.grant(await hand.hear("LeaseRequested"))
    return await acquiring


def asked(hand: HandScheduler) -> list[str]:
    return [event["lease_id"] for event in hand.log("LeaseRequested")]


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
    hand.lead(session_ttl_ms=600)
    async with GPUBoss(server.url, "painter") as boss:
        lease = await hold(boss, hand)
        waiting = asyncio.create_task(boss.acquire(vram_gb=4))
        request = await hand.hear("LeaseRequested")
        hand.lead(session_ttl_ms=600, incarnation="second")
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
    hand.lead(session_ttl_ms=600)
    async with GPUBoss(server.url, "painter") as boss:
        lease, left = await hold(boss, hand), await hold(boss, hand)
        await boss.release(left)
        hand.lead(session_ttl_ms=600, incarnation="second")
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
    hand.lead(session_ttl_ms=600)
    async with GPUBoss(server.url, "painter") as boss:
        lease, held = await hold(boss, hand), await hold(boss, hand)
        hand.end({"lease_id": lease.lease_id, "session": hand.log("LeaseRequested")[0]["session"]}, "revoked")
        with anyio.fail_after(5):
            await lease.wait_lost()
        if is_done:
            await boss.release(lease)
        assert hand.log("LeaseReleased") == []
        hand.lead(session_ttl_ms=600, incarnation="second")
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


async def test_other_loops_than_asyncios_are_refused_in_clear_words() -> None:
    with pytest.raises(Exception, match=r"runs on asyncio.*trio.*gpuboss\.blocking"):
        outside_of_asyncio(GPUBoss("redis://localhost", "painter").__aenter__().send)


def outside_of_asyncio(send: Callable[[None], object]) -> None:
    """Run a coroutine's first step in a thread without an event loop of asyncio, as trio would."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        thread.submit(send, None).result(5)


async def test_a_url_that_is_none_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"redis_url.*'http://localhost'"):
        GPUBoss("http://localhost", "painter")


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
