"""`gpuboss devices`: the GPUs, and what is free on them."""

from __future__ import annotations

from gpuboss.cli.options import ConfigFile, Json, Namespace, RedisUrl, examples

EXAMPLES = examples(
    "gpuboss devices",
    "gpuboss devices --json | jq 'map_values(.free_mib)'",
)


def devices(
    json: Json = False, redis_url: RedisUrl = None, namespace: Namespace = None, config: ConfigFile = None
) -> None:
    """Show the devices, and what is free on them."""
    from gpuboss.cli.output import print_json, print_text
    from gpuboss.cli.projected import devices_table, read_projected
    from gpuboss.cli.reach import reach

    with reach(redis_url, namespace, config) as place:
        shown = read_projected(place)
    if json:
        print_json(shown.devices)
    else:
        print_text(devices_table(shown))
