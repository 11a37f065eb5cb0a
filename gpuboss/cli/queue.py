"""`gpuboss queue`: who waits for VRAM."""

from __future__ import annotations

from gpuboss.cli.options import ConfigFile, Json, Namespace, RedisUrl, examples

EXAMPLES = examples(
    "gpuboss queue",
    "gpuboss queue --json | jq 'length'",
    "gpuboss why LEASE_ID                      # what stands in the way of one of them",
)


def queue(
    json: Json = False, redis_url: RedisUrl = None, namespace: Namespace = None, config: ConfigFile = None
) -> None:
    """Show who waits, in their order, and why."""
    from gpuboss.cli.output import print_json, print_text
    from gpuboss.cli.projected import queue_table, read_projected
    from gpuboss.cli.reach import reach

    with reach(redis_url, namespace, config) as place:
        shown = read_projected(place)
    if json:
        print_json(shown.queue)
    else:
        print_text(queue_table(shown))
