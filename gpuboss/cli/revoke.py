"""`gpuboss revoke`: take a lease away as an operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gpuboss.cli.options import (
    ConfigFile,
    Json,
    LeaseId,
    Namespace,
    RedisUrl,
    Wait,
    checked_lease_id,
    duration_ms,
    examples,
    printable,
)
from gpuboss.cli.reach import reach

if TYPE_CHECKING:
    from gpuboss.events import LeaseRevoked

EXAMPLES = examples(
    "gpuboss revoke 4f9c0e7a1b2d --grace 30s   # ask for it back, and take it after 30 s",
    'gpuboss revoke 4f9c0e7a1b2d --reason "the job hangs"',
    "gpuboss leases                            # the ids of what is held",
)

Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the log and its readers.")]
Grace = Annotated[
    str, typer.Option("--grace", metavar="TIME", help="How long the holder has to unload and release: 10, 10s.")
]
By = Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who does it; user@host unless given.")]


def revoke(
    lease_id: LeaseId,
    reason: Reason = "",
    grace: Grace = "0",
    by: By = None,
    wait: Wait = "5s",
    json: Json = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    config: ConfigFile = None,
) -> None:
    """Take a lease away, or end a waiting request.

    Its holder is told, and the scheduler's answer waited for; the VRAM is lent again once it is seen to be free.
    Revoking a lease that is being reclaimed frees it: you vouch that its memory is gone. Exits 1 if there is no
    such lease, and for a request that waits while a lost log recovers: its grant may be among what was lost.
    """
    from msgspec.structs import replace

    from gpuboss.cli.answers import append, read_row, wait_for_answer
    from gpuboss.cli.exits import AnswerIsNo
    from gpuboss.cli.output import print_json, print_text
    from gpuboss.events import EventRejected

    event = _revocation(lease_id, reason, grace, by)
    wait_ms = duration_ms(wait, "--wait")
    with reach(redis_url, namespace, config) as place:
        place.require_leader()
        state = (read_row(place, lease_id) or {}).get("state")
        if state == "yielding" and event.grace_ms:
            raise AnswerIsNo(f"lease {lease_id} is being asked back already; without --grace it is taken at once")

        def is_freed() -> bool:
            return state == "reclaiming" and read_row(place, lease_id) is None

        event = replace(event, vouched=state == "reclaiming")
        answer = wait_for_answer(place, append(place, event), wait_ms, is_freed)
    if answer is None:
        # Ending it again is no decision: it had ended, and now its VRAM counts as free.
        if json:
            print_json({"lease_id": lease_id, "freed": True})
        else:
            print_text(f"the VRAM of lease {lease_id}, which had ended, is free")
        return
    if isinstance(answer.decision, EventRejected):
        raise AnswerIsNo(f"{answer.decision.reason}: {answer.decision.detail}")
    answer.show(json)


def _revocation(lease_id: str, reason: str, grace: str, by: str | None) -> LeaseRevoked:
    from gpuboss.events import LeaseRevoked

    return LeaseRevoked(
        lease_id=checked_lease_id(lease_id),
        reason=printable(reason, "--reason"),
        by=printable(_me() if by is None else by, "--by"),
        grace_ms=duration_ms(grace, "--grace"),
    )


def _me() -> str:
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as containers have
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
