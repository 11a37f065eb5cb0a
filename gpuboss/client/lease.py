"""What a service holds: a lease, and the device that goes with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import anyio

from gpuboss.client.visible_devices import own_ordinals

if TYPE_CHECKING:
    from gpuboss.client.replies import Reply


class Lease:
    """VRAM that is ours until it is released, expires or is lost. `str(lease)` is its id; equality goes by it.

    `node`, `device` (the first of the list `devices`) and the list `uuids` are as the scheduler granted them; what
    this process calls the devices says `visible_devices()`. `vram_mib` is per device, `expires_at_ms` on the log's
    clock or None, `fence` an integer that only grows from grant to grant. `is_released`: it was given back here.
    `is_lost`: it is over although it was not, and `lost_reason` says why. `deadline` (of `time.monotonic()`, in s;
    else None): it was asked back, and should be released by then.
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
        self.lease_id = lease_id
        self.node = node
        self.device = devices[0]
        self.devices = list(devices)
        self.uuids = list(uuids)
        self.vram_mib = vram_mib
        self.expires_at_ms = expires_at_ms
        self.fence = fence
        self.is_released = False
        self.is_lost = False
        self.lost_reason: str | None = None
        self.deadline: float | None = None
        self._lost: anyio.Event | None = None
        self._asked_back: anyio.Event | None = None
        self._when_lost: list[Callable[[], object]] = []

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

    def visible_devices(self) -> tuple[str, ...]:
        """What this process, under its CUDA_VISIBLE_DEVICES, calls the devices. Raises `ConfigError`."""
        return own_ordinals(self.devices, self.uuids)

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

    def when_lost(self, notify: Callable[[], object]) -> None:
        """For the client: call `notify` when the lease is lost, at once if it is already."""
        self._when_lost.append(notify)
        if self.is_lost:
            notify()


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
