"""Where a log is not what its rules give, as a replay reports it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Divergence(Struct, frozen=True):
    """One place where the log and the rules differ. `recorded` or `derived` is None where there is nothing."""

    entry_id: str  # the recorded entry, or the input whose decision is missing
    problem: str
    recorded: dict[str, Any] | None = None
    derived: dict[str, Any] | None = None
    between: tuple[str, str] | None = None  # behind which entry and through which one an input was changed, if one was
