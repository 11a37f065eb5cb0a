"""The verbs of `gpuboss`, put together."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gpuboss.cli import (
    config,
    devices,
    events,
    export,
    leases,
    queue,
    release,
    replay,
    revoke,
    schema,
    simulate,
    status,
    why,
)
from gpuboss.cli.exits import USAGE
from gpuboss.cli.options import examples

VERBS = (
    ("status", status.status, status.EXAMPLES),
    ("leases", leases.leases, leases.EXAMPLES),
    ("queue", queue.queue, queue.EXAMPLES),
    ("devices", devices.devices, devices.EXAMPLES),
    ("events", events.events, events.EXAMPLES),
    ("why", why.why, why.EXAMPLES),
    ("release", release.release, release.EXAMPLES),
    ("revoke", revoke.revoke, revoke.EXAMPLES),
    ("replay", replay.replay, replay.EXAMPLES),
    ("simulate", simulate.simulate, simulate.EXAMPLES),
    ("export", export.export, export.EXAMPLES),
    ("schema", schema.schema, schema.EXAMPLES),
    ("config", config.config, config.EXAMPLES),
)

EXAMPLES = examples(
    "gpuboss status                            # who leads, the devices, the leases, the queue",
    "gpuboss why LEASE_ID                      # why somebody waits, and what would help",
    "gpuboss events -f                         # follow the log",
    "gpuboss replay                            # derive every decision again, and compare",
)


def application() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        # Typer's own formatting would load rich for every --help and every mistake.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.callback(invoke_without_command=True, epilog=EXAMPLES)(_gpuboss)
    for verb, function, epilog in VERBS:
        app.command(verb, epilog=epilog)(function)
    return app


def _show_version(asked: bool) -> None:
    if asked:
        from gpuboss import __version__
        from gpuboss.cli.output import print_text

        print_text(f"gpuboss {__version__}")
        raise typer.Exit()


def _gpuboss(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """See, explain and steer who holds the VRAM of shared GPUs.

    Data goes to stdout, talk to stderr. Exit codes: 0 ok, 1 the answer is no, 2 usage, 3 config, 69 Redis or
    scheduler unreachable, 75 no lease in time, 77 denied.
    """
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(USAGE)
