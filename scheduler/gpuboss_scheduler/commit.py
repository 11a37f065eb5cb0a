"""The commit: everything that a batch of the log led to becomes one atomic step in Redis (lua/commit.lua)."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from msgspec import Struct

from gpuboss.core.addresses import session_member
from gpuboss.core.projections import device_row, lease_row, queue_row
from gpuboss.core.state import State, Told, Turn
from gpuboss.keys import Keys
from gpuboss_scheduler.readback import Raw
from gpuboss_scheduler.reign import Reign
from gpuboss_scheduler.scripts import Script

REPLIES_LIVE_MS = 24 * 60 * 60 * 1000  # an unused reply stream goes after as long as ended leases are remembered
REVIVE_EVERY_S = 60.0
SESSIONS_MAX = 10_000
STREAMS_MAX = 10_000

assert REVIVE_EVERY_S * 1000 < REPLIES_LIVE_MS / 100

Argument = str | bytes | int
Group = tuple[str, list[Argument]]

commit_script = Script("commit")
_encode = msgspec.json.Encoder().encode


class Commit(Struct, frozen=True, gc=False):
    """One call of the script: its keys and arguments, where the cursor will be, and how many entries it adds. `last_id`
    is where the log ends afterwards if nobody else writes meanwhile; None: that cannot be said."""

    keys: list[str]
    arguments: list[Argument]
    cursor: str
    decisions: int
    last_id: str | None


class Done(Struct, frozen=True, gc=False):
    """What a commit answered: the ids of the first and the last decision ('' if there are none), where others wrote
    meanwhile the entries that have the ids now which the decisions were to have, and the leases that somebody ended by
    deleting their row."""

    first_id: str
    last_id: str
    instead: list[Raw]
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
        self._sessions: dict[str, None] = {}
        self._revived_s: dict[str, float] = {}

    def is_new(self, member: str) -> bool:
        """Whether a session was not named to Redis yet, or so long ago that it is forgotten here."""
        if member in self._sessions:
            return False
        self._sessions[member] = None
        if len(self._sessions) > SESSIONS_MAX:
            del self._sessions[next(iter(self._sessions))]
        return True

    def number_of(self, address: str, number: int) -> int:
        """How the script is told of the stream that is `number` in its keys: as a negative if the stream's life is
        to be extended, which is so now and then."""
        now_s = time.monotonic()
        if now_s - self._revived_s.get(address, -REVIVE_EVERY_S) < REVIVE_EVERY_S:
            return number
        self._revived_s.pop(address, None)
        self._revived_s[address] = now_s
        if len(self._revived_s) > STREAMS_MAX:  # forgotten, it is only said once more
            del self._revived_s[next(iter(self._revived_s))]
        return -number


class Batch:
    """What one batch of entries led to, gathered turn by turn."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self._lease_ids: dict[str, None] = {}
        self._devices: dict[str, None] = {}
        self._shown: set[str] = set()

    def add(self, turn: Turn) -> None:
        """Take what one entry led to."""
        self.told += turn.told
        for lease_id in turn.lease_ids:
            self._lease_ids[lease_id] = None
        self._shown.update(turn.shown)
        for device in turn.devices:
            self._devices[device.key] = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (self.told or self._lease_ids or self._devices)

    def commit(self, state: State, shown: Shown, *, reign: Reign, seq: int, cursor: str, behind: str | None) -> Commit:
        """The call of the script. `seq`: of the last entry that this reign wrote; `cursor`: where it stands now;
        `behind`: the id of the last entry that was read, if the decisions may get the ids that follow it: nothing
        needs to be read back then, if nobody else wrote meanwhile. None: they get ids of their own time."""
        names = list(shown.keys)
        streams: dict[str, int] = {}
        log: list[Group] = []
        replies: list[Group] = []
        before, closing = seq, b',"now_ms":%d}' % state.now_ms
        logged = replied = None  # what the last group of each is about
        for told in self.told:
            decision, address = told.decision, told.address
            kind = type(decision).__name__
            data = _encode(decision)[:-1]
            if told.is_new:
                seq += 1
                if kind != logged:
                    logged = kind
                    log.append(("log", [kind]))
                log[-1][1].append(b'%b,"epoch":%d,"seq":%d}' % (data, reign.epoch, seq))
            if address is not None:
                if (address, kind) != replied:
                    replied = (address, kind)
                    if address not in streams:
                        names.append(shown.replies(address))
                        streams[address] = shown.number_of(address, len(streams) + 1)
                    replies.append(("reply", [streams[address], kind]))
                replies[-1][1].append(data + closing)
        decisions = seq - before
        ms, _, count = (behind or "").partition("-")
        if len(count) > 14:  # more than Lua counts exactly
            ms = count = ""
        last_id = f"{ms}-{int(count) + decisions}" if count else None
        arguments: list[Argument] = [reign.token, cursor, state.last_id, seq, ms, count, last_id or ""]
        arguments += (shown.replies_max, REPLIES_LIVE_MS)
        for what, group in (*log, *replies, *self._rows(state, shown).items()):
            arguments += (what, len(group))
            arguments += group
        return Commit(names, arguments, state.last_id, decisions, last_id)

    def _rows(self, state: State, shown: Shown) -> dict[str, list[Argument]]:
        """The rows to write and to take out, and the sessions that were named for the first time."""
        groups: dict[str, list[Argument]] = {}
        leases, waitlist = state.ledger.leases, state.waitlist.by_id
        for lease_id in self._lease_ids:
            lease = leases.get(lease_id)
            waiting = waitlist.get(lease_id)
            if lease is not None:
                # A lease that ended and is being reclaimed is shown, also when it ended because its row was deleted.
                what = "grant" if lease_id in self._shown else "lease"
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
                if shown.is_new(member):
                    groups.setdefault("session", [state.policy.session_ttl_ms]).append(member)
        for key in self._devices:
            device = state.ledger.devices.get(key)
            if device is None:
                groups.setdefault("lost", []).append(key)
            else:
                groups.setdefault("device", []).extend((key, _encode(device_row(device))))
        return groups


def read_answer(answer: list[Any]) -> Done:
    """The script's answer, its status taken off."""
    first_id, last_id, instead, *missing = answer
    return Done(first_id.decode(), last_id.decode(), instead, [lease_id.decode() for lease_id in missing])
