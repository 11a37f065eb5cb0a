"""Schedules as a picture: how long requests waited, and how much of the devices was leased when."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gpuboss.errors import ConfigError

if TYPE_CHECKING:
    from gpuboss.simulation.schedule import Schedule

FORMATS = (".png", ".svg")
HOUR_MS = 3_600_000


def checked_plot(path: str | None) -> Path | None:
    """The picture's file, None where none is wanted. Raises `typer.BadParameter` for another format, and
    `ConfigError` where the library that draws is not there."""
    if path is None:
        return None
    file = Path(path)
    if file.suffix.lower() not in FORMATS:
        raise typer.BadParameter(f"{path!r} is no picture; expected a file .png or .svg", param_hint="--plot")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib, which is not installed; try: pip install 'gpuboss[plot]'")
    return file


def draw(file: Path, schedules: Mapping[str, Schedule]) -> None:
    """Draw schedules, each by its name, over one another. Raises `typer.BadParameter` if `file` cannot be written."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    waits, leased = figure.subplots(2, 1)
    for number, (name, schedule) in enumerate(schedules.items()):
        _draw_waits(waits, name, schedule, colour=f"C{number}")
        _draw_leased(leased, name, schedule, colour=f"C{number}")
    waits.set(xlabel="wait from submission to grant, s (log scale)", ylabel="share that waited no longer", ylim=(0, 1))
    waits.set_xscale("symlog", linthresh=1)
    waits.set_xlim(left=0)
    leased.set(xlabel="time from the first submission, h", ylabel="leased, GiB", ylim=(0, None))
    for axes in (waits, leased):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    # Neither a date nor a salt drawn anew: the same schedules give the same picture.
    metadata = {"Date": None} if file.suffix.lower() == ".svg" else None
    try:
        with rc_context({"svg.hashsalt": "gpuboss"}):
            figure.savefig(file, metadata=metadata)
    except OSError as error:
        raise typer.BadParameter(f"cannot write {file}: {error.strerror or error}", param_hint="--plot") from None


def _draw_waits(axes: Any, name: str, schedule: Schedule, colour: str) -> None:
    from gpuboss.simulation.figures import waited

    ordered = sorted(wait_ms for _, wait_ms in waited(schedule))
    shares = [(number + 1) / len(ordered) for number in range(len(ordered))]
    axes.step([0, *(wait_ms / 1000 for wait_ms in ordered)], [0, *shares], where="post", label=name, color=colour)


def _draw_leased(axes: Any, name: str, schedule: Schedule, colour: str) -> None:
    from gpuboss.simulation.figures import leased_steps

    began_ms = schedule.began_at_ms
    for steps, style, label in (
        (leased_steps(schedule), "-", name),
        (schedule.capacity, ":", f"{name}: what the devices can hold"),
    ):
        shown = [*steps, (schedule.until_ms, steps[-1][1])] if steps else []
        hours = [max(0, at_ms - began_ms) / HOUR_MS for at_ms, _ in shown]
        axes.step(hours, [mib / 1024 for _, mib in shown], style, where="post", label=label, color=colour, linewidth=1)
