"""GPUBoss for code without an event loop: the same client, run by a loop in a thread of its own.

from gpuboss.blocking import GPUBoss

with GPUBoss(redis_url="redis://localhost:6379", service="imajin-diffusion") as gpu_boss:
    with gpu_boss.lease(vram_gb=8) as device:
        ...
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, Unpack

from anyio.from_thread import BlockingPortal, start_blocking_portal

from gpuboss.client import Device, Lease, OtherSettings, Settings, Wish
from gpuboss.client import GPUBoss as AsyncGPUBoss
from gpuboss.client.termination import unwatch, watch
from gpuboss.errors import GPUBossError, LeaseLost

__all__ = ["Device", "GPUBoss", "Lease"]

T = TypeVar("T")


class GPUBoss:
    """The blocking twin of `gpuboss.GPUBoss`: the same arguments, methods and errors. Any thread may use it."""

    def __init__(
        self,
        redis_url: str | None = None,
        service: str | None = None,
        *,
        config: str | os.PathLike[str] | None = None,
        **settings: Unpack[OtherSettings],
    ) -> None:
        """See `gpuboss.GPUBoss`. Raises `ConfigError`."""
        self._boss = AsyncGPUBoss(redis_url, service, config=config, **settings)
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._is_closed = False

    @classmethod
    def from_config(cls, path: str | os.PathLike[str], **settings: Unpack[Settings]) -> Self:
        """A client with the settings of a `config.yaml`, which variables and arguments override."""
        return cls(config=path, **settings)

    def __enter__(self) -> Self:
        """Connect. Raises `SchedulerUnavailable` if Redis does not answer in time."""
        if self._portal is not None:
            raise GPUBossError("this client is open already; a second `with` needs a client of its own")
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal(name="gpuboss"))
            stack.enter_context(portal.wrap_async_context_manager(self._boss))
            watch()  # the client was opened in the loop's thread, but signals belong to this one
            self._stack = stack.pop_all()
        self._portal, self._is_closed = portal, False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back everything, within a few seconds."""
        self._portal, self._is_closed = None, True
        self._stack.close()
        unwatch()

    @contextmanager
    def lease(self, **wish: Unpack[Wish]) -> Iterator[Device]:
        """Hold a lease for the time of a block; yields its device as this process must name it.

        A thread cannot be cancelled: if the lease ends while the block runs, `device.lease.is_lost` says so, and
        `LeaseLost` is raised when the block is left. See `gpuboss.GPUBoss.lease` for the rest.
        """
        lease = self.acquire(**wish)
        try:
            yield Device(lease.visible_devices(), lease)
        finally:
            self.release(lease)
        if lease.lost_reason is not None:
            raise LeaseLost(lease.lease_id, lease.lost_reason)

    def acquire(self, **wish: Unpack[Wish]) -> Lease:
        """See `gpuboss.GPUBoss.acquire`. A KeyboardInterrupt leaves no request behind."""
        return self._call(partial(self._boss.acquire, **wish), undo=self._boss.release)

    def release(self, lease: Lease | str) -> None:
        """See `gpuboss.GPUBoss.release`."""
        if not self._is_closed:
            self._call(partial(self._boss.release, lease))

    def renew(self, lease: Lease | str, *, ttl: float) -> None:
        """See `gpuboss.GPUBoss.renew`."""
        self._call(partial(self._boss.renew, lease, ttl=ttl))

    def _call(self, act: Callable[[], Awaitable[T]], undo: Callable[[T], Awaitable[None]] | None = None) -> T:
        if self._portal is None:
            raise GPUBossError("this client is not open; expected `with GPUBoss(...) as gpu_boss:` around its use")
        future = self._portal.start_task_soon(act)
        try:
            return future.result()
        except BaseException:
            # Interrupted here (KeyboardInterrupt), the task over there goes on unless it is told, or is done already.
            if not future.cancel() and not future.cancelled() and future.exception() is None and undo is not None:
                self._portal.start_task_soon(undo, future.result())
            raise
