"""A model kept warm between uses: loaded when it is used, unloaded when its VRAM is asked back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Generic, Self, TypeVar

import anyio

from gpuboss.client.keeper import Acquire, Keeper, Release
from gpuboss.client.lease import Device, Lease
from gpuboss.client.users import User
from gpuboss.errors import GPUBossError

M = TypeVar("M")


class Resident(Generic[M]):
    """A model that stays on its card between uses, for as long as nobody else needs the room.

        diffusion = gpu_boss.resident(load=load_model, unload=unload_model, vram_gb=8)
        async with diffusion.use() as model:
            ...

    Any number of tasks use it at once: they share one model and one lease. When the last one has left, the lease is
    idle: it is asked back as soon as somebody waits who needs its room and is of no lower class. Then the model is
    unloaded and the lease released, and the next use gets another and loads it again.

    A lease that is used may be asked back too, by an operator or a higher class: whoever uses the model may finish
    until the deadline, and whoever comes waits for the next lease. At the deadline, or when the lease is lost for
    another reason, the blocks are cancelled; the model is unloaded once they have ended.
    """

    def __init__(
        self,
        acquire: Acquire,
        release: Release,
        load: Callable[[Device], M | Awaitable[M]],
        unload: Callable[[M], object],
    ) -> None:
        """For `GPUBoss.resident`."""
        self._keeper = Keeper(acquire, release, load, unload)
        self._task: asyncio.Task[None] | None = None

    @property
    def is_closed(self) -> bool:
        """Whether it cannot be used any more."""
        return self._keeper.over is not None

    @property
    def lease(self) -> Lease | None:
        """The lease on which the model is loaded now. Long uses look at its `deadline`, or wait for it."""
        return self._keeper.lease

    @asynccontextmanager
    async def use(self) -> AsyncIterator[M]:
        """Use the model for the time of a block: at once where it is loaded, else as soon as it is.

        Raises what `acquire` does; what `load` does; and `LeaseLost` if the lease ends while the model is loaded, or
        while the block runs, which is cancelled then. All who wait for one lease and one load are told the same.
        """
        user, model = await self.enter()
        try:
            with user.block:
                yield model
        finally:
            del model  # the traceback of what is raised here must not keep it on its card
            self.leave(user)
        if user.over is not None:
            raise user.over

    async def enter(self) -> tuple[User, M]:
        """For `use`: wait for the model, and use it until `leave`."""
        if self._keeper.over is not None:
            raise self._keeper.over
        if self._task is None:
            self._task = asyncio.create_task(self._keeper.run(), name="gpuboss resident")
        return await self._keeper.users.come()

    def leave(self, user: User) -> None:
        """For `use`: the block has ended."""
        self._keeper.users.leave(user)

    async def aclose(self) -> None:
        """Unload the model and release its lease; closing the client does that too. Blocks that still run are
        cancelled, and given a few seconds to end."""
        self._keeper.end(GPUBossError("this resident model is closed; make another with gpu_boss.resident(...)"))
        if self._task is not None:
            # What is on the card comes off it, whatever becomes of the caller.
            with anyio.CancelScope(shield=True):
                await asyncio.wait([self._task])

    async def __aenter__(self) -> Self:
        """Nothing is loaded before the first use."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
