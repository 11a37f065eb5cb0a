"""The commit: everything that a batch of the log led to becomes one atomic step in Redis (lua/commit.lua)."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import msgspec

from gpuboss.core.addresses import session_member
from gpuboss.core.ledger import Lease
from gpuboss.core.projections import device_row, lease_row, queue_row
from gpuboss.core.state import State, Told, Turn
from gpuboss.core.waitlist import Waiting
from gpuboss.events import LeaseEnded, LeaseGranted
from gpuboss.keys import Keys
from gpuboss_scheduler.scripts import Script

REPLIES_MAX = 10_000
REPLIES_LIVE_MS = 24 * 60 * 60 * 1000  # an unused reply stream goes after as long as ended leases are remembered
REVIVE_EVERY_S = 60.0

assert REVIVE_EVERY_S * 1000 < REPLIES_LIVE_MS / 100

Argument = str | bytes | int

commit_script = Script("commit")
_encode = msgspec.json.Encoder().encode


class Done(NamedTuple):
    """What a commit answered: where the cursor is, whether everything up to it has been applied to the state, and
    which leases somebody ended by deleting their row."""

    cursor: str
    contiguous: bool
    missing: list[str]


class Shown:
    """Which rows stand in Redis by our own hand, and which reply streams live on for how long: what need not be
    said again."""

    def __init__(self, state: State) -> None:
        self.leases = set(state.ledger.leases)
        self.queue = set(state.waitlist.by_id)
        self._revived_s: dict[str, float] = {}

    def must_revive(self, address: str, now_s: float) -> bool:
        """Whether it is time to extend the life of a reply stream."""
        if now_s - self._revived_s.get(address, -REVIVE_EVERY_S) < REVIVE_EVERY_S:
            return False
        self._revived_s[address] = now_s
        return True


class Batch:
    """What one batch of entries led to, gathered turn by turn."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self._lease_ids: dict[str, None] = {}
        self._devices: dict[str, None] = {}

    def add(self, turn: Turn) -> None:
        """Take what one entry led to."""
        self.told += turn.told
        for lease_id in turn.lease_ids:
            self._lease_ids[lease_id] = None
        for device in turn.devices:
            self._devices[device.key] = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (self.told or self._lease_ids or self._devices)

    @property
    def decisions(self) -> int:
        """How many entries it adds to the log."""
        return sum(told.is_new for told in self.told)

    def arguments(
        self, keys: Keys, state: State, shown: Shown, *, epoch: int, seq: int, cursor: str
    ) -> tuple[list[str], list[Argument]]:
        """The keys and arguments of the script. `seq`: of the last entry that this reign wrote."""
        names = [keys.scheduler, keys.events, keys.leases, keys.queue, keys.devices, keys.sessions]
        streams: dict[str, int] = {}
        said: list[Argument] = []
        now_s = time.monotonic()
        written = set()  # leases whose row is written even if it is not there
        for decision, address, is_new in self.told:
            stream = 0
            if address is not None:
                if address not in streams:
                    names.append(keys.replies(address))
                    number = len(streams) + 1
                    streams[address] = -number if shown.must_revive(address, now_s) else number
                stream = streams[address]
            data = _encode(decision)
            if is_new:
                seq += 1
                data = b'%s,"epoch":%d,"seq":%d}' % (data[:-1], epoch, seq)
                if isinstance(decision, LeaseGranted | LeaseEnded):
                    written.add(decision.lease_id)
            said += (type(decision).__name__, data, stream, 1 if is_new else 0)
        head: list[Argument] = [epoch, cursor, state.last_id, seq, state.now_ms, REPLIES_MAX, REPLIES_LIVE_MS]
        head += (state.policy.session_ttl_ms, len(self.told))
        return names, [*head, *said, *self._rows(state, shown, written)]

    def _rows(self, state: State, shown: Shown, written: set[str]) -> list[Argument]:
        rows: list[Argument] = []
        for lease_id in self._lease_ids:
            lease = state.ledger.leases.get(lease_id)
            waiting = state.waitlist.by_id.get(lease_id)
            if lease is not None:
                # A lease that ended and is being reclaimed is shown, also when it ended because its row was deleted.
                what = "grant" if lease_id in written else "lease"
                rows += (what, lease_id, _encode(lease_row(lease)))
                shown.leases.add(lease_id)
            elif lease_id in shown.leases:
                rows += ("ended", lease_id, b"")
                shown.leases.discard(lease_id)
            if waiting is not None:
                rows += ("wait", lease_id, _encode(queue_row(waiting)))
                shown.queue.add(lease_id)
            elif lease_id in shown.queue:
                rows += ("served", lease_id, b"")
                shown.queue.discard(lease_id)
            rows += _session(lease or waiting)
        for key in self._devices:
            device = state.ledger.devices.get(key)
            rows += ("lost", key, b"") if device is None else ("device", key, _encode(device_row(device)))
        return rows


def read_answer(answer: list[Any]) -> Done:
    """The script's answer, its status taken off."""
    cursor, contiguous, *missing = answer
    return Done(cursor.decode(), contiguous == 1, [lease_id.decode() for lease_id in missing])


def _session(owner: Lease | Waiting | None) -> tuple[Argument, ...]:
    if owner is None or owner.request.session is None:
        return ()
    return ("session", session_member(owner.request.service, owner.request.session), b"")
