"""What a client tells a log that was begun anew: whoever leads, whatever keeps its loop busy, whatever it read late."""

import asyncio
import time
from collections.abc import AsyncIterator

import anyio
import pytest

from gpuboss import GPUBoss, Lease
from gpuboss.client.answers import settle
from gpuboss.client.desk import Ask, late_reassertions, reassertions
from gpuboss.client.leadership import TRUSTED
from gpuboss.client.link import Look
from gpuboss.events import LeaseIdled, LeaseReasserted, LeaseResumed
from tests.client.by_hand import HandScheduler, hold, until
from tests.client.clerk import Clerk
from tests.real.one_server import served_by
from tests.real.servers import RealServer, wait_for

server_process = served_by(0)
TTL_MS = 1_500


@pytest.fixture
async def boss(server: RealServer, hand: HandScheduler) -> AsyncIterator[GPUBoss]:
    hand.lead(session_ttl_ms=TTL_MS)
    async with GPUBoss(server.url, "painter") as boss:
        yield boss


def begin_second(hand: HandScheduler, alive_for_ms: int = 600_000) -> None:
    """A new log, whose leader may be silent for too long already."""
    hand.lead(session_ttl_ms=TTL_MS, incarnation="second", alive_for_ms=alive_for_ms)


def last_taken(boss: GPUBoss) -> Look:
    look = boss._open_session().desk.trust.look
    assert look is not None
    return look


def told_of(hand: HandScheduler, lease: Lease) -> list[str]:
    """What clients said of a lease behind their request, by its type."""
    return [event["type"] for event in hand.log() if event["lease_id"] == lease.lease_id][1:]


async def reclaimable(boss: GPUBoss, hand: HandScheduler) -> Lease:
    acquiring = asyncio.create_task(boss.acquire(vram_gb=8, reclaimable=True))
    hand.grant(await hand.hear("LeaseRequested"))
    return await acquiring


# ---------------------------------------------------------------- whoever leads


async def test_what_is_held_is_reasserted_although_nobody_leads(boss: GPUBoss, hand: HandScheduler) -> None:
    lease = await hold(boss, hand)
    begin_second(hand, alive_for_ms=-6_000)
    assert (await hand.hear("LeaseReasserted"))["lease_id"] == lease.lease_id
    begin_second(hand)
    taken = last_taken(boss)
    await until("a beat that sees who leads", lambda: last_taken(boss).at_s > taken.at_s + 0.5)
    assert told_of(hand, lease) == ["LeaseReasserted"], "once for each log"
    assert not lease.is_lost


async def test_a_log_without_a_name_yet_is_told_nothing(boss: GPUBoss, hand: HandScheduler) -> None:
    lease = await hold(boss, hand)
    hand.redis.delete(hand.keys.scheduler)
    taken = last_taken(boss)
    boss._open_session().heartbeat.ring()
    await until("a beat", lambda: last_taken(boss) is not taken)
    assert told_of(hand, lease) == []
    begin_second(hand)
    boss._open_session().heartbeat.ring()
    assert (await hand.hear("LeaseReasserted"))["lease_id"] == lease.lease_id


# ---------------------------------------------------------------- whatever the loop is busy with


async def test_a_blocked_loops_leases_are_reasserted_by_the_pulse(boss: GPUBoss, hand: HandScheduler) -> None:
    lease = await hold(boss, hand)
    begin_second(hand)
    wait_for("a reassertion, while the loop stands still", lambda: told_of(hand, lease))
    taken = last_taken(boss)
    wait_for("another beat of the pulse", lambda: last_taken(boss).at_s > taken.at_s)
    assert told_of(hand, lease) == ["LeaseReasserted"], "once is enough"
    asserted = hand.log("LeaseReasserted")[0]
    assert (asserted["device"], asserted["fence"], asserted["session"]) == (
        "cuda:0",
        1,
        hand.log("LeaseRequested")[0]["session"],
    )
    await until("the loop's own", lambda: told_of(hand, lease) == ["LeaseReasserted"] * 2)
    assert not lease.is_lost


async def test_the_pulse_reasserts_what_was_held_only_after_it_had_told_the_log(
    boss: GPUBoss, hand: HandScheduler
) -> None:
    first = await hold(boss, hand)
    session = boss._open_session()
    waiting = asyncio.create_task(boss.acquire(vram_gb=8))
    request = await hand.hear("LeaseRequested")
    begin_second(hand)
    wait_for("a reassertion, while the loop stands still", lambda: told_of(hand, first))
    hand.grant(request)
    session.heartbeat._on_incarnation = lambda _: None  # the loop reads its mail, and is busy again before it beats
    second = await waiting
    wait_for("a reassertion of the other", lambda: told_of(hand, second))
    assert told_of(hand, first) == ["LeaseReasserted"]


async def test_a_beat_of_the_pulse_prolongs_no_trust_in_what_it_cannot_reassert(
    boss: GPUBoss, hand: HandScheduler
) -> None:
    lease = await hold(boss, hand)
    member = hand.redis.zrange(hand.keys.sessions, 0, -1)[0]
    hand.redis.delete(hand.keys.events)
    hand.redis.set(hand.keys.events, "no stream")
    begin_second(hand)
    taken, score = last_taken(boss), hand.redis.zscore(hand.keys.sessions, member)
    wait_for("a beat of the pulse", lambda: hand.redis.zscore(hand.keys.sessions, member) > score)
    wait_for("the end of trust", lambda: time.monotonic() > taken.at_s + TRUSTED * TTL_MS / 1000 + 0.1)
    assert last_taken(boss) is taken
    hand.redis.delete(hand.keys.events)
    with anyio.fail_after(5):
        assert await lease.wait_lost() == "session_lost"


async def test_the_pulse_goes_by_what_the_log_has_and_not_by_what_the_loop_posted(
    boss: GPUBoss, hand: HandScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await hold(boss, hand)
    session = boss._open_session()
    monkeypatch.setattr(session._link, "append", lambda entries, told: True)  # whose answer never comes
    begin_second(hand)
    session.heartbeat.ring()
    await until("the loop's reassertion", lambda: session.outbox.pending())
    wait_for("the pulse's", lambda: told_of(hand, lease))
    monkeypatch.undo()
    session.outbox._get_stuck()
    await until("both", lambda: told_of(hand, lease) == ["LeaseReasserted"] * 2)


# ---------------------------------------------------------------- a grant that is read late


async def test_a_grant_of_the_lost_log_that_is_read_late_is_reasserted(boss: GPUBoss, hand: HandScheduler) -> None:
    waiting = asyncio.create_task(boss.acquire(vram_gb=8))
    request = await hand.hear("LeaseRequested")
    begin_second(hand)
    assert (await hand.hear("LeaseRequested"))["lease_id"] == request["lease_id"]
    hand.grant(request, fence=5)  # stood in the reply stream, not read yet
    lease = await waiting
    asserted = await hand.hear("LeaseReasserted")
    assert (asserted["lease_id"], asserted["fence"]) == (lease.lease_id, 5)
    hand.say("EventRejected", {"lease_id": lease.lease_id}, event_id="1-1", reason="unknown_lease")
    with anyio.fail_after(5):
        assert await lease.wait_lost() == "revoked"


def test_a_late_grant_is_reasserted_once(clerk: Clerk) -> None:
    clerk.ask("lease-01")
    assert len(list(reassertions(clerk.desk))) == 1
    clerk.grant("lease-01", vram_mib=8192)
    [said] = late_reassertions(clerk.desk)
    assert (said.lease_id, said.device, said.fence) == ("lease-01", "cuda:0", 7)
    clerk.grant("lease-01", vram_mib=8192)  # the new log's answer
    assert list(late_reassertions(clerk.desk)) == []
    assert settle(clerk.desk) == []
    clerk.hear("EventRejected", lease_id="lease-01", cause="1-1", reason="invalid")
    assert "lease-01" not in clerk.desk.held, "it was reasserted, and the new log cannot know of it otherwise"


def test_a_late_grant_whose_end_follows_is_not_reasserted(clerk: Clerk) -> None:
    clerk.ask("lease-01")
    list(reassertions(clerk.desk))
    clerk.grant("lease-01", vram_mib=8192)
    clerk.hear("LeaseEnded", lease_id="lease-01", reason="revoked")
    assert list(late_reassertions(clerk.desk)) == []


def test_a_grant_that_no_other_log_was_asked_for_is_not_reasserted(clerk: Clerk) -> None:
    clerk.hold("lease-01")
    assert list(late_reassertions(clerk.desk)) == []


# ---------------------------------------------------------------- an idle or a resume that was lost


def states(clerk: Clerk) -> list[LeaseIdled | LeaseResumed]:
    return [event for event in reassertions(clerk.desk) if isinstance(event, LeaseIdled | LeaseResumed)]


async def test_a_new_log_is_told_whether_a_lease_is_idle_or_in_use(boss: GPUBoss, hand: HandScheduler) -> None:
    lease = await reclaimable(boss, hand)
    idling = asyncio.create_task(lease.idle(reload_ms=700))
    asked = await hand.hear("LeaseIdled")
    hand.say("LeaseStateChanged", asked, cause="5-1", session=lease_session(hand), state="idle")
    await idling
    begin_second(hand)
    said = await hand.hear("LeaseIdled")
    assert (said["lease_id"], said["reload_ms"]) == (lease.lease_id, 700)
    hand.say("LeaseStateChanged", said, cause="5-2", session=lease_session(hand), state="idle")
    resuming = asyncio.create_task(lease.resume())
    asked = await hand.hear("LeaseResumed")
    hand.say("LeaseStateChanged", asked, cause="5-3", session=lease_session(hand), state="held")
    await resuming
    hand.lead(session_ttl_ms=TTL_MS, incarnation="third")
    said = await hand.hear("LeaseResumed")
    assert (said["lease_id"], said["reload_ms"]) == (lease.lease_id, 700), "what loading it takes is not forgotten"
    assert told_of(hand, lease)[-2:] == ["LeaseReasserted", "LeaseResumed"]


def lease_session(hand: HandScheduler) -> str:
    session: str = hand.log("LeaseRequested")[0]["session"]
    return session


def test_the_state_is_said_behind_the_reassertion(clerk: Clerk) -> None:
    clerk.ask("lease-01", reclaimable=True)
    clerk.grant("lease-01", vram_mib=8192)
    assert [type(event) for event in reassertions(clerk.desk)] == [LeaseReasserted, LeaseResumed]
    clerk.hear("LeaseStateChanged", lease_id="lease-01", cause="5-1", state="idle")
    assert states(clerk) == [LeaseIdled("lease-01", "painter", 0)]
    clerk.hear("LeaseStateChanged", lease_id="lease-01", cause="5-2", state="idle")  # what that is answered with
    clerk.hear("EventRejected", lease_id="lease-01", cause="5-3", reason="yielding")  # or that
    assert clerk.desk.held["lease-01"].lease.is_idle


@pytest.mark.parametrize("answer", ["idle", "held"])
def test_no_state_is_said_while_another_is_asked_for(clerk: Clerk, answer: str) -> None:
    clerk.ask("lease-01", reclaimable=True)
    clerk.grant("lease-01", vram_mib=8192)
    held = clerk.desk.held["lease-01"]
    held.asked.append(Ask("extended", lambda _: None))
    assert states(clerk) == [LeaseResumed("lease-01", "painter")]
    held.asked.append(Ask("idle" if answer == "idle" else "held", lambda _: None))
    assert states(clerk) == []


def test_no_state_is_said_of_a_lease_that_was_asked_back_or_is_not_reclaimable(clerk: Clerk) -> None:
    clerk.hold("lease-01", vram_mib=8192)
    clerk.ask("lease-02", reclaimable=True)
    clerk.grant("lease-02", vram_mib=8192)
    clerk.hear("YieldRequested", lease_id="lease-02", deadline_ms=1_000)
    assert states(clerk) == []
