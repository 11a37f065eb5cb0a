"""`gpuboss release`: give a lease back in its owner's name."""

from __future__ import annotations

from typing import Any, cast

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
)
from gpuboss.cli.reach import Place, reach

EXAMPLES = examples(
    "gpuboss release 4f9c0e7a1b2d",
    "gpuboss release 4f9c0e7a1b2d --wait 30s --json",
    "gpuboss leases                            # the ids of what is held",
)


def release(
    lease_id: LeaseId,
    wait: Wait = "5s",
    json: Json = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    config: ConfigFile = None,
) -> None:
    """Release a lease in the name of its owner.

    Or take back a request that still waits. For leases whose owner is gone, or has forgotten them: while it works
    on, its memory is on the card. Waits for the scheduler's answer. Exits 1 if there is no such lease, and for a
    request that waits while a lost log recovers: its grant may be among what was lost.
    """
    from gpuboss.cli.answers import append, read_row, wait_for_answer
    from gpuboss.cli.exits import AnswerIsNo
    from gpuboss.events import EventRejected, LeaseReleased

    wait_ms = duration_ms(wait, "--wait")
    lease_id = checked_lease_id(lease_id)
    with reach(redis_url, namespace, config) as place:
        row = read_row(place, lease_id)
        owner = _owner(place, lease_id, row)
        place.require_leader()
        if "recovering_until_ms" in place.scheduler() and place.client.hexists(place.keys.queue, lease_id):
            raise AnswerIsNo(
                f"{lease_id} waits, as far as is known after entries of the log were lost, and its grant may be among "
                "them; release it again once gpuboss status says no more that it recovers"
            )

        def is_gone() -> bool:
            return row is not None and read_row(place, lease_id) is None

        event_id = append(place, LeaseReleased(lease_id=lease_id, service=owner))
        answer = wait_for_answer(place, event_id, wait_ms, is_gone)
    if answer is None:
        raise AnswerIsNo(f"lease {lease_id} had ended already")
    answer.show(json)
    if isinstance(answer.decision, EventRejected):
        raise AnswerIsNo(f"{answer.decision.reason}: {answer.decision.detail}")


def _owner(place: Place, lease_id: str, row: dict[str, Any] | None) -> str:
    """Whose it is, by the projections, or else by the log, which also knows what was not decided yet.

    Raises `AnswerIsNo` if there is nothing to release.
    """
    if row is not None and row.get("state") != "reclaiming" and isinstance(row.get("service"), str):
        return cast(str, row["service"])
    from gpuboss.cli.account import account
    from gpuboss.cli.exits import AnswerIsNo
    from gpuboss.cli.fold import fold, snapshot_or_whole

    found = account(fold(place.log, snapshot_or_whole(place.log)), lease_id)
    if found is None:
        raise AnswerIsNo(f"there is no lease or request {lease_id}")
    if found["state"] in ("ended", "denied", "reclaiming"):
        raise AnswerIsNo(f"{lease_id} is over already ({found.get('reason')}): gpuboss why {lease_id} tells more")
    return cast(str, found["service"])
