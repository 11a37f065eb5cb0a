"""`gpuboss config`: every setting, its value, and where it comes from."""

from __future__ import annotations

from gpuboss.cli.options import ConfigFile, Json, Namespace, RedisUrl, examples

EXAMPLES = examples(
    "gpuboss config --config config.yaml       # also says what is wrong with it, and exits 3",
    "GPUBOSS_TTL=30s gpuboss config",
    "gpuboss config --json | jq -r '.[\"gpu.redis_url\"].origin'",
)


def config(
    json: Json = False, redis_url: RedisUrl = None, namespace: Namespace = None, config: ConfigFile = None
) -> None:
    """Show every setting, its value and its origin.

    Passwords are not shown. Exits 3 if something is wrong with one of them, and says what.
    """
    from gpuboss.cli.output import print_json, print_text, table
    from gpuboss.cli.settings_shown import settings, to_text
    from gpuboss.config import load_config_with_origins

    arguments = {"gpu.redis_url": redis_url, "gpu.namespace": namespace}
    found = settings(*load_config_with_origins(config, arguments=arguments))
    if json:
        print_json({each.key: {"value": each.value, "unit": each.unit, "origin": each.origin} for each in found})
    else:
        print_text(table(("SETTING", "VALUE", "FROM"), [(each.key, to_text(each), each.origin) for each in found]))
