"""The last words of a process that dies: everything is given back at once, whatever the event loop is busy with."""

from __future__ import annotations

from gpuboss.client.desk import Desk
from gpuboss.client.link import encoded
from gpuboss.client.outbox import Outbox
from gpuboss.core.addresses import session_member
from gpuboss.events import LeaseReleased
from gpuboss.full import APPEND
from gpuboss.keys import Keys

PATIENCE_S = 1.0


def say_goodbye(url: str, keys: Keys, desk: Desk, outbox: Outbox) -> None:
    """Release what waits, what is held, and what is on its way back but may not have arrived.

    Runs in any thread, beside whatever changes the desk there, over a blocking connection of its own.
    """
    from gpuboss.connection import connect

    unsent = [event.lease_id for event in outbox.pending() if isinstance(event, LeaseReleased)]
    pipeline = connect(url, timeout_s=PATIENCE_S).pipeline(transaction=False)
    for lease_id in dict.fromkeys([*unsent, *list(desk.waiting), *list(desk.held)]):
        data = encoded(LeaseReleased(lease_id, desk.service))
        pipeline.eval(APPEND, 1, keys.events, "LeaseReleased", data)
    pipeline.zrem(keys.sessions, session_member(desk.service, desk.session))
    pipeline.execute()
