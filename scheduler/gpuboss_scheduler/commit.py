"""The commit: everything that a batch of the log led to becomes one atomic step in Redis (lua/commit.lua)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from gpuboss.core.addresses import session_member
from gpuboss.core.projections import device_row, lease_row, queue_row
from gpuboss.core.state import State, Told, Turn
from gpuboss.events import LeaseGranted
from gpuboss.keys import Keys
from gpuboss_scheduler.scripts import Script

REPLIES_LIVE_MS = 24 * 60 * 60 * 1000  # an unused reply stream goes after as long as ended leases are remembered

Argument = str | bytes | int

commit_script = Script("commit")


class Done(NamedTuple):
    """What a commit answered: where the cursor is, whether everything up to it has been applied to the state, and
    which leases somebody ended by deleting their row."""

    cursor: str
    contiguous: bool
    missing: list[str]


class Batch:
    """What one batch of entries led to, gathered turn by turn."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self._lease_ids: dict[str, None] = {}
        self._devices: dict[str, None] = {}
        self._granted: set[str] = set()

    def add(self, turn: Turn) -> None:
        """Take what one entry led to."""
        self.told += turn.told
        for lease_id in turn.lease_ids:
            self._lease_ids[lease_id] = None
        for device in turn.devices:
            self._devices[device.key] = None
        for told in turn.told:
            if told.is_new and isinstance(told.decision, LeaseGranted):
                self._granted.add(told.decision.lease_id)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (self.told or self._lease_ids or self._devices)

    @property
    def decisions(self) -> int:
        """How many entries it adds to the log."""
        return sum(told.is_new for told in self.told)

    def arguments(
        self, keys: Keys, state: State, epoch: int, seq: int, cursor: str, replies_max: int
    ) -> tuple[list[str], list[Argument]]:
        """The keys and arguments of the script. `seq`: of the last entry that this reign wrote."""
        streams: dict[str, int] = {}
        told: list[Argument] = [len(self.told)]
        next_seq = seq
        for decision, address, is_new in self.told:
            stream = 0
            if address is not None:
                stream = streams.setdefault(address, len(streams) + 1)
            data = msgspec.json.encode(decision)
            if is_new:
                next_seq += 1
                data = b'%s,"epoch":%d,"seq":%d}' % (data[:-1], epoch, next_seq)
            told += (type(decision).__name__, data, stream, int(is_new))
        names = [keys.scheduler, keys.events, keys.leases, keys.queue, keys.devices, keys.sessions]
        names += [keys.replies(address) for address in streams]
        head: list[Argument] = [
            epoch,
            cursor,
            state.last_id,
            next_seq,
            state.now_ms,
            replies_max,
            REPLIES_LIVE_MS,
            state.policy.session_ttl_ms,
        ]
        return names, head + told + self._rows(state)

    def _rows(self, state: State) -> list[Argument]:
        granted: list[Argument] = []
        changed: list[Argument] = []
        gone: list[Argument] = []
        waiting: list[Argument] = []
        not_waiting: list[Argument] = []
        sessions: dict[str, None] = {}
        for lease_id in self._lease_ids:
            lease = state.ledger.leases.get(lease_id)
            request = state.waitlist.by_id.get(lease_id)
            if lease is not None:
                rows = granted if lease_id in self._granted else changed
                rows += (lease_id, msgspec.json.encode(lease_row(lease)))
                owner = lease.request
            else:
                gone.append(lease_id)
            if request is not None:
                waiting += (lease_id, msgspec.json.encode(queue_row(request)))
                owner = request.request
            else:
                not_waiting.append(lease_id)
            if (lease is not None or request is not None) and owner.session is not None:
                sessions[session_member(owner.service, owner.session)] = None
        return [
            *_counted(granted, 2),
            *_counted(changed, 2),
            *_counted(gone, 1),
            *_counted(waiting, 2),
            *_counted(not_waiting, 1),
            *self._device_rows(state),
            *_counted(list(sessions), 1),
        ]

    def _device_rows(self, state: State) -> list[Argument]:
        rows: list[Argument] = []
        gone: list[Argument] = []
        for key in self._devices:
            device = state.ledger.devices.get(key)
            if device is None:
                gone.append(key)
            else:
                rows += (key, msgspec.json.encode(device_row(device)))
        return [*_counted(rows, 2), *_counted(gone, 1)]


def read_answer(answer: list[Any]) -> Done:
    """The script's answer, its status taken off."""
    cursor, contiguous, *missing = answer
    return Done(cursor.decode(), contiguous == 1, [lease_id.decode() for lease_id in missing])


def _counted(arguments: Iterable[Argument], width: int) -> list[Argument]:
    values = list(arguments)
    return [len(values) // width, *values]
