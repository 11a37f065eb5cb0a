"""The world that is open, for code that stands in for a module and so cannot be told."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sim.processes import Process
    from tests.sim.world import World

opened: list[World] = []  # one, while it runs


def enter(world: World) -> None:
    """From now on this is it."""
    assert not opened, "one world at a time"
    opened.append(world)


def leave() -> None:
    """There is none any more."""
    opened.clear()


def world_now() -> World:
    """The world that is open."""
    return opened[0]


def now_us() -> int:
    """Its virtual time."""
    return opened[0].timeline.now_us


def process_now() -> Process:
    """The process whose code runs."""
    process = opened[0].current
    assert process is not None, "no simulated process runs"
    return process
