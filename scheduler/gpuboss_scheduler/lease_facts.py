"""Facts about single leases that the leader finds: a row that was deleted, memory that came back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpuboss.core.state import State
from gpuboss.events import LeaseRevoked, VramReclaimed
from gpuboss_scheduler.reign import Reign


class LeaseFacts:
    """Appends each such fact once: what was appended is only known to the state when it is read back."""

    def __init__(self, reign: Reign, state: State) -> None:
        self._reign = reign
        self._state = state
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

    def reclaim(self, now_ms: int) -> None:
        """Give VRAM back whose lease ended uncleanly, once an operator vouches for it, or the lock delay has passed
        (`now_ms` is the log's time)."""
        ledger = self._state.ledger
        if self._reign.jump_seq > self._state.seq:
            return  # when its lease ended has not moved along yet
        if not any(device.reclaiming_mib for device in ledger.devices.values()):
            return
        due_ms = now_ms - self._state.policy.lock_delay_ms
        self._append(
            [
                VramReclaimed(lease_id=lease_id, how="operator" if lease.vouched else "lock_delay")
                for lease_id, lease in ledger.leases.items()
                if lease.reclaiming_since_ms is not None and (lease.vouched or lease.reclaiming_since_ms <= due_ms)
            ]
        )

    def _append(self, found: Sequence[LeaseRevoked | VramReclaimed]) -> None:
        self._unread = {lease_id: seq for lease_id, seq in self._unread.items() if seq > self._state.seq}
        facts = [fact for fact in found if fact.lease_id not in self._unread]
        if facts:
            self._reign.append(facts)
            self._unread |= {fact.lease_id: self._reign.seq for fact in facts}
