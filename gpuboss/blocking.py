"""GPUBoss for code without an event loop: the same client, run by a loop in a thread of its own.

from gpuboss.blocking import GPUBoss

with GPUBoss(redis_url="redis://localhost:6379", service="imajin-diffusion") as gpu_boss:
    with gpu_boss.lease(vram_gb=8) as device:
        ...
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar, Unpack

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from gpuboss.client import Device as AsyncDevice
from gpuboss.client import GPUBoss as AsyncGPUBoss
from gpuboss.client import Lease as AsyncLease
from gpuboss.client import OtherSettings, Settings, Wish
from gpuboss.client import Resident as AsyncResident
from gpuboss.client.termination import unwatch, watch
from gpuboss.client.users import User
from gpuboss.errors import GPUBossError, LeaseLost

__all__ = ["Device", "GPUBoss", "Lease", "Resident"]

M = TypeVar("M")
T = TypeVar("T")


class Call(Protocol):
    """Has the loop's thread do something, and waits for it."""

    def __call__(self, act: Callable[[], Awaitable[T]]) -> T: ...


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
        self._calls: set[Future[Any]] = set()

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
            stack.callback(self._end_calls)  # whoever waits for what may never come is told that it will not
            stack.enter_context(portal.wrap_async_context_manager(self._boss))
            watch()  # the client was opened in the loop's thread, but signals belong to this one
            self._stack = stack.pop_all()
        self._portal, self._is_closed = portal, False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unload what is resident, and give back everything. See `gpuboss.GPUBoss`."""
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
            device = Device(lease.visible_devices(), lease._lease)
            device.lease = lease
            yield device
        finally:
            self.release(lease)
        if lease.lost_reason is not None:
            raise LeaseLost(lease.lease_id, lease.lost_reason)

    def acquire(self, **wish: Unpack[Wish]) -> Lease:
        """See `gpuboss.GPUBoss.acquire`. A KeyboardInterrupt leaves no request behind."""
        return Lease(self._call(partial(self._boss.acquire, **wish), undo=self._boss.release), self._call)

    def release(self, lease: Lease | str) -> None:
        """See `gpuboss.GPUBoss.release`."""
        if not self._is_closed:
            self._call(partial(self._boss.release, _behind(lease)))

    def renew(self, lease: Lease | str, *, ttl: float) -> None:
        """See `gpuboss.GPUBoss.renew`."""
        self._call(partial(self._boss.renew, _behind(lease), ttl=ttl))

    def resident(
        self,
        *,
        load: Callable[[AsyncDevice], Awaitable[M]] | Callable[[AsyncDevice], M],
        unload: Callable[[M], object],
        **wish: Unpack[Wish],
    ) -> Resident[M]:
        """See `gpuboss.GPUBoss.resident`. `load` and `unload` run in threads of their own."""
        return Resident(self._boss.resident(load=load, unload=unload, **wish), self)

    def _call(self, act: Callable[[], Awaitable[T]], undo: Callable[[T], Awaitable[None]] | None = None) -> T:
        if self._portal is None:
            raise GPUBossError("this client is not open; expected `with GPUBoss(...) as gpu_boss:` around its use")
        portal = self._portal
        future = portal.start_task_soon(act)
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        try:
            return future.result()
        except CancelledError:
            raise GPUBossError("this client is closed; open another with `with GPUBoss(...)`") from None
        except BaseException:
            # Interrupted here (KeyboardInterrupt), the task over there goes on unless it is told, or is done already.
            if not future.cancel() and not future.cancelled() and future.exception() is None and undo is not None:
                portal.start_task_soon(undo, future.result())
            raise

    def _end_calls(self) -> None:
        for call in list(self._calls):
            call.cancel()


class Lease:
    """What `gpuboss.Lease` is, for a thread: all that is known of it by the same names, and waits that block.

    A wait may have a `timeout` in seconds, and raises `TimeoutError` then.
    """

    lease_id: str
    node: str
    device: str
    devices: list[str]
    uuids: list[str]
    vram_mib: int
    expires_at_ms: int | None
    fence: int
    is_released: bool
    is_idle: bool
    is_lost: bool
    lost_reason: str | None
    deadline: float | None
    visible_devices: Callable[[], tuple[str, ...]]

    def __init__(self, lease: AsyncLease, call: Call) -> None:
        self._lease = lease
        self._call = call

    def __getattr__(self, name: str) -> object:
        return getattr(self._lease, name)

    def __str__(self) -> str:
        return str(self._lease)

    def __repr__(self) -> str:
        return repr(self._lease)

    def __eq__(self, other: object) -> bool:
        return self._lease == (other._lease if isinstance(other, Lease) else other)

    def __hash__(self) -> int:
        return hash(self._lease)

    def idle(self, *, reload_ms: int = 0) -> None:
        """See `gpuboss.Lease.idle`."""
        self._call(partial(self._lease.idle, reload_ms=reload_ms))

    def resume(self, *, reload_ms: int = 0) -> None:
        """See `gpuboss.Lease.resume`."""
        self._call(partial(self._lease.resume, reload_ms=reload_ms))

    def wait_lost(self, timeout: float | None = None) -> str:
        """See `gpuboss.Lease.wait_lost`."""
        return self._call(partial(_within, timeout, self._lease.wait_lost))

    def wait_asked_back(self, timeout: float | None = None) -> float:
        """See `gpuboss.Lease.wait_asked_back`."""
        return self._call(partial(_within, timeout, self._lease.wait_asked_back))


class Device(AsyncDevice):
    """See `gpuboss.Device`."""

    lease: Lease  # type: ignore[assignment]  # the same lease, for a thread


class Resident(Generic[M]):
    """What `gpuboss.Resident` is, for threads.

        diffusion = gpu_boss.resident(load=load_model, unload=unload_model, vram_gb=8)
        with diffusion.use() as model:
            ...

    A thread cannot be cancelled: if the lease ends while the block runs, `diffusion.lease.is_lost` says so, `LeaseLost`
    is raised when the block is left, and the model is unloaded only then.
    """

    def __init__(self, resident: AsyncResident[M], boss: GPUBoss) -> None:
        """For `GPUBoss.resident`."""
        self._resident = resident
        self._boss = boss

    @property
    def lease(self) -> Lease | None:
        """See `gpuboss.Resident.lease`."""
        lease = self._resident.lease
        return None if lease is None else Lease(lease, self._boss._call)

    @contextmanager
    def use(self) -> Iterator[M]:
        """See `gpuboss.Resident.use`. A KeyboardInterrupt while it waits leaves nothing behind."""
        portal = self._boss._portal
        user, model = self._boss._call(self._resident.enter, undo=self._leave)
        assert portal is not None
        try:
            yield model
        finally:
            del model
            with suppress(RuntimeError):  # closing did not wait for ever, and the loop is gone
                portal.start_task_soon(self._resident.leave, user).result()
        if user.over is not None:
            raise user.over

    def close(self) -> None:
        """See `gpuboss.Resident.aclose`."""
        if not self._boss._is_closed:
            self._boss._call(self._resident.aclose)

    def __enter__(self) -> Self:
        """Nothing is loaded before the first use."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _leave(self, entered: tuple[User, M]) -> None:
        self._resident.leave(entered[0])


def _behind(lease: Lease | str) -> AsyncLease | str:
    return lease._lease if isinstance(lease, Lease) else lease


async def _within(timeout_s: float | None, wait: Callable[[], Awaitable[T]]) -> T:
    with anyio.fail_after(timeout_s):
        return await wait()
