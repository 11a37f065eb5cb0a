"""What a resident model of the tests is, and who looks after it: never two models at once."""

from __future__ import annotations

import asyncio

import anyio

from gpuboss import Device, Resident
from tests.client.by_hand import until, until_ended
from tests.client.platforms import Platform


class Model:
    """What is on a card."""

    def __init__(self, device: str) -> None:
        self.device = device


class Card:
    """Loads and unloads, and sees to it that no more than one model is there at once."""

    def __init__(self) -> None:
        self.models: list[Model] = []
        self.loads = 0
        self.unloads = 0
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.trouble: Exception | None = None

    async def load(self, device: Device) -> Model:
        self.loads += 1
        await self.may_load.wait()
        if self.trouble is not None:
            raise self.trouble
        assert not self.models, "two models at once"
        self.models.append(Model(device))
        return self.models[0]

    async def unload(self, model: Model) -> None:
        await anyio.sleep(0)
        self.unloads += 1
        self.models.remove(model)
        if self.trouble is not None:
            raise self.trouble


async def use(resident: Resident[Model]) -> None:
    """A use that is over at once."""
    async with resident.use():
        pass


async def use_until_ended(resident: Resident[Model]) -> None:
    """A use that somebody else has to end."""
    async with resident.use():
        await until_ended()


def states(platform: Platform) -> list[str]:
    return [lease["state"] for lease in platform.leases().values()]


def the_lease(platform: Platform) -> str:
    [lease_id] = platform.leases()
    return lease_id


async def until_idle(platform: Platform) -> None:
    await until("the lease to be idle", lambda: states(platform) == ["idle"])
