"""`gpuboss why`: why somebody waits, or what became of a lease."""

from __future__ import annotations

from gpuboss.cli.options import ConfigFile, Json, LeaseId, Namespace, RedisUrl, checked_lease_id, examples

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
    where it is held and until when; or how it ended. Exits 1 if the log knows no such id.
    """
    from gpuboss.cli.account import account, to_text
    from gpuboss.cli.exits import AnswerIsNo
    from gpuboss.cli.fold import fold, snapshot_or_whole
    from gpuboss.cli.long_ago import find_end
    from gpuboss.cli.output import print_json, print_text, say
    from gpuboss.cli.reach import leads, reach

    lease_id = checked_lease_id(lease_id)
    with reach(redis_url, namespace, config) as place:
        state = fold(place.log, snapshot_or_whole(place.log))
        found = account(state, lease_id) or find_end(place, lease_id)
        server_ms = place.now_ms()
        somebody_leads = leads(place.scheduler(), server_ms)
    if found is None:
        raise AnswerIsNo(f"the log knows no lease or request {lease_id}")
    if not somebody_leads:
        say("nobody leads: this is what the log's entries lead to, but nothing is decided until a scheduler starts")
    if json:
        print_json(found)
    else:
        print_text(to_text(found, max(state.now_ms, server_ms)))
