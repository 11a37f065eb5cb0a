"""The archive's folder as a verb is given it, and what is to be said about it."""

from __future__ import annotations

from pathlib import Path

import typer


def archive_folder(text: str, option: str) -> Path:
    """The folder; what it holds twice is said. Raises `typer.BadParameter` for one that cannot be read."""
    from gpuboss.archive import overlaps, segments_in
    from gpuboss.cli.output import say

    folder = Path(text)
    try:
        segments = segments_in(folder)
    except OSError as error:
        raise typer.BadParameter(
            f"cannot read the archive {text}: {error.strerror or error}", param_hint=option
        ) from None
    for overlap in overlaps(segments):
        say(f"{overlap}; each entry is taken once")
    return folder


def entries_about(folder: Path) -> int:
    """How many entries an archive holds, about: for showing how far one is."""
    from gpuboss.archive import ENTRY_BYTES_ABOUT, segments_in

    return sum(segment.path.stat().st_size for segment in segments_in(folder)) // ENTRY_BYTES_ABOUT
