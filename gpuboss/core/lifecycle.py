"""What may happen to a lease, as a table: its state, what happens, and what becomes of it.

    held <-> idle -> yielding -> reclaiming -> gone

A lease that has ended may still have its memory on the card: it is `reclaiming`, and stays charged, until a fact says
that the memory is back. Where its holder gave it back that settles soon, and on a simulated device it is gone at once.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from gpuboss.events import RejectionReason

State = Literal["held", "idle", "yielding", "reclaiming"]
After = Literal["held", "idle", "yielding", "clean", "unclean", "vouched", "gone"]
EndReason = Literal["released", "expired", "revoked", "session_lost", "device_lost", "yielded"]
Happening = Literal[
    "release",  # its holder gives it back
    "renew",  # its holder wants it for longer
    "idle",  # its holder keeps the model warm, unused
    "resume",  # its holder uses the model again
    "expire",  # its TTL is over
    "ask_back",  # an operator wants it back, with a grace
    "revoke",  # an operator takes it, or the grace is over
    "vouch",  # an operator takes it, and says that its memory is gone if it has ended
    "lose_session",  # its process is silent
    "lose_device",  # one of its devices is gone
    "reclaim",  # its memory is back
]


class Move(Struct, frozen=True):
    """What a happening does: the state after it (`clean` and `unclean`: reclaiming, or gone where nothing can linger;
    `vouched`: still reclaiming, but not for long), the reason of the `LeaseEnded` that it causes, or the reason for
    which it is refused. All None: nothing happens."""

    after: After | None = None
    ended: EndReason | None = None
    refused: RejectionReason | None = None


_NOTHING = Move()
_GONE = Move(refused="unknown_lease")  # it ended: its memory is still charged, but nobody holds it

TABLE: dict[tuple[State, Happening], Move] = {
    ("held", "release"): Move("clean", "released"),
    ("held", "renew"): Move("held"),
    ("held", "idle"): Move("idle"),
    ("held", "resume"): Move("held"),
    ("held", "expire"): Move("unclean", "expired"),
    ("held", "ask_back"): Move("yielding"),
    ("held", "revoke"): Move("unclean", "revoked"),
    ("held", "vouch"): Move("unclean", "revoked"),
    ("held", "lose_session"): Move("unclean", "session_lost"),
    ("held", "lose_device"): Move("unclean", "device_lost"),
    ("held", "reclaim"): _NOTHING,
    ("idle", "release"): Move("clean", "released"),
    ("idle", "renew"): Move("idle"),
    ("idle", "idle"): Move("idle"),
    ("idle", "resume"): Move("held"),
    ("idle", "expire"): Move("unclean", "expired"),
    ("idle", "ask_back"): Move("yielding"),
    ("idle", "revoke"): Move("unclean", "revoked"),
    ("idle", "vouch"): Move("unclean", "revoked"),
    ("idle", "lose_session"): Move("unclean", "session_lost"),
    ("idle", "lose_device"): Move("unclean", "device_lost"),
    ("idle", "reclaim"): _NOTHING,
    # A lease that was asked back is never revived: whoever waits for it counts on it.
    ("yielding", "release"): Move("clean", "yielded"),
    ("yielding", "renew"): Move(refused="yielding"),
    ("yielding", "idle"): Move(refused="yielding"),
    ("yielding", "resume"): Move(refused="yielding"),
    ("yielding", "expire"): Move("unclean", "expired"),
    ("yielding", "ask_back"): _NOTHING,
    ("yielding", "revoke"): Move("unclean", "revoked"),
    ("yielding", "vouch"): Move("unclean", "revoked"),
    ("yielding", "lose_session"): Move("unclean", "session_lost"),
    ("yielding", "lose_device"): Move("unclean", "device_lost"),
    ("yielding", "reclaim"): _NOTHING,
    ("reclaiming", "release"): _NOTHING,
    ("reclaiming", "renew"): _GONE,
    ("reclaiming", "idle"): _GONE,
    ("reclaiming", "resume"): _GONE,
    ("reclaiming", "expire"): _NOTHING,
    ("reclaiming", "ask_back"): _NOTHING,  # whoever wrote it may not have known that it had ended
    ("reclaiming", "revoke"): _NOTHING,
    ("reclaiming", "vouch"): Move("vouched"),  # the fact that says so, `VramReclaimed`, follows
    ("reclaiming", "lose_session"): _NOTHING,
    ("reclaiming", "lose_device"): _NOTHING,
    ("reclaiming", "reclaim"): Move("gone"),
}


def move(state: State, happening: Happening) -> Move:
    """What `happening` does to a lease in `state`. Total over both: the table names every pair."""
    return TABLE[state, happening]
