"""An account of the log while it is written, kept by somebody who shares no code with the ledger: who may write, what
is promised on each device and to each service, and that nobody is answered, granted or ended twice, or revived."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from gpuboss.core.stream_ids import is_later
from tests.core.audited_log import DECISION_TYPES, FACT_TYPES
from tests.sim.askings import Askings, Charge

SCHEDULERS = frozenset((*FACT_TYPES, *DECISION_TYPES))
OTHERS = ("LeaseReasserted", "LeaseRequested", "LeaseRevoked")


class Promises:
    """One log, from its first entry on. `blame` is told what is wrong."""

    def __init__(
        self,
        blame: Callable[[str], None],
        injected: set[bytes],
        moved: set[bytes],
        *,
        limits_mib: dict[str, int] | None = None,
        has_gap: bool = False,
    ) -> None:
        """`injected`: the data of entries that somebody forged. `moved`: of those that a reign wrote before it noticed
        that entries were gone; they move to behind the next election, after another loss once more. `limits_mib`: what
        a service may hold, if not any number. `has_gap`: entries are gone, and with them numbers, until a new
        incarnation begins."""
        self.epoch = 0
        self.seq = 0
        self.incarnation = ""
        self.recoveries = 0
        self.elections: list[tuple[str, int]] = []
        self._injected = injected
        self._blame = blame
        self.total_mib: dict[str, int] = {}
        self._charges: dict[str, Charge] = {}
        self._reasserted: dict[str, str] = {}  # entry -> the lease that was charged because of it
        self._fence = 0
        self._has_gap = has_gap
        self._granted_in_gap: dict[str, None] = {}
        self.is_cut = False  # what is read stands before a loss of which no election in it tells
        self._moved = moved
        self.jumps = 0
        self.granted: dict[str, None] = {}
        self.answered: dict[str, None] = {}
        self.ended: dict[str, None] = {}
        self._chain = 0, 0  # epoch and number of the last entry of a scheduler, as far as none is missing before it
        self._over: dict[str, None] = {}  # what ended there: it stays ended, whatever is lost behind it
        self._yielding: dict[str, None] = {}  # what was asked back there, and has not ended
        self._limits_mib = limits_mib or {}
        self._askings = Askings(blame)

    def take(self, entry_id: str, fields: list[bytes]) -> None:
        """The next entry."""
        if len(fields) != 4 or fields[0] != b"type" or fields[2] != b"data":
            return
        kind = fields[1].decode("utf-8", "replace")
        if kind not in SCHEDULERS and kind not in OTHERS:
            return
        if fields[3] in self._injected:
            return
        data = json.loads(fields[3])
        if kind in SCHEDULERS or "seq" in data:
            self._take_chained(kind, data)
            if self._has_gap:
                self._moved.add(fields[3])
            if not self._is_next(kind, data):
                if fields[3] in self._moved:
                    self._take_back(data.get("lease_id"))
                    return
                self._blame(
                    f"S5: {entry_id} {kind} was written as {data.get('epoch')}/{data.get('seq')} behind "
                    f"{self.epoch}/{self.seq}"
                )
                return
            self.epoch, self.seq = data["epoch"], data["seq"]
        act = getattr(self, f"_on_{kind}", None)
        if act is not None:
            act(entry_id, data)

    def not_given_back(self) -> list[str]:
        """What was asked back and has no end, as far as that is known."""
        return list(self._yielding) if self._chain == (self.epoch, self.seq) else []

    def _take_back(self, lease_id: str | None) -> None:
        """What was found behind a gap moved, and is no decision there: what it granted was not."""
        if lease_id in self._granted_in_gap:
            del self._granted_in_gap[lease_id]
            self._charges.pop(lease_id, None)

    def _take_chained(self, kind: str, data: dict[str, Any]) -> None:
        """What stands in the log without a gap before it is known to whoever reads it, after a loss too."""
        epoch, seq = self._chain
        said = data.get("epoch", 0), data.get("seq", 0)
        if kind == "SchedulerElected":
            if said[0] <= epoch or not _goes_on(data, seq):
                return
        elif said != (epoch, seq + 1):
            return
        self._chain = said
        if kind in ("YieldRequested", "LeaseStateChanged") and data["lease_id"] in self._yielding:
            self._blame(f"{data['lease_id']} was asked back, and there is a {kind} of it behind that")
        if kind == "YieldRequested":
            self._yielding[data["lease_id"]] = None
        if kind in ("LeaseEnded", "LeaseGranted") and data["lease_id"] in self._over:
            self._blame(f"{data['lease_id']} had ended, and is believed to be held once more")
        if kind == "LeaseEnded":
            self._over[data["lease_id"]] = None
            self._yielding.pop(data["lease_id"], None)

    def _is_next(self, kind: str, data: dict[str, Any]) -> bool:
        epoch, seq = data.get("epoch", 0), data.get("seq", 0)
        if kind == "SchedulerElected":
            return bool(epoch > self.epoch and (_goes_on(data, self.seq) or self._has_gap))
        if self._has_gap:
            return bool(epoch >= self.epoch)
        return bool(epoch == self.epoch and seq == self.seq + 1)

    def _on_SchedulerElected(self, entry_id: str, data: dict[str, Any]) -> None:
        self.elections.append((data["scheduler"], data["epoch"]))
        if data.get("lost") is not None:
            self.recoveries += 1
            self._has_gap = self.is_cut
            self.granted.clear()
            self.answered.clear()
            self.ended.clear()
            self._askings.forget()
            self._fence = max(self._fence, data["lost"]["fence"])
        self.incarnation = data["incarnation"]

    def _on_DeviceObserved(self, entry_id: str, data: dict[str, Any]) -> None:
        out_of_reach = sum(data.get(f"{name}_mib", 0) for name in ("reserved", "margin", "foreign"))
        self.total_mib[f"{data['node']}/{data['device']}"] = data["total_mib"] - out_of_reach

    def _on_ClockJumped(self, entry_id: str, data: dict[str, Any]) -> None:
        self.jumps += 1

    def _on_LeaseGranted(self, entry_id: str, data: dict[str, Any]) -> None:
        lease_id = data["lease_id"]
        if lease_id in self.granted:
            self._blame(f"S2: {entry_id} grants {lease_id} a second time")
        self._answer(entry_id, lease_id)
        self.granted[lease_id] = None
        if data["fence"] <= self._fence:
            self._blame(f"{entry_id} grants {lease_id} with fence {data['fence']}, not above {self._fence}")
        self._fence = data["fence"]
        devices = tuple(f"{data['node']}/{name}" for name in data["devices"])
        self._charges[lease_id] = Charge(data["service"], devices, data["vram_mib"])
        if self._has_gap:
            self._granted_in_gap[lease_id] = None
        else:
            charges = self._charged_at(data.get("cause", entry_id))
            self._check_lent(entry_id, devices, charges)
            self._check_limit(entry_id, data["service"], charges)

    def _charged_at(self, cause: str) -> dict[str, Charge]:
        """What is promised as the scheduler knew it when it decided on an entry: what is reasserted behind that may
        be refused yet."""
        late = {lease_id for entry_id, lease_id in self._reasserted.items() if is_later(entry_id, cause)}
        return {lease_id: charge for lease_id, charge in self._charges.items() if lease_id not in late}

    def _check_lent(self, entry_id: str, devices: tuple[str, ...], charges: dict[str, Charge]) -> None:
        for device in devices:
            promised_mib = sum(charge.vram_mib for charge in charges.values() if device in charge.devices)
            if promised_mib > self.total_mib.get(device, 0):
                self._blame(
                    f"S1: {entry_id} promises {promised_mib} MiB on {device}, which has {self.total_mib.get(device, 0)}"
                )
        self._askings.lent(entry_id, devices, charges, self.total_mib)

    def _check_limit(self, entry_id: str, service: str, charges: dict[str, Charge]) -> None:
        limit_mib = self._limits_mib.get(service)
        held_mib = sum(len(each.devices) * each.vram_mib for each in charges.values() if each.service == service)
        if limit_mib is not None and held_mib > limit_mib:
            self._blame(f"{entry_id} lends {service} {held_mib} MiB in all, whose limit is {limit_mib}")

    def _on_LeaseRequested(self, entry_id: str, data: dict[str, Any]) -> None:
        if data["service"] not in self._limits_mib:  # else nothing is held for it while its service may not hold more
            self._askings.requested(data)

    def _on_YieldRequested(self, entry_id: str, data: dict[str, Any]) -> None:
        charge = self._charges.get(data["lease_id"])
        if charge is not None:
            self._askings.asked_back(data, charge, list(self.total_mib))

    def _on_LeaseDenied(self, entry_id: str, data: dict[str, Any]) -> None:
        self._answer(entry_id, data["lease_id"])

    def _answer(self, entry_id: str, lease_id: str) -> None:
        if lease_id in self.answered:
            self._blame(f"{entry_id} answers {lease_id} a second time")
        self.answered[lease_id] = None
        self._askings.answered(lease_id)

    def _on_LeaseEnded(self, entry_id: str, data: dict[str, Any]) -> None:
        lease_id = data["lease_id"]
        if lease_id in self.ended:
            self._blame(f"{entry_id} ends {lease_id} a second time")
        self.ended[lease_id] = None
        if data["freed"]:
            self._charges.pop(lease_id, None)

    def _on_VramReclaimed(self, entry_id: str, data: dict[str, Any]) -> None:
        self._charges.pop(data["lease_id"], None)

    def _on_LeaseReasserted(self, entry_id: str, data: dict[str, Any]) -> None:
        lease_id = data["lease_id"]
        if lease_id not in self._charges:
            self._reasserted[entry_id] = lease_id
            devices = tuple(f"{data['node']}/{name}" for name in data["devices"])
            self._charges[lease_id] = Charge(data["service"], devices, data["vram_mib"])

    def _on_EventRejected(self, entry_id: str, data: dict[str, Any]) -> None:
        lease_id = self._reasserted.pop(data["event_id"], None)
        if lease_id is not None:
            self._charges.pop(lease_id, None)


def _goes_on(elected: dict[str, Any], seq: int) -> bool:
    """Whether an election follows the scheduler's entry of that number. After a loss what was found and led to nothing
    yet goes, and the numbers of these are given once more."""
    said: int = elected.get("seq", 0)
    return 0 < said <= seq + 1 if elected.get("lost") is not None else said == seq + 1
