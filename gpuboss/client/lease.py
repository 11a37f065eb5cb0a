"""What a service holds: a lease, and the device that goes with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import anyio

from gpuboss.client.visible_devices import own_ordinals

if TYPE_CHECKING:
    from gpuboss.client.replies import Reply

LeaseState = Literal["held", "idle"]


class ChangeState(Protocol):
    """Has the scheduler change a lease's state, and returns when it did."""

    def __call__(self, lease: Lease, state: LeaseState, reload_ms: int) -> Awaitable[None]: ...


class Fate:
    """What becomes of a lease from outside, and how whoever holds it hears of that.

    `deadline` (of `time.monotonic()`, in s; else None): it was asked back, and should be released by then. `is_lost`:
    it is over although it was not released here, and `lost_reason` says why.
    """

    def __init__(self) -> None:
        self.is_lost = False
        self.lost_reason: str | None = None
        self.deadline: float | None = None
        self._lost: anyio.Event | None = None
        self._asked_back: anyio.Event | None = None
        self._when_lost: list[Callable[[], object]] = []
        self._when_asked_back: list[Callable[[], object]] = []

    async def wait_lost(self) -> str:
        """Wait until the lease is lost (for ever, if it is released instead); returns the reason."""
        while self.lost_reason is None:
            self._lost = self._lost or anyio.Event()
            await self._lost.wait()
        return self.lost_reason

    async def wait_asked_back(self) -> float:
        """Wait until the scheduler asks for this lease (maybe for ever); returns `deadline`. Please release."""
        while self.deadline is None:
            self._asked_back = self._asked_back or anyio.Event()
            await self._asked_back.wait()
        return self.deadline

    def lose(self, reason: str) -> None:
        """For the client: the lease is over, and was not released here."""
        self.is_lost, self.lost_reason = True, reason
        if self._lost is not None:
            self._lost.set()
        for notify in self._when_lost:
            notify()

    def ask_back(self, deadline: float) -> None:
        """For the client: the scheduler asks for the lease."""
        self.deadline = deadline
        if self._asked_back is not None:
            self._asked_back.set()
        for notify in self._when_asked_back:
            notify()

    def when_lost(self, notify: Callable[[], object]) -> None:
        """For the client: call `notify` when the lease is lost, at once if it is already."""
        self._when_lost.append(notify)
        if self.is_lost:
            notify()

    def when_asked_back(self, notify: Callable[[], object]) -> None:
        """For the client: call `notify` when the lease is asked back, at once if it is already."""
        self._when_asked_back.append(notify)
        if self.deadline is not None:
            notify()


class Lease(Fate):
    """VRAM that is ours until it is released, expires or is lost. `str(lease)` is its id; equality goes by it.

    `node`, `device` (the first of the list `devices`) and the list `uuids` are as the scheduler granted them; what
    this process calls the devices says `visible_devices()`. `vram_mib` is per device, `expires_at_ms` on the log's
    clock or None, `fence` an integer that only grows from grant to grant. `is_released`: it was given back here.
    `is_idle`: its model is kept warm, unused. For `is_lost`, `lost_reason` and `deadline` see `Fate`.
    """

    def __init__(
        self,
        lease_id: str,
        *,
        node: str,
        devices: Sequence[str],
        uuids: Sequence[str],
        vram_mib: int,
        expires_at_ms: int | None = None,
        fence: int = 0,
    ) -> None:
        super().__init__()
        self.lease_id = lease_id
        self.node = node
        self.device = devices[0]
        self.devices = list(devices)
        self.uuids = list(uuids)
        self.vram_mib = vram_mib
        self.expires_at_ms = expires_at_ms
        self.fence = fence
        self.is_released = False
        self.is_idle = False
        self.change_state: ChangeState = _at_once

    def __str__(self) -> str:
        return self.lease_id

    def __repr__(self) -> str:
        state = f", lost: {self.lost_reason}" if self.is_lost else ", released" if self.is_released else ""
        devices = ",".join(self.devices)
        return f"<Lease {self.lease_id} of {self.vram_mib} MiB on {self.node}/{devices}{state}>"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Lease):
            return self.lease_id == other.lease_id
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.lease_id)

    async def idle(self, *, reload_ms: int = 0) -> None:
        """Say that the model is kept warm and not used, after the last use. From then on the VRAM may be asked back at
        once for whoever waits and is of no lower class; `wait_asked_back` tells, and then it is to be unloaded and
        released. `reload_ms`: what loading it again would take; of several leases the cheapest goes first.

        Returns once the scheduler knows. Raises `ConfigError` for a lease that was not asked for as reclaimable,
        `LeaseDenied` (`yielding`) if it was asked back already, `LeaseLost` and `SchedulerUnavailable`.
        """
        await self.change_state(self, "idle", reload_ms)

    async def resume(self, *, reload_ms: int = 0) -> None:
        """Ask to use the model again that was kept warm; not before this has returned.

        Raises `LeaseDenied` with the reason `yielding` if the lease was asked back meanwhile: unload, release, and
        acquire another; and otherwise what `idle` does.
        """
        await self.change_state(self, "held", reload_ms)

    def visible_devices(self) -> tuple[str, ...]:
        """What this process, under its CUDA_VISIBLE_DEVICES, calls the devices. Raises `ConfigError`."""
        return own_ordinals(self.devices, self.uuids)


class Device(str):
    """A device by the name that this process knows it by, such as `cuda:0`: a str, with the `lease` behind it.

    Of a lease of several GPUs it is the first; `all` has the names of all of them.
    """

    lease: Lease
    all: tuple[str, ...]

    def __new__(cls, names: Sequence[str], lease: Lease) -> Device:
        device = super().__new__(cls, names[0])
        device.lease = lease
        device.all = tuple(names)
        return device

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        # What another process gets is the name: the lease stays with whoever holds it.
        return str, (str(self),)


def granted(reply: Reply) -> Lease:
    """The lease that a grant begins."""
    return Lease(
        reply.lease_id,
        node=reply.node,
        devices=reply.devices or (reply.device,),
        uuids=reply.uuids,
        vram_mib=reply.vram_mib,
        expires_at_ms=reply.expires_at_ms,
        fence=reply.fence,
    )


async def _at_once(lease: Lease, state: LeaseState, reload_ms: int) -> None:
    """Where there is no scheduler to ask."""
    lease.is_idle = state == "idle"
