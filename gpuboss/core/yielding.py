"""Yielding: a holder is asked to give its lease back by a deadline."""

from __future__ import annotations

from gpuboss.core.addresses import reply_address
from gpuboss.core.ledger import Lease
from gpuboss.core.lifecycle import move
from gpuboss.core.state import Turn
from gpuboss.core.timers import TimerKind
from gpuboss.events import YieldRequested


def ask_back(turn: Turn, lease: Lease, deadline_ms: int, wanted_by: str | None) -> None:
    """Ask for a lease that is held or idle; `wanted_by` is the request that waits for it, if one does."""
    state, request = turn.state, lease.request
    assert move(lease.state, "ask_back").after == "yielding", lease
    lease.yield_by_ms, lease.yield_set_ms = deadline_ms, state.now_ms
    state.ledger.move(lease, "yielding")
    state.timers.set(deadline_ms, TimerKind.YIELD_DEADLINE, request.lease_id)
    turn.look = True
    turn.lease_ids.append(request.lease_id)
    asked = YieldRequested(
        cause=turn.cause,
        session=request.session,
        lease_id=request.lease_id,
        service=request.service,
        deadline_ms=deadline_ms,
        for_=wanted_by,
    )
    turn.tell(asked, reply_address(request.service, request.instance))
