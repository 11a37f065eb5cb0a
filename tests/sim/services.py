"""Services of the simulated world: the real client, in processes that ask, load, compute, unload, and sometimes die."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from gpuboss import GPUBoss
from gpuboss.errors import GPUBossError
from tests.sim.event_loop import SimulatedLoop
from tests.sim.processes import Process
from tests.sim.schedulers import URL
from tests.sim.users import User
from tests.sim.warm import ResidentModel, ResidentUser, WarmUser

if TYPE_CHECKING:
    from tests.sim.world import World

GOODBYE_US = 3_000_000  # how long a process that is told to end may take for its last words


class ServiceHost:
    """One place where a process of a service runs, again and again."""

    def __init__(self, world: World, number: int, service: str, instance: str | None) -> None:
        self.name = f"{service}.{instance or number}"
        self.process: Process | None = None
        self.loop: SimulatedLoop | None = None
        self.is_done = False  # it lived to the end, and gave everything back
        self._world = world
        self._service = service
        self._instance = instance
        self._lives = 0

    @property
    def is_up(self) -> bool:
        """Whether its process lives."""
        return self.process is not None and not self.process.is_dead

    def start(self) -> None:
        """Start a process."""
        self._lives += 1
        self.is_done = False
        process = self.process = Process(self._world, f"{self.name}.{self._lives}")
        loop = self.loop = process.loop = SimulatedLoop(process)
        process.when_dead.append(lambda: self._world.cards.died(process))

        def begin() -> None:
            loop.create_task(self._live(process))
            loop.turn()

        self._world.timeline.after(0, lambda: process.do(begin))

    def terminate(self) -> None:
        """SIGTERM: it gives everything back, over a connection of its own, and dies; the loop turns no more."""
        process, loop = self.process, self.loop
        assert process is not None
        assert loop is not None
        if process.state != "runs":
            return
        loop.compute(1 << 62)

        def say_goodbye() -> None:
            for say in list(process.goodbyes):
                say()
            process.kill()

        self._world.cards.excuse(process)
        process.excused_until_us = self._world.timeline.now_us + GOODBYE_US  # it gives back what goes when it dies
        process.start_thread(lambda: _in_any_case(say_goodbye))
        process.after(GOODBYE_US, process.kill)

    async def _live(self, process: Process) -> None:
        world = self._world
        while not world.is_calm:
            try:
                async with GPUBoss(URL, self._service, instance=self._instance) as boss:
                    users = _users(world, process, boss)
                    async with anyio.create_task_group() as tasks:
                        for user in users:
                            tasks.start_soon(user.live)
            except GPUBossError:
                await anyio.sleep(0.5)
        self.is_done = True


def _users(world: World, process: Process, boss: GPUBoss) -> list[User]:
    users = [User(world, process, boss) for _ in range(world.settings.tasks)]
    users += [WarmUser(world, process, boss) for _ in range(world.settings.warm)]
    for number in world.settings.residents:
        model = ResidentModel(world, process, boss, number)
        users += [ResidentUser(world, process, boss, model) for _ in range(number)]
    return users


def _in_any_case(say: Any) -> None:
    import redis

    try:
        say()
    except (redis.RedisError, OSError):
        from tests.sim.world_now import process_now

        process_now().kill()
