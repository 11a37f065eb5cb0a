"""The names of everything that GPUBoss keeps in Redis: no other file spells a key."""

from __future__ import annotations

import msgspec


class Keys(msgspec.Struct, frozen=True):
    """The keys of one namespace (`gpuboss` by default, `{gpuboss}` on Redis Cluster)."""

    namespace: str = "gpuboss"

    @property
    def events(self) -> str:
        """Stream: the log, the only source of truth."""
        return f"{self.namespace}:events"

    @property
    def leases(self) -> str:
        """Hash: lease_id to the JSON of each lease. A projection, but deleting it is a force release."""
        return f"{self.namespace}:leases"

    @property
    def queue(self) -> str:
        """Hash: lease_id to the JSON of each waiting request."""
        return f"{self.namespace}:queue"

    @property
    def devices(self) -> str:
        """Hash: `<node>/cuda:<n>` to the JSON of each device."""
        return f"{self.namespace}:devices"

    @property
    def sessions(self) -> str:
        """Sorted set: `<service>/<session>` scored by the ms, on Redis' clock, at which it counts as dead."""
        return f"{self.namespace}:sessions"

    @property
    def scheduler(self) -> str:
        """Hash: who leads, its epoch, and how far it has decided."""
        return f"{self.namespace}:scheduler"

    @property
    def snapshot(self) -> str:
        """Hash: the state at a stream id, so that a start need not read the whole log."""
        return f"{self.namespace}:snapshot"

    def replies(self, address: str) -> str:
        """Stream: what the service at `address` is told. `address` is `core.addresses.reply_address()`
        of validated names."""
        return f"{self.namespace}:replies:{address}"
