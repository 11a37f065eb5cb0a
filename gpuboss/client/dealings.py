"""What is done with an open session: ask and wait, renew, idle, give back. What is cut short leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TypeVar

import anyio
from msgspec.structs import replace

from gpuboss.client.desk import Answer, Ask, Waiting
from gpuboss.client.lease import Lease, LeaseState
from gpuboss.client.link import Refused
from gpuboss.client.outbox import Letter
from gpuboss.client.session import Session
from gpuboss.client.wish import reload_ms_of
from gpuboss.errors import ConfigError, GPUBossError, LeaseDenied, LeaseLost, LeaseTimeout, SchedulerUnavailable
from gpuboss.events import LeaseIdled, LeaseReleased, LeaseRenewed, LeaseRequested, LeaseResumed
from gpuboss.full import takes_no_writes

GIVE_BACK_S = 2.0  # how long a release waits until Redis has it; if that is not enough, it is delivered later
ANSWER_MARGIN_S = 2.0  # how much later than the end of the wait the scheduler's own answer may come
ANSWER_S = 10.0  # how long whoever holds a lease waits for an answer about it

T = TypeVar("T")


async def ask(session: Session, request: LeaseRequested) -> Lease:
    """Request a lease, and wait for it. Raises `LeaseDenied`, `LeaseLost` and `SchedulerUnavailable`."""
    await _ready(session)
    request = replace(request, session=session.desk.session)  # it may have changed while we waited
    answer: asyncio.Future[Lease | GPUBossError] = asyncio.get_running_loop().create_future()
    session.desk.waiting[request.lease_id] = Waiting(request, lambda outcome: _settle(answer, outcome))
    session.outbox.post(request).when_delivered(lambda refused: _tell_refusal(session, request, answer, refused))
    try:
        outcome = await (answer if request.wait_ms is None else _answer_within(answer, request))
    except BaseException:
        await _take_back(session, request.lease_id)
        raise
    if not isinstance(outcome, Lease):
        raise outcome
    if outcome.lost_reason is not None:  # whoever was paused reads the grant and its end at once
        raise LeaseLost(outcome.lease_id, outcome.lost_reason)
    outcome.change_state = partial(change_state, session)
    return outcome


async def _answer_within(answer: asyncio.Future[Lease | GPUBossError], request: LeaseRequested) -> Lease | GPUBossError:
    assert request.wait_ms is not None
    patience_s = request.wait_ms / 1000 + ANSWER_MARGIN_S
    with anyio.move_on_after(patience_s):
        return await answer
    raise LeaseTimeout(request.lease_id, "timeout", f"no answer within {patience_s} s; taken back")


async def give_back(session: Session, lease_id: str) -> None:
    """Release a lease or a request, of this client or of another one of the service."""
    desk = session.desk
    if session.over is not None or (lease_id in desk.leaving and lease_id not in desk.given_up):
        return
    if lease_id in desk.waiting:  # whoever waits for it is told by the scheduler
        await _sent(session.outbox.post(LeaseReleased(lease_id, desk.service)))
    else:
        await _sent(*session.take_back([lease_id]))


async def renew(session: Session, lease_id: str, ttl_ms: int) -> None:
    """Have a held lease end `ttl_ms` from now. Raises `LeaseDenied`, `LeaseLost` and `SchedulerUnavailable`."""
    await _ready(session)
    if lease_id not in session.desk.held:
        raise GPUBossError(f"{lease_id} cannot be renewed: this client does not hold it")
    if not await _is_answered(session, LeaseRenewed(lease_id, session.desk.service, ttl_ms), "extended"):
        raise SchedulerUnavailable(
            f"no answer to the renewal of lease {lease_id} within {ANSWER_S:g} s; it ends when it would have"
        )


async def change_state(session: Session, lease: Lease, state: LeaseState, reload_ms: int) -> None:
    """Idle or resume a lease. Raises `ConfigError`, `LeaseDenied`, `LeaseLost` and `SchedulerUnavailable`."""
    reload_ms = reload_ms_of(reload_ms)
    lease_id, verb = lease.lease_id, "idled" if state == "idle" else "resumed"
    if lease.lost_reason is None:
        await _ready(session)
    if lease.lost_reason is not None:
        raise LeaseLost(lease_id, lease.lost_reason)
    held = session.desk.held.get(lease_id)
    if held is None:
        raise GPUBossError(f"{lease_id} cannot be {verb}: it was released")
    if not held.request.reclaimable:
        raise ConfigError(f"lease {lease_id} cannot be {verb}; expected that it was asked for with reclaimable=True")
    if lease.deadline is not None:
        raise LeaseDenied(lease_id, "yielding", f"it was asked back, so it cannot be {verb}; unload and release it")
    if state == "idle" or reload_ms:
        held.reload_ms = reload_ms
    kind = LeaseIdled if state == "idle" else LeaseResumed
    if not await _is_answered(session, kind(lease_id, session.desk.service, reload_ms), state):
        raise SchedulerUnavailable(
            f"lease {lease_id} was {verb}, and nobody said within {ANSWER_S:g} s that it is; do not use its model "
            "before resume() has returned"
        )


async def _is_answered(session: Session, event: LeaseRenewed | LeaseIdled | LeaseResumed, wanted: Answer) -> bool:
    """Ask something about a lease that is held; False if nobody answers. Raises what it is refused with."""
    answer: asyncio.Future[GPUBossError | None] = asyncio.get_running_loop().create_future()
    asked = session.desk.held[event.lease_id].asked
    asked.append(Ask(wanted, lambda outcome: _settle(answer, outcome)))
    session.outbox.post(event)
    with anyio.move_on_after(ANSWER_S):
        refused = await answer
        if refused is not None:
            raise refused
        return True
    return False


async def _ready(session: Session) -> None:
    if session.over is None:
        try:
            await session.heartbeat.ready()
        except SchedulerUnavailable:
            if session.over is None:  # else the client was closed while we looked, which says it better
                raise
    if session.over is not None:
        raise session.over


async def _take_back(session: Session, lease_id: str) -> None:
    if lease_id in session.desk.waiting or lease_id in session.desk.held:
        await _sent(*session.take_back([lease_id]))


async def _sent(*letters: Letter) -> None:
    """Wait until Redis has them, also while we are being cancelled; but not for ever."""
    try:
        await _delivery(letters)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            await _delivery(letters)
        raise


async def _delivery(letters: Sequence[Letter]) -> None:
    """Wait until Redis has them, for `GIVE_BACK_S` at most. Every release waits here: a timer and a future cost a
    fifth of what scopes and sets of tasks do."""
    due = [letter for letter in letters if not letter.is_delivered]
    if due:
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()

        def settle(_: object) -> None:
            if all(letter.is_delivered for letter in due):
                _settle(over, None)

        timer = loop.call_later(GIVE_BACK_S, _settle, over, None)
        for letter in due:
            letter.when_delivered(settle)
        try:
            await over
        finally:
            timer.cancel()


def _settle(answer: asyncio.Future[T], outcome: T) -> None:
    if not answer.done():
        answer.set_result(outcome)


def _tell_refusal(
    session: Session, request: LeaseRequested, answer: asyncio.Future[Lease | GPUBossError], refused: Refused | None
) -> None:
    if refused is not None:
        session.desk.waiting.pop(request.lease_id, None)  # else it would be asked again, once Redis takes it
        why = takes_no_writes(str(refused)) or refused
        _settle(answer, SchedulerUnavailable(f"Redis refuses the request: {why}"))
