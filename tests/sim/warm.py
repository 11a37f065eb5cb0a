"""Tasks of a service that keep models warm in the simulated world, by hand and as residents, while they may."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from gpuboss import GPUBoss
from gpuboss.client import Lease
from gpuboss.client.lease import Device
from gpuboss.client.resident import Resident
from gpuboss.errors import LeaseLost
from tests.sim.processes import Process
from tests.sim.users import Models, User, draw_wish

if TYPE_CHECKING:
    from tests.sim.world import World

STUBBORN = 0.3  # how many of those who are asked for a lease keep it until it is taken
RELOAD_MS = (0, 50, 2_000, 60_000)


class WarmUser(User):
    """Holds one lease for many uses, idle between them, until it is asked back, or had enough."""

    async def _ask(self) -> None:
        self._world.asked += 1
        is_preemptible = self._chance.random() < 0.8
        lease = await self._boss.acquire(**draw_wish(self._world), reclaimable=True, preemptible=is_preemptible)
        try:
            with anyio.CancelScope() as block:
                lease.when_lost(block.cancel)
                await self._use(lease)
        finally:
            await self._boss.release(lease)

    async def _use(self, lease: Lease) -> None:
        if lease.is_lost:
            raise LeaseLost(lease.lease_id, lease.lost_reason or "")
        is_stubborn = self._chance.random() < STUBBORN
        try:
            await self._models.load(lease)
            while not self._world.is_calm:
                await self._models.use(mean_s=1.0, long=0.03)
                if lease.deadline is None:
                    await self._rest(lease)
                if lease.deadline is not None and not is_stubborn:
                    return
                if lease.deadline is None and self._chance.random() < 0.2:
                    return
        finally:
            await self._models.unload(lease)

    async def _rest(self, lease: Lease) -> None:
        """Be idle for a while, or until asked back, and maybe go on; raises what that is refused with."""
        await lease.idle(reload_ms=self._chance.choice(RELOAD_MS))
        left_s = self._chance.expovariate(1 / 4.0)
        while left_s > 0 and lease.deadline is None and not self._world.is_calm:
            with anyio.move_on_after(min(left_s, 2.0)):
                await lease.wait_asked_back()
            left_s -= 2.0
        if lease.deadline is None:
            await lease.resume(reload_ms=self._chance.choice(RELOAD_MS))


class ResidentModel:
    """One model that stays until its users are gone, and how it is loaded."""

    def __init__(self, world: World, process: Process, boss: GPUBoss, users: int) -> None:
        self._users = users
        self.models = Models(world, process)
        self.resident: Resident[Lease] = boss.resident(load=self._load, unload=self._unload, **draw_wish(world))

    async def leave(self) -> None:
        """A user is gone. The last one closes it: who is of a lower class would wait for it for ever."""
        self._users -= 1
        if not self._users:
            await self.resident.aclose()

    async def _load(self, device: Device) -> Lease:
        try:
            await self.models.load(device.lease)
        except BaseException:
            await self.models.unload(device.lease)  # it is not relied on
            raise
        return device.lease

    async def _unload(self, lease: Lease) -> None:
        await self.models.unload(lease)


class ResidentUser(User):
    """One of the users of such a model."""

    def __init__(self, world: World, process: Process, boss: GPUBoss, model: ResidentModel) -> None:
        super().__init__(world, process, boss)
        self._name = process.name
        self._model = model

    async def live(self) -> None:
        """As any other; the last one closes the model."""
        await super().live()
        await self._model.leave()

    async def _ask(self) -> None:
        self._world.asked += 1
        with anyio.move_on_after(self._chance.uniform(0.001, 5.0) if self._chance.random() < 0.2 else None):
            async with self._model.resident.use() as lease:
                self._see_that_it_is_there(lease)
                try:
                    await self._models.use(mean_s=1.0, long=0.03)
                finally:
                    self._see_that_it_is_there(lease)

    def _see_that_it_is_there(self, lease: Lease) -> None:
        if not (self._models.is_loaded(lease) or lease.is_lost):
            self._world.blame(f"{self._name} uses the model of {lease.lease_id}, which is not loaded")
