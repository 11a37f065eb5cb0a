"""What was asked back, as the log tells it: no such lease is revived, and nobody else is granted what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Charge(NamedTuple):
    """So much is promised on each of these devices, to a lease of this service."""

    service: str
    devices: tuple[str, ...]
    vram_mib: int


class Wish(NamedTuple):
    """What a request needs, on each of so many devices."""

    vram_mib: int
    gpus: int
    is_exclusive: bool


class Askings:
    """Who was asked, and for whom. `blame` is told what is wrong."""

    def __init__(self, blame: Callable[[str], None]) -> None:
        self._blame = blame
        self._known: dict[str, Wish] = {}
        self._asked: dict[str, None] = {}  # the leases
        self._places: dict[str, list[str]] = {}  # of each request for which some were asked, where it may be to begin

    def forget(self) -> None:
        """Entries were lost: nothing is held any more for anybody."""
        self._asked.clear()
        self._places.clear()

    def requested(self, data: dict[str, Any]) -> None:
        """Somebody asks."""
        wish = Wish(data["vram_mib"], data.get("gpus", 1), data.get("exclusive", False))
        self._known.setdefault(data["lease_id"], wish)

    def asked_back(self, data: dict[str, Any], charge: Charge, devices: list[str]) -> None:
        """A lease is asked back, of all that there are on these devices."""
        waiting = data["for"]
        self._asked[data["lease_id"]] = None
        if waiting in self._known:
            places = self._places.setdefault(waiting, devices)
            if self._known[waiting].gpus == 1:
                self._places[waiting] = [device for device in places if device in charge.devices]

    def answered(self, lease_id: str) -> None:
        """A request waits no more, and nothing is held for it."""
        self._places.pop(lease_id, None)

    def lent(
        self, entry_id: str, devices: tuple[str, ...], charges: dict[str, Charge], total_mib: dict[str, int]
    ) -> None:
        """Something was lent there: whoever others were asked for must still fit once they are gone."""
        for waiting, places in self._places.items():
            if set(places).isdisjoint(devices):
                continue
            wish = self._known[waiting]
            fitting = [device for device in places if self._fits(wish, device, charges, total_mib[device])]
            if len(fitting) < wish.gpus:
                self._blame(f"{entry_id} lends on {', '.join(devices)} what was asked back for {waiting}")

    def _fits(self, wish: Wish, device: str, charges: dict[str, Charge], total_mib: int) -> bool:
        staying = [
            charge.vram_mib
            for lease_id, charge in charges.items()
            if device in charge.devices and lease_id not in self._asked
        ]
        return not (wish.is_exclusive and staying) and sum(staying) + wish.vram_mib <= total_mib
