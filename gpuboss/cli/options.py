"""The options that many verbs share, said once."""

from __future__ import annotations

import re
from typing import Annotated

import typer

TEXT_CHARACTERS_MAX = 512  # what the log takes
_LEASE_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")

RedisUrl = Annotated[
    str | None,
    typer.Option("--redis-url", metavar="URL", help="Where Redis is. [env: GPUBOSS_REDIS_URL; config: gpu.redis_url]"),
]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", metavar="NAME", help="What all keys begin with. [env: GPUBOSS_NAMESPACE]"),
]
ConfigFile = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="The config.yaml to read. [env: GPUBOSS_CONFIG]"),
]
ArchiveFolder = Annotated[
    str | None,
    typer.Option(
        "--archive", metavar="FOLDER", help="Where the scheduler put what it took out of Redis: read it first."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text for people.")]
LeaseId = Annotated[str, typer.Argument(metavar="LEASE_ID", help="The id of the lease, or of the waiting request.")]
Wait = Annotated[
    str, typer.Option("--wait", metavar="TIME", help="How long to wait for the scheduler's answer: 5, 5s, 500ms.")
]

DEVICES = typer.Option(
    "--devices", metavar="DEVICES", help='Simulated devices of one node: "cuda:0=24576,cuda:1=24GB"; bare is MiB.'
)
POLICY = typer.Option(
    "--policy", metavar="FILE", help="The rules, as YAML: what scheduler.policy of config.yaml holds."
)
Plot = Annotated[
    str | None,
    typer.Option("--plot", metavar="FILE", help="Draw waits and utilisation as .png or .svg; needs gpuboss[plot]."),
]


def examples(*lines: str) -> str:
    """The end of a verb's help: commands to copy, each as it stands."""
    return "\b\n" + "\n".join(["Examples:", *(f"  {line}" for line in lines)])  # \b: not to be wrapped


def checked_lease_id(text: str) -> str:
    """The id, if it can be one. Raises `AnswerIsNo`: no lease ever has another."""
    from gpuboss.cli.exits import AnswerIsNo

    if not _LEASE_ID.fullmatch(text):
        raise AnswerIsNo(f"there is no lease {text!r}: ids have 8 to 64 of A-Z a-z 0-9 _ -")
    return text


def printable(text: str, option: str) -> str:
    """A text for the log. Raises `typer.BadParameter` for one that is too long, or no text at all."""
    if len(text) > TEXT_CHARACTERS_MAX:
        raise typer.BadParameter(f"{len(text)} characters; at most {TEXT_CHARACTERS_MAX} are kept", param_hint=option)
    if not text.isprintable():
        raise typer.BadParameter(f"{text!r} holds what cannot be printed; expected one line of text", param_hint=option)
    return text


def duration_ms(text: str, option: str) -> int:
    """A duration as an option gives it, in ms. Raises `typer.BadParameter`."""
    from gpuboss.config.units import parse_duration_ms
    from gpuboss.errors import ConfigError

    try:
        return parse_duration_ms(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def checked_devices(text: str) -> list[tuple[int, int]]:
    """Simulated devices as an option gives them, (index, MiB) each. Raises `typer.BadParameter`."""
    from gpuboss.config import parse_devices
    from gpuboss.errors import ConfigError

    try:
        return parse_devices(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--devices") from None
