"""Facts about single leases that the leader finds: a row that was deleted, memory that came back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from gpuboss.core.ledger import Lease
from gpuboss.core.policy import lingers_ms
from gpuboss.core.state import State
from gpuboss.events import LeaseRevoked, VramReclaimed
from gpuboss_scheduler.devices.settling import Settling
from gpuboss_scheduler.reign import Reign

POLL_S = 0.05  # while a look at the devices is under way


class LeaseFacts:
    """Appends each such fact once: what was appended is only known to the state when it is read back."""

    def __init__(self, reign: Reign, state: State) -> None:
        self._reign = reign
        self._state = state
        self.settling: Settling | None = None  # None: no device tells what is used on it
        self._unread: dict[str, int] = {}  # lease_id -> seq of the fact about it

    def revoke(self, lease_ids: Iterable[str]) -> None:
        """The rows of these leases were deleted, which is how an operator without tools ends them, or, where they
        are being reclaimed, vouches that their memory is back."""
        leases = self._state.ledger.leases
        facts: list[LeaseRevoked | VramReclaimed] = []
        for lease_id in lease_ids:
            if lease_id in leases:
                reason = "its row in the projection was deleted"
                facts.append(LeaseRevoked(lease_id=lease_id, reason=reason, by="operator"))
                if leases[lease_id].state == "reclaiming":
                    facts.append(VramReclaimed(lease_id=lease_id, how="operator"))
        self._append(facts)

    def reclaim(self, now_ms: int) -> float | None:
        """Give VRAM back whose lease has ended, once an operator vouches for it, NVML shows it, or there was time for
        it (`now_ms` is the log's time). Returns in how many s there is more to see, None if there is nothing."""
        ledger = self._state.ledger
        if not any(device.reclaiming_mib for device in ledger.devices.values()):
            return None
        seen_back = set() if self.settling is None else self.settling.seen_back(ledger)
        if self._reign.jump_seq <= self._state.seq:  # else when a lease ended has not moved along yet
            facts = [
                VramReclaimed(lease_id=lease_id, how=how)
                for lease_id, lease in ledger.leases.items()
                if (how := self._is_back(lease, now_ms, seen_back)) is not None
            ]
            self._append(facts)
        return POLL_S if self.settling is not None and self.settling.is_looking else None

    def _is_back(
        self, lease: Lease, now_ms: int, seen_back: set[str]
    ) -> Literal["operator", "nvml", "settled", "lock_delay"] | None:
        """Whether, and how it is known that, what a lease was charged is free."""
        if lease.reclaiming_since_ms is None:
            return None
        if lease.vouched:
            return "operator"
        if lease.request.lease_id in seen_back:
            return "nvml"
        if lease.reclaiming_since_ms + lingers_ms(self._state.policy, clean=lease.settles) > now_ms:
            return None
        return "settled" if lease.settles else "lock_delay"

    def _append(self, found: Sequence[LeaseRevoked | VramReclaimed]) -> None:
        self._unread = {lease_id: seq for lease_id, seq in self._unread.items() if seq > self._state.seq}
        facts = [fact for fact in found if fact.lease_id not in self._unread]
        if facts:
            self._reign.append(facts)
            self._unread |= {fact.lease_id: self._reign.seq for fact in facts}
