"""`gpuboss why`: why somebody waits, or what became of a lease."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuboss.cli.options import ConfigFile, Json, LeaseId, Namespace, RedisUrl, checked_lease_id, examples

if TYPE_CHECKING:
    from gpuboss.cli.reach import Place

EXAMPLES = examples(
    "gpuboss why 4f9c0e7a1b2d",
    "gpuboss why 4f9c0e7a1b2d --json | jq -r .reason",
    "gpuboss queue                             # the ids of those who wait",
)


def why(
    lease_id: LeaseId,
    json: Json = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    config: ConfigFile = None,
) -> None:
    """Explain what a request waits for, or what became of it.

    Exactly, and from the log alone: the place in the queue, the reason, who stands in the way and what would help;
    where it is held and until when; or how it ended. What no scheduler has decided yet is marked as such. Exits 1
    if the log knows no such id.
    """
    from gpuboss.cli.account import account, to_text
    from gpuboss.cli.exits import AnswerIsNo
    from gpuboss.cli.fold import fold, snapshot_or_whole
    from gpuboss.cli.long_ago import find_end
    from gpuboss.cli.output import print_json, print_text, say
    from gpuboss.cli.reach import leads, reach

    lease_id = checked_lease_id(lease_id)
    with reach(redis_url, namespace, config) as place:
        decided_through = _cursor(place)  # before the entries are read: what comes meanwhile is not decided
        start = snapshot_or_whole(place.log)
        known = account(fold(place.log, start, decided_through), lease_id) is not None
        state = fold(place.log, start)
        found = account(state, lease_id)
        known = known or found is None
        found = found or find_end(place, lease_id)
        server_ms = place.now_ms()
        somebody_leads = leads(place.scheduler(), server_ms)
    if found is None:
        raise AnswerIsNo(f"the log knows no lease or request {lease_id}")
    if not somebody_leads:
        say("nobody leads: this is what the log's entries lead to, but nothing is decided until a scheduler starts")
    found["decided"] = known
    if json:
        print_json(found)
    else:
        print_text(to_text(found, max(state.now_ms, server_ms)))


def _cursor(place: Place) -> str:
    """The last entry that a scheduler has decided: as it says itself, or, where that is gone, as its decisions do."""
    from gpuboss.cli.look_ahead import last_cause
    from gpuboss.core.stream_ids import is_id

    cursor = place.log.cursor()
    return cursor if cursor is not None and is_id(cursor) else last_cause(place.log.entries())
