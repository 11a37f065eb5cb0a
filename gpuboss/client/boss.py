"""The public class: one service's client of GPUBoss."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack

import anyio

from gpuboss.client import dealings
from gpuboss.client.lease import Device, Lease
from gpuboss.client.resident import Resident
from gpuboss.client.session import Session, mint
from gpuboss.client.wish import Wish, lease_id_of, request_of, ttl_ms_of
from gpuboss.config import load_config
from gpuboss.errors import ConfigError, GPUBossError, LeaseLost
from gpuboss.events import LeaseRequested
from gpuboss.fields import Priority
from gpuboss.keys import Keys

CONNECT_TIMEOUT_S = 5.0

M = TypeVar("M")


class OtherSettings(TypedDict, total=False):
    """The arguments of `GPUBoss` that are only given by name. What is left out, or None, comes from `GPUBOSS_*`
    variables, the configuration file and the defaults, in this order."""

    namespace: str | None
    instance: str | None
    """The name of one replica, where replicas are answered apart."""
    node: str | None
    """The host whose devices are wanted, unless a request says otherwise."""
    priority: Priority | None
    connect_timeout: float
    """Seconds in which Redis must answer at first, and a leader be found before each request."""


class Settings(OtherSettings, total=False):
    """All arguments of `GPUBoss`."""

    redis_url: str | None
    service: str | None
    """Who asks: the name of the service, the same for all its processes."""


class GPUBoss:
    """A service's way to VRAM. Runs on asyncio; code without an event loop uses `gpuboss.blocking`.

        async with GPUBoss(redis_url="redis://localhost:6379", service="imajin-diffusion") as gpu_boss:
            async with gpu_boss.lease(vram_gb=8, priority="normal") as device:
                ...  # device == "cuda:0"

    Any number of tasks may use one client. Closing it gives back what it holds, and so does SIGTERM, where the
    service does not handle that itself.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        service: str | None = None,
        *,
        config: str | os.PathLike[str] | None = None,
        namespace: str | None = None,
        instance: str | None = None,
        node: str | None = None,
        priority: Priority | None = None,
        connect_timeout: float = CONNECT_TIMEOUT_S,
    ) -> None:
        """See `Settings`; `config` is the path of a `config.yaml`. Raises `ConfigError` for any mistake in them."""
        arguments = {
            "gpu.redis_url": redis_url,
            "gpu.service": service,
            "gpu.namespace": namespace,
            "gpu.instance": instance,
            "gpu.node": node,
            "gpu.priority": priority,
        }
        self._config = load_config(None if config is None else os.fspath(config), arguments=arguments)
        if self._config.gpu.service is None:
            raise ConfigError(
                "the service has no name; expected service=..., GPUBOSS_SERVICE, or `service` under `gpu` in the "
                "configuration, for example imajin-diffusion"
            )
        self._connect_timeout_s = ttl_ms_of("connect_timeout", connect_timeout) / 1000
        self._session: Session | None = None
        self._residents: list[Resident[Any]] = []

    @classmethod
    def from_config(cls, path: str | os.PathLike[str], **settings: Unpack[Settings]) -> Self:
        """A client with the settings of a `config.yaml`, which variables and arguments override."""
        return cls(config=path, **settings)

    async def __aenter__(self) -> Self:
        """Connect. Raises `SchedulerUnavailable` if Redis does not answer in time."""
        _check_event_loop()
        if self._session is not None and self._session.over is None:
            raise GPUBossError("this client is open already; a second `async with` needs a client of its own")
        gpu = self._config.gpu
        if gpu.enabled:
            assert gpu.service is not None
            session = Session(gpu.redis_url, Keys(gpu.namespace), gpu.service, gpu.instance, self._connect_timeout_s)
            await session.open()
            self._session = session
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unload what is resident, and give back everything, within a few seconds and what unloading takes."""
        while self._residents:
            await self._residents.pop().aclose()
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def lease(self, **wish: Unpack[Wish]) -> AsyncIterator[Device]:
        """Hold a lease for the time of a block; yields its device as this process must name it. See `Wish`.

        Raises what `acquire` does; `ConfigError` if CUDA_VISIBLE_DEVICES hides the device that was granted; and
        `LeaseLost` if the lease ends while the block runs, which is cancelled then.
        """
        lease = await self.acquire(**wish)
        try:
            device = Device(lease.visible_devices(), lease)
            with anyio.CancelScope() as block:
                lease.when_lost(block.cancel)
                yield device
        finally:
            await self.release(lease)
        if lease.lost_reason is not None:
            raise LeaseLost(lease.lease_id, lease.lost_reason)

    async def acquire(self, **wish: Unpack[Wish]) -> Lease:
        """Wait for a lease, to be given back with `release`. See `Wish`.

        Raises `ConfigError` for wrong arguments, `LeaseTimeout`, `LeaseImpossible` and other `LeaseDenied`, `LeaseLost`
        if it was over before this process heard of it, and `SchedulerUnavailable` if Redis does not answer or nobody
        leads, before or while it waits.
        """
        request = request_of(wish, self._config, lease_id=mint(), session=mint())
        if not self._config.gpu.enabled:
            return _cpu(request)
        return await dealings.ask(self._open_session(), request)

    async def release(self, lease: Lease | str) -> None:
        """Give a lease back, or take a request back, by itself or by its id.

        Twice is as good as once. A lease that was lost needs no release, but where its client gave it up because its
        time was over or nothing was heard from Redis, or the log is lost that had ended it, its VRAM comes back sooner
        with one. Returns when Redis has it; where Redis does not answer for some seconds, it is delivered once it does.
        """
        lease_id = lease_id_of(lease)
        if not self._config.gpu.enabled or (isinstance(lease, Lease) and lease.is_released):
            return
        session = self._open_session()
        if lease_id in session.desk.ended:
            session.desk.ended[lease_id] = True
        if not (isinstance(lease, Lease) and lease.is_lost) or lease_id in session.desk.given_up:
            await dealings.give_back(session, lease_id)

    async def renew(self, lease: Lease | str, *, ttl: float) -> None:
        """Have a lease of this client end `ttl` seconds from now.

        Raises `LeaseDenied` if the scheduler has other plans for it (it then ends when it would have),
        `LeaseLost` if it is over, and `SchedulerUnavailable`.
        """
        lease_id, ttl_ms = lease_id_of(lease), ttl_ms_of("ttl", ttl)
        if isinstance(lease, Lease) and lease.lost_reason is not None:
            raise LeaseLost(lease_id, lease.lost_reason)
        if self._config.gpu.enabled:
            await dealings.renew(self._open_session(), lease_id, ttl_ms)

    def resident(
        self,
        *,
        load: Callable[[Device], Awaitable[M]] | Callable[[Device], M],
        unload: Callable[[M], object],
        **wish: Unpack[Wish],
    ) -> Resident[M]:
        """A model that is kept warm between uses; see `Resident`. Nothing is asked for or loaded before its first use.

        `load` gets the device (see `Device`) and returns the model, `unload` gets that, and this client's last
        reference to it. Each may be async; if it is not, it runs in a thread. What `load` raises is raised where the
        model was to be used, what `unload` raises is logged; either way the lease is released. `wish` is what each
        lease is asked for with: see `Wish`; it is reclaimable. Raises `ConfigError` for wrong arguments.
        """
        if wish.get("reclaimable") is False:
            raise ConfigError("reclaimable=False: a resident model is asked back while it is idle; leave that out")
        wish["reclaimable"] = True
        request_of(wish, self._config, lease_id=mint(), session=mint())
        resident = Resident(partial(self.acquire, **wish), self.release, load, unload)
        self._residents = [*(each for each in self._residents if not each.is_closed), resident]
        return resident

    def _open_session(self) -> Session:
        if self._session is None:
            raise GPUBossError(
                "this client is not open; expected `async with GPUBoss(...) as gpu_boss:` around its use"
            )
        return self._session


def _check_event_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise GPUBossError(
            "GPUBoss runs on asyncio, and this is another event loop (trio?); expected asyncio.run(), or "
            "gpuboss.blocking in a thread"
        ) from None


def _cpu(request: LeaseRequested) -> Lease:
    """What is granted where `gpu.enabled` is false: everything, at once."""
    return Lease(
        request.lease_id, node=request.node or "localhost", devices=["cpu"], uuids=[], vram_mib=request.vram_mib
    )
