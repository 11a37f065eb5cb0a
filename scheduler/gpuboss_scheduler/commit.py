"""The commit: everything that a batch of the log led to becomes one atomic step in Redis (lua/commit.lua)."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any, NamedTuple

import msgspec

from gpuboss.core.addresses import session_member
from gpuboss.core.projections import device_row, lease_row, queue_row
from gpuboss.core.state import State, Told, Turn
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
    """What a commit answered: where the cursor is, whether everything up to it has been applied to the state, the id
    of the first decision if there is one, and which leases somebody ended by deleting their row."""

    cursor: str
    contiguous: bool
    first_id: str
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
        for told in self.told:
            decision, address = told.decision, told.address
            stream = 0
            if address is not None:
                if address not in streams:
                    names.append(keys.replies(address))
                    number = len(streams) + 1
                    streams[address] = -number if shown.must_revive(address, now_s) else number
                stream = streams[address]
            data = _encode(decision)
            if told.is_new:
                seq += 1
                data = b'%s,"epoch":%d,"seq":%d}' % (data[:-1], epoch, seq)
                if isinstance(decision, LeaseGranted | LeaseEnded):
                    written.add(decision.lease_id)
            said += (type(decision).__name__, data, stream, 1 if told.is_new else 0)
        head: list[Argument] = [epoch, cursor, state.last_id, seq, state.now_ms, REPLIES_MAX, REPLIES_LIVE_MS]
        head += (state.policy.session_ttl_ms, len(self.told))
        arguments = [*head, *said]
        for what, group in self._groups(state, shown, written).items():
            arguments += (what, len(group), *group)
        return names, arguments

    def _groups(self, state: State, shown: Shown, written: set[str]) -> dict[str, list[Argument]]:
        """The rows to write and to take out, and the sessions that were named."""
        groups: defaultdict[str, list[Argument]] = defaultdict(list)
        for lease_id in self._lease_ids:
            lease = state.ledger.leases.get(lease_id)
            waiting = state.waitlist.by_id.get(lease_id)
            if lease is not None:
                # A lease that ended and is being reclaimed is shown, also when it ended because its row was deleted.
                groups["grant" if lease_id in written else "lease"] += (lease_id, _encode(lease_row(lease)))
                shown.leases.add(lease_id)
            elif lease_id in shown.leases:
                groups["ended"].append(lease_id)
                shown.leases.discard(lease_id)
            if waiting is not None:
                groups["wait"] += (lease_id, _encode(queue_row(waiting)))
                shown.queue.add(lease_id)
            elif lease_id in shown.queue:
                groups["served"].append(lease_id)
                shown.queue.discard(lease_id)
            owner = lease or waiting
            if owner is not None and owner.request.session is not None:
                groups["session"].append(session_member(owner.request.service, owner.request.session))
        for key in self._devices:
            device = state.ledger.devices.get(key)
            if device is None:
                groups["lost"].append(key)
            else:
                groups["device"] += (key, _encode(device_row(device)))
        return groups


def read_answer(answer: list[Any]) -> Done:
    """The script's answer, its status taken off."""
    cursor, contiguous, first_id, *missing = answer
    return Done(cursor.decode(), contiguous == 1, first_id.decode(), [lease_id.decode() for lease_id in missing])
