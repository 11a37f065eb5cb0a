"""`gpuboss status`: who leads, and all projections at a glance."""

from __future__ import annotations

import typer

from gpuboss.cli.options import ConfigFile, Json, Namespace, RedisUrl, examples

EXAMPLES = examples(
    "gpuboss status",
    "gpuboss status --redis-url redis://gpu-box:6379",
    "gpuboss status --json | jq '.devices[].free_mib'",
)


def status(
    json: Json = False, redis_url: RedisUrl = None, namespace: Namespace = None, config: ConfigFile = None
) -> None:
    """Show who leads, the devices, the leases and the queue. Exits 69 if nobody leads."""
    from gpuboss.cli.exits import UNREACHABLE
    from gpuboss.cli.output import print_json, print_text
    from gpuboss.cli.projected import devices_table, leader_line, leases_table, queue_table, read_projected, summary
    from gpuboss.cli.reach import reach
    from gpuboss.terminal import escaped

    with reach(redis_url, namespace, config) as place:
        shown = read_projected(place)
    if json:
        print_json(
            {
                "scheduler": shown.scheduler,
                "devices": shown.devices,
                "leases": shown.leases,
                "queue": shown.queue,
            }
        )
    else:
        tables = (devices_table(shown), leases_table(shown), queue_table(shown))
        print_text("\n\n".join((f"{escaped(leader_line(shown))}\n{summary(shown)}", *tables)))
    if not shown.somebody_leads:
        raise typer.Exit(UNREACHABLE)
