"""The keeper of a resident model: the one task that gets leases for it, loads it, keeps it idle, and unloads it.

    away --somebody comes--> waiting for a lease --> loading --> in use <--> idle
      ^                                                            |          |
      +------------- unloading: asked back, lost or closed --------+----------+

Users only line up and leave, so they may be cancelled at any time. There is one model at most.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar, cast

import anyio
import anyio.to_thread

from gpuboss.client.lease import Device, Lease
from gpuboss.client.pace import Alarm
from gpuboss.client.users import Users
from gpuboss.errors import GPUBossError, LeaseDenied, LeaseLost, SchedulerUnavailable

LEAVE_S = 3.0  # how long closing waits for those who use the model, and were told to stop
IDLE_AGAIN_S = 1.0  # after which it is said once more that the model is idle, where nobody answers

M = TypeVar("M")
T = TypeVar("T")
A = TypeVar("A")

Acquire = Callable[[], Coroutine[Any, Any, Lease]]
Release = Callable[[Lease], Awaitable[None]]

_log = logging.getLogger("gpuboss.client")


class Keeper(Generic[M]):
    """Runs from the first use until it is told to `end`. `over` is why nobody can use the model any more."""

    def __init__(
        self,
        acquire: Acquire,
        release: Release,
        load: Callable[[Device], M | Awaitable[M]],
        unload: Callable[[M], object],
    ) -> None:
        self._bell = Alarm()
        self.users: Users[M] = Users(self._bell)
        self.lease: Lease | None = None
        self.over: GPUBossError | None = None
        self._acquire = acquire
        self._release = release
        self._load = load
        self._unload = unload
        self._models: list[M] = []  # the one that is loaded, and our only reference to it

    async def run(self) -> None:
        """Serve whoever comes, lease by lease."""
        try:
            while self.over is None:
                await self._bell.until(lambda: self.users.waiting or self.over)
                await self._serve_on_a_lease()
        except Exception as error:
            _log.exception("a resident model is kept no more")
            self.end(GPUBossError(f"the resident model is kept no more, because of a bug: {error!r}"))

    def end(self, why: GPUBossError) -> None:
        """Unload, and give the lease back; whoever uses the model or waits for it is told `why`."""
        self.over = self.over or why
        self.users.refuse(self.over)
        self.users.stop(self.over)

    async def _serve_on_a_lease(self) -> None:
        try:
            acquiring = await self._bell.finished(self._acquire(), unless=lambda: not self.users.waiting)
            if acquiring.cancelled():
                return
            lease = acquiring.result()
        except Exception as error:
            self.users.refuse(error)
            return
        self.lease = lease
        lease.when_lost(lambda: self.users.stop(_loss_of(lease)))
        lease.when_asked_back(self._bell.ring)
        try:
            if self.users.waiting:  # else whoever wanted it was cancelled just now
                await self._house(lease)
        except Exception as error:
            self.users.refuse(error)
        finally:
            self.lease = None
            await self._release(lease)

    async def _house(self, lease: Lease) -> None:
        """Load the model, have it used, and unload it. Raises what `load` does, and `LeaseLost` if that was in vain."""
        begun_s = time.monotonic()
        await self._load_on(lease)
        try:
            if lease.is_lost:
                raise _loss_of(lease)
            await self._serve(lease, reload_ms=round(1000 * (time.monotonic() - begun_s)))
        finally:
            await self._bell.until(lambda: self.over or not self.users.using)
            await self._bell.until(lambda: not self.users.using, LEAVE_S)
            if self.users.using:
                _log.warning("a resident model is unloaded although %d still use it", len(self.users.using))
            await self._unload_it()

    async def _load_on(self, lease: Lease) -> None:
        """Load the model, unless the lease ends before, and that can be cut short: a thread cannot, and what it returns
        is on the card."""
        devices = [Device(lease.visible_devices(), lease)]
        can_stop = inspect.iscoroutinefunction(self._load)
        work = _called(self._load, devices)
        loading = await self._bell.finished(work, unless=lambda: can_stop and self._is_ending(lease))
        if not loading.cancelled():
            self._models[:] = [loading.result()]  # whatever is left of one that could not be unloaded
        elif not self._is_ending(lease):
            raise GPUBossError("the resident model is not loaded: its load() was cancelled")

    async def _unload_it(self) -> None:
        if self._models:
            try:
                await _called(self._unload, self._models)
            except Exception:
                _log.exception("a resident model was not unloaded as it should; its lease is given back all the same")

    async def _serve(self, lease: Lease, reload_ms: int) -> None:
        """Have the model used for as long as the lease may be."""
        while not self._is_ending(lease):
            self.users.admit(self._models[0])
            await self._bell.until(lambda: self._is_ending(lease) or self.users.waiting or not self.users.using)
            is_unused = not (self.users.waiting or self.users.using)
            if is_unused and not self._is_ending(lease) and not await self._is_woken(lease, reload_ms):
                return

    async def _is_woken(self, lease: Lease, reload_ms: int) -> bool:
        """Keep the lease idle until somebody comes; False if the model must not be used on it again."""
        is_idle = False
        try:
            while not self._is_ending(lease):
                if not (is_idle or self.users.waiting):
                    is_idle = await self._is_said(lease, lease.idle(reload_ms=reload_ms), lambda: self.users.waiting)
                pause_s = None if is_idle else IDLE_AGAIN_S
                await self._bell.until(lambda: self._is_ending(lease) or self.users.waiting, pause_s)
                if self.users.waiting and not self._is_ending(lease):
                    is_idle = False  # from here on it may be either, until that is answered
                    if await self._is_said(lease, lease.resume(reload_ms=reload_ms), lambda: not self.users.waiting):
                        return True
        except (LeaseDenied, LeaseLost):
            pass  # it was asked back, or is over, before this process heard of it
        return False

    async def _is_said(self, lease: Lease, change: Coroutine[Any, Any, None], unless: Callable[[], object]) -> bool:
        """Whether the scheduler says that a lease has changed its state."""
        changing = await self._bell.finished(change, unless=lambda: unless() or self._is_ending(lease))
        try:
            return not changing.cancelled() and changing.result() is None
        except SchedulerUnavailable as error:
            self.users.refuse(error)
            return False

    def _is_ending(self, lease: Lease) -> bool:
        return lease.is_lost or lease.deadline is not None or self.over is not None


def _loss_of(lease: Lease) -> LeaseLost:
    assert lease.lost_reason is not None
    return LeaseLost(lease.lease_id, lease.lost_reason)


async def _called(function: Callable[[A], T | Awaitable[T]], arguments: list[A]) -> T:
    """What a function returns, in the end: a coroutine function in this loop, any other in a thread. Its argument is
    taken out of the list: whoever unloads a model by dropping it needs the last reference."""
    result: Any
    if inspect.iscoroutinefunction(function):
        result = function(arguments.pop())
    else:
        # A limiter of its own: the service's threads may all wait for the room that this one is to make.
        limiter = anyio.CapacityLimiter(1)
        result = await anyio.to_thread.run_sync(lambda: cast("Any", function)(arguments.pop()), limiter=limiter)
    return cast("T", await result if inspect.isawaitable(result) else result)
