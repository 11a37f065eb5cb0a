"""The commit: everything that a batch of the log led to becomes one atomic step in Redis (lua/commit.lua)."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import msgspec

from gpuboss.core.addresses import session_member
from gpuboss.core.projections import device_row, lease_row, queue_row
from gpuboss.core.state import State, Told, Turn
from gpuboss.events import LeaseEnded, LeaseGranted
from gpuboss.keys import Keys
from gpuboss_scheduler.scripts import Script

REPLIES_LIVE_MS = 24 * 60 * 60 * 1000  # an unused reply stream goes after as long as ended leases are remembered
REVIVE_EVERY_S = 60.0

assert REVIVE_EVERY_S * 1000 < REPLIES_LIVE_MS / 100

Argument = str | bytes | int

commit_script = Script("commit")
_encode = msgspec.json.Encoder().encode
_ALWAYS_SHOWN = (LeaseGranted, LeaseEnded)


class Commit(NamedTuple):
    """One call of the script: its keys and arguments, where the cursor will be, and how many entries it adds."""

    keys: list[str]
    arguments: list[Argument]
    cursor: str
    decisions: int


class Done(NamedTuple):
    """What a commit answered: the id of the first decision, if there is one, and the leases that somebody ended by
    deleting their row."""

    first_id: str
    missing: list[str]


class Shown:
    """Which rows stand in Redis by our own hand, and which reply streams live on for how long: what need not be
    said again."""

    def __init__(self, state: State, keys: Keys, replies_max: int) -> None:
        """`replies_max`: how many entries a reply stream keeps, about."""
        self.replies_max = replies_max
        self.keys = (keys.scheduler, keys.events, keys.leases, keys.queue, keys.devices, keys.sessions)
        self.replies = keys.replies
        self.leases = set(state.ledger.leases)
        self.queue = set(state.waitlist.by_id)
        self._revived_s: dict[str, float] = {}

    def number_of(self, address: str, number: int) -> int:
        """How the script is told of the stream that is `number` in its keys: as a negative if the stream's life is
        to be extended, which is so now and then."""
        now_s = time.monotonic()
        if now_s - self._revived_s.get(address, -REVIVE_EVERY_S) < REVIVE_EVERY_S:
            return number
        self._revived_s[address] = now_s
        return -number


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

    def commit(self, state: State, shown: Shown, *, epoch: int, seq: int, cursor: str) -> Commit:
        """The call of the script. `seq`: of the last entry that this reign wrote; `cursor`: where it stands now."""
        names = list(shown.keys)
        streams: dict[str | None, int] = {None: 0}
        said: list[Argument] = []
        written = set()  # leases whose row is written even if it is not there
        for told in self.told:
            decision, address = told.decision, told.address
            if address is not None and address not in streams:
                streams[address] = shown.number_of(address, len(streams))
                names.append(shown.replies(address))
            if told.is_new and isinstance(decision, _ALWAYS_SHOWN):
                written.add(decision.lease_id)
            # The script closes it: in the log with the stamp, on the reply stream with the time.
            said += (type(decision).__name__, _encode(decision)[:-1], streams[address], 1 if told.is_new else 0)
        head: list[Argument] = [epoch, cursor, state.last_id, seq, state.now_ms, shown.replies_max, REPLIES_LIVE_MS]
        arguments = [*head, state.policy.session_ttl_ms, len(self.told), *said]
        for what, group in self._groups(state, shown, written).items():
            arguments += (what, len(group))
            arguments += group
        return Commit(names, arguments, state.last_id, sum(told.is_new for told in self.told))

    def _groups(self, state: State, shown: Shown, written: set[str]) -> dict[str, list[Argument]]:
        """The rows to write and to take out, and the sessions that were named."""
        groups: dict[str, list[Argument]] = {}
        for lease_id in self._lease_ids:
            lease = state.ledger.leases.get(lease_id)
            waiting = state.waitlist.by_id.get(lease_id)
            if lease is not None:
                # A lease that ended and is being reclaimed is shown, also when it ended because its row was deleted.
                what = "grant" if lease_id in written else "lease"
                groups.setdefault(what, []).extend((lease_id, _encode(lease_row(lease))))
                shown.leases.add(lease_id)
            elif lease_id in shown.leases:
                groups.setdefault("ended", []).append(lease_id)
                shown.leases.discard(lease_id)
            if waiting is not None:
                groups.setdefault("wait", []).extend((lease_id, _encode(queue_row(waiting))))
                shown.queue.add(lease_id)
            elif lease_id in shown.queue:
                groups.setdefault("served", []).append(lease_id)
                shown.queue.discard(lease_id)
            owner = lease or waiting
            if owner is not None and owner.request.session is not None:
                member = session_member(owner.request.service, owner.request.session)
                groups.setdefault("session", []).append(member)
        for key in self._devices:
            device = state.ledger.devices.get(key)
            if device is None:
                groups.setdefault("lost", []).append(key)
            else:
                groups.setdefault("device", []).extend((key, _encode(device_row(device))))
        return groups


def read_answer(answer: list[Any]) -> Done:
    """The script's answer, its status taken off."""
    first_id, *missing = answer
    return Done(first_id.decode(), [lease_id.decode() for lease_id in missing])
