"""Refusing: how the core says that an entry changes nothing, and to whom."""

from __future__ import annotations

from gpuboss.core.addresses import reply_address
from gpuboss.core.door import Refusal
from gpuboss.core.state import Turn
from gpuboss.events import EventRejected, FromService, LeaseReasserted, LeaseRequested, RejectionReason


def reject(
    turn: Turn, reason: RejectionReason, detail: str, event: FromService, owned: LeaseRequested | None = None
) -> None:
    """Refuse what a service asked. `owned`: the sender's own request, which says where exactly it listens."""
    listener = owned if owned is not None else event if isinstance(event, LeaseRequested | LeaseReasserted) else None
    _refuse(
        turn,
        Refusal(
            reason,
            detail,
            lease_id=event.lease_id,
            service=event.service,
            instance=None if listener is None else listener.instance,
            session=None if listener is None else listener.session,
        ),
    )


def reject_unaddressed(turn: Turn, reason: RejectionReason, detail: str, lease_id: str | None = None) -> None:
    """Refuse what came from no service: it is told to nobody, and stands in the log."""
    _refuse(turn, Refusal(reason, detail, lease_id=lease_id))


def reject_unread(turn: Turn, refusal: Refusal) -> None:
    """Refuse an entry that is no event."""
    _refuse(turn, refusal)


def _refuse(turn: Turn, refusal: Refusal) -> None:
    rejected = EventRejected(
        cause=turn.cause,
        session=refusal.session,
        event_id=turn.cause,
        reason=refusal.reason,
        detail=refusal.detail,
        lease_id=refusal.lease_id,
        service=refusal.service,
    )
    address = None
    if refusal.service is not None and refusal.is_told:
        address = reply_address(refusal.service, refusal.instance)
    turn.tell(rejected, address)
