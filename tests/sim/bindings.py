"""Puts the simulated world in the place of the real one: time, threads, sockets and chance of the modules under test.

Nothing of what they decide is replaced. Every module of the client and of the scheduler that is loaded is looked
through for the names below, so that a new one that asks for the time cannot get the real one unnoticed.
"""

from __future__ import annotations

import functools
import importlib
import secrets
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from anyio._backends import _asyncio
from greenlet import GreenletExit

import gpuboss.connection
from gpuboss.client import session as loaded_client
from gpuboss.client import termination, wish
from gpuboss_scheduler import election, failpoints, line, sessions, talk
from gpuboss_scheduler import scheduler as loaded_scheduler
from gpuboss_scheduler.clock import LogClock
from tests.sim.blocking import SimulatedLine, SimulatedOs, SimulatedSecrets, SimulatedThreading, SimulatedTime
from tests.sim.blocking_redis import connect
from tests.sim.processes import current_thread
from tests.sim.world_now import process_now, world_now

LOOKED_THROUGH = ("gpuboss.client", "gpuboss.connection", "gpuboss_scheduler")
# They are about the real world, and nothing that is simulated runs them.
LEFT_ALONE: tuple[str, ...] = ("gpuboss.client.termination", "gpuboss_scheduler.line", "gpuboss_scheduler.failpoints")
LEFT_ALONE += ("gpuboss_scheduler.__main__", "gpuboss_scheduler.embedded", "gpuboss_scheduler.web.server")

LOADED = (loaded_client, loaded_scheduler)  # and with them all that they import


class NumberedScope(_asyncio.CancelScope):
    """A cancel scope whose place in a set is the same in every run: anyio keeps them in sets."""

    made = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        NumberedScope.made += 1
        self._number = NumberedScope.made
        super().__init__(*arguments, **options)

    def __hash__(self) -> int:
        return self._number


class Bindings:
    """What was replaced, and by what it is to be replaced again."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def bind(self) -> None:
        """Replace it all."""
        NumberedScope.made = 0
        stands_in: dict[int, Any] = {
            id(real): simulated
            for real, simulated in (
                (time, SimulatedTime),
                (threading, SimulatedThreading),
                (secrets, SimulatedSecrets),
                (line.Line, SimulatedLine),
                (gpuboss.connection.connect, connect),
                (talk.say, _say),
                (failpoints.failpoint, _failpoint),
                (termination.add_goodbye, _add_goodbye),
                (termination.drop_goodbye, _drop_goodbye),
            )
        }
        for module, name, real in _places(_modules(), tuple(stands_in)):
            self.put(module, name, stands_in[real])
        for kind in (sessions.Trust, LogClock, election.Watch):  # a default is bound when the module is loaded
            self.put(kind.__init__, "__defaults__", (SimulatedTime.monotonic,))
        self.put(wish, "os", SimulatedOs)
        self.put(_asyncio, "CancelScope", NumberedScope)

    def put(self, owner: Any, name: str, value: Any) -> None:
        """Replace one thing, until `undo`."""
        self._before.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Everything is as it was."""
        while self._before:
            owner, name, value = self._before.pop()
            setattr(owner, name, value)


def _modules() -> tuple[ModuleType, ...]:
    for name in ("gpuboss.client.goodbye", "gpuboss.client.pulse"):
        importlib.import_module(name)
    return tuple(
        module
        for name, module in list(sys.modules.items())
        if name.startswith(LOOKED_THROUGH) and name not in LEFT_ALONE and isinstance(module, ModuleType)
    )


@functools.lru_cache(maxsize=1)
def _places(modules: tuple[ModuleType, ...], reals: tuple[int, ...]) -> list[tuple[ModuleType, str, int]]:
    """Where they hold one of these things, each by its `id`: the same for every world, until a module is loaded."""
    return [
        (module, name, id(value)) for module in modules for name, value in vars(module).items() if id(value) in reals
    ]


def _say(text: str) -> None:
    world_now().said(process_now(), text)


def _failpoint(name: str) -> None:
    """Every step of the scheduler is one at which it may be killed or stand still."""
    process = process_now()
    world = process.world
    world.faults.at_failpoint(process, name)
    if process.is_dead:
        raise GreenletExit
    if process.state == "stopped":
        current_thread().wait(world.timeline.now_us)


def _add_goodbye(say: Callable[[], None]) -> None:
    process_now().goodbyes.append(say)


def _drop_goodbye(say: Callable[[], None]) -> None:
    process_now().goodbyes.remove(say)
