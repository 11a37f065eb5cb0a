"""`gpuboss leases`: who holds VRAM."""

from __future__ import annotations

from gpuboss.cli.options import ConfigFile, Json, Namespace, RedisUrl, examples

EXAMPLES = examples(
    "gpuboss leases",
    "gpuboss leases --json | jq -r 'keys[]'",
    "gpuboss revoke LEASE_ID --grace 30s       # ask for one of them back",
)


def leases(
    json: Json = False, redis_url: RedisUrl = None, namespace: Namespace = None, config: ConfigFile = None
) -> None:
    """Show who holds VRAM, on which devices, until when."""
    from gpuboss.cli.output import print_json, print_text
    from gpuboss.cli.projected import leases_table, read_projected
    from gpuboss.cli.reach import reach

    with reach(redis_url, namespace, config) as place:
        shown = read_projected(place)
    if json:
        print_json(shown.leases)
    else:
        print_text(leases_table(shown))
