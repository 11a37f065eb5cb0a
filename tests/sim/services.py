"""Services of the simulated world: the real client, in processes that ask, load, compute, unload, and sometimes die."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anyio

from gpuboss import GPUBoss
from gpuboss.client import Lease
from gpuboss.errors import GPUBossError, LeaseLost, LeaseTimeout
from tests.sim.event_loop import SimulatedLoop
from tests.sim.processes import Process
from tests.sim.schedulers import NODE, URL

if TYPE_CHECKING:
    from tests.sim.world import World

SIZES_MIB = (1_000, 2_000, 4_000, 8_192, 12_000, 16_000, 20_000)
UNLOAD_S = 0.3  # at most
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
        loop.busy_until_us = 1 << 62

        def say_goodbye() -> None:
            for say in list(process.goodbyes):
                say()
            process.kill()

        process.excused_until_us = self._world.timeline.now_us + GOODBYE_US  # it gives back what goes when it dies
        process.start_thread(lambda: _in_any_case(say_goodbye))
        process.after(GOODBYE_US, process.kill)

    async def _live(self, process: Process) -> None:
        world = self._world
        while not world.is_calm:
            try:
                async with GPUBoss(URL, self._service, instance=self._instance) as boss:
                    users = [_User(world, process, boss) for _ in range(world.settings.tasks)]
                    async with anyio.create_task_group() as tasks:
                        for user in users:
                            tasks.start_soon(user.live)
            except GPUBossError:
                await anyio.sleep(0.5)
        self.is_done = True


def _in_any_case(say: Any) -> None:
    import redis

    try:
        say()
    except (redis.RedisError, OSError):
        from tests.sim.world_now import process_now

        process_now().kill()


class _User:
    """One task of a service: asks for VRAM again and again, in every way that there is."""

    def __init__(self, world: World, process: Process, boss: GPUBoss) -> None:
        self._world = world
        self._chance = world.random
        self._process = process
        self._boss = boss

    async def live(self) -> None:
        """Until the world is calm. Each round is one request, whatever becomes of it."""
        while not self._world.is_calm:
            await anyio.sleep(self._chance.uniform(0.01, 2.0))
            way = self._chance.choices((self._lease, self._acquire, self._give_up), (4, 4, 1))[0]
            self._world.asked += 1
            try:
                await way(self._wish())
            except LeaseTimeout:
                pass
            except GPUBossError as error:
                self._world.told[type(error).__name__] = self._world.told.get(type(error).__name__, 0) + 1
                await anyio.sleep(0.1)

    def _wish(self) -> dict[str, Any]:
        chance, settings = self._chance, self._world.settings
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
        """Load, compute, unload: whatever happens, what was loaded is unloaded."""
        world, chance, process = self._world, self._chance, self._process
        lease_id, cards = lease.lease_id, world.cards
        if lease.is_lost:
            raise LeaseLost(lease_id, lease.lost_reason or "")
        cards.trust(process, lease_id, [f"{NODE}/{device}" for device in lease.devices], lease.vram_mib)
        lease.when_lost(lambda: cards.distrust(process, lease_id))
        try:
            await anyio.sleep(chance.uniform(0.0, 0.3))
            if lease.is_lost:
                return
            cards.load(process, lease_id)
            world.loaded += 1
            if world.settings.busy and chance.random() < world.settings.busy:
                await self._compute()
            await self._work()
        finally:
            if (process, lease_id) in cards.loaded:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(chance.uniform(0.0, UNLOAD_S))
            cards.unload(process, lease_id)
            cards.distrust(process, lease_id)

    async def _work(self) -> None:
        """Mostly for some seconds, now and then for longer than a process may be cut off; until the world is calm."""
        left_s = self._chance.expovariate(1 / 3.0) if self._chance.random() < 0.85 else self._chance.uniform(10, 60)
        while left_s > 0 and not self._world.is_calm:
            await anyio.sleep(min(left_s, 2.0))
            left_s -= 2.0

    async def _compute(self) -> None:
        """The event loop's thread is busy, and turns no loop."""
        self._world.count("busy event loop")
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        loop.busy_until_us = self._world.timeline.now_us + int(self._chance.uniform(0.1, 8.0) * 1_000_000)
        await asyncio.sleep(0)
