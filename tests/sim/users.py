"""Tasks of a service in the simulated world: each asks for VRAM again and again, loads, computes, and unloads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anyio

from gpuboss import GPUBoss
from gpuboss.client import Lease
from gpuboss.errors import GPUBossError, LeaseLost, LeaseTimeout
from tests.sim.cards import Part
from tests.sim.event_loop import SimulatedLoop
from tests.sim.processes import Process
from tests.sim.schedulers import NODE

if TYPE_CHECKING:
    from tests.sim.world import World

SIZES_MIB = (1_000, 2_000, 4_000, 8_192, 12_000, 16_000, 20_000)
UNLOAD_S = 0.3  # at most


class Models:
    """What a process has on the cards, and what it does with that."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    def is_loaded(self, lease: Lease) -> bool:
        """Whether there is a model on what was granted; so it is taken to be where the process is gone."""
        return self._process.is_dead or (self._process, lease.lease_id) in self._world.cards.loaded

    async def load(self, lease: Lease) -> None:
        """Rely on a lease, and load a model on it, unless it is lost meanwhile."""
        world, process, lease_id = self._world, self._process, lease.lease_id
        part = Part(tuple(f"{NODE}/{device}" for device in lease.devices), lease.vram_mib)
        world.cards.trust(process, lease_id, part)
        lease.when_lost(lambda: world.cards.distrust(process, lease_id))
        lease.when_asked_back(world.note_asked_back)
        await anyio.sleep(world.random.uniform(0.0, 0.3))
        if not lease.is_lost:
            world.cards.load(process, lease_id, part)
            world.loaded += 1

    async def unload(self, lease: Lease) -> None:
        """Have nothing there any more, whatever happens; and rely on the lease no longer."""
        process, lease_id, cards = self._process, lease.lease_id, self._world.cards
        if (process, lease_id) in cards.loaded:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(self._world.random.uniform(0.0, UNLOAD_S))
        cards.unload(process, lease_id)
        cards.distrust(process, lease_id)

    async def use(self, mean_s: float = 3.0, long: float = 0.15) -> None:
        """For some seconds, and so likely for longer than a process may be cut off; until the world is calm."""
        world, chance = self._world, self._world.random
        if world.settings.busy and not world.is_calm and chance.random() < world.settings.busy:
            await self._compute()
        left_s = chance.expovariate(1 / mean_s) if chance.random() < 1 - long else chance.uniform(10, 60)
        while left_s > 0 and not world.is_calm:
            await anyio.sleep(min(left_s, 2.0))
            left_s -= 2.0

    async def _compute(self) -> None:
        """The event loop's thread is busy, and turns no loop."""
        self._world.count("busy event loop")
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        loop.compute(int(self._world.random.uniform(0.1, 8.0) * 1_000_000))
        await asyncio.sleep(0)


class User:
    """Asks in every way that there is; each round is one request, whatever becomes of it."""

    def __init__(self, world: World, process: Process, boss: GPUBoss) -> None:
        self._world = world
        self._chance = world.random
        self._boss = boss
        self._models = Models(world, process)

    async def live(self) -> None:
        """Until the world is calm."""
        while not self._world.is_calm:
            await anyio.sleep(self._chance.uniform(0.01, 2.0))
            try:
                await self._ask()
            except LeaseTimeout:
                pass
            except GPUBossError as error:
                self._world.told[type(error).__name__] = self._world.told.get(type(error).__name__, 0) + 1
                await anyio.sleep(0.1)

    async def _ask(self) -> None:
        way = self._chance.choices((self._lease, self._acquire, self._give_up), (4, 4, 1))[0]
        self._world.asked += 1
        await way(draw_wish(self._world))

    async def _lease(self, wish: dict[str, Any]) -> None:
        async with self._boss.lease(**wish) as device:
            await self._use(device.lease)

    async def _acquire(self, wish: dict[str, Any]) -> None:
        lease = await self._boss.acquire(**wish)
        try:
            with anyio.CancelScope() as block:
                lease.when_lost(block.cancel)
                await self._use(lease)
                if self._chance.random() < 0.3 and lease.expires_at_ms is not None:
                    await self._boss.renew(lease, ttl=self._chance.uniform(0.5, 10.0))
        finally:
            await self._boss.release(lease)
        if self._chance.random() < 0.1:
            await self._boss.release(lease)

    async def _give_up(self, wish: dict[str, Any]) -> None:
        """Nobody waits so long: whatever comes of it later, nobody uses it."""
        with anyio.move_on_after(self._chance.uniform(0.001, 3.0)):
            async with self._boss.lease(**wish) as device:
                await self._use(device.lease)

    async def _use(self, lease: Lease) -> None:
        if lease.is_lost:
            raise LeaseLost(lease.lease_id, lease.lost_reason or "")
        try:
            await self._models.load(lease)
            if not lease.is_lost:
                await self._models.use()
        finally:
            await self._models.unload(lease)


def draw_wish(world: World) -> dict[str, Any]:
    """What somebody asks for."""
    chance, settings = world.random, world.settings
    wish: dict[str, Any] = {
        "vram_mib": chance.choice(SIZES_MIB),
        "priority": chance.choice(("low", "normal", "normal", "high")),
    }
    if len(settings.devices_mib) > 1 and chance.random() < 0.15:
        wish["gpus"] = 2
        wish["vram_mib"] = min(wish["vram_mib"], min(settings.devices_mib))
    if chance.random() < 0.1:
        wish["exclusive"] = True
    if chance.random() < 0.15 and "gpus" not in wish:
        wish["device"] = f"cuda:{chance.randrange(len(settings.devices_mib))}"
    if chance.random() < 0.3:
        wish["ttl"] = chance.uniform(0.5, 20.0)
    if chance.random() < 0.3:
        wish["wait_timeout"] = chance.uniform(0.2, 10.0)
    return wish
