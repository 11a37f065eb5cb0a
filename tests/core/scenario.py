"""Given events, when an event, then decisions: a log in the making, and the scheduler that decides it as it grows.

    given = Scenario(24_576)
    given.request("a", 8_192)
    assert given.release("a") == ["ended a: released, freed"]

`Log` is the bare thing: entries, stamps and decisions as they would stand in Redis. `Scenario` has the verbs with
which a test tells its story, and answers each with one short line a decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from gpuboss.core import snapshot
from gpuboss.core.machine import step
from gpuboss.core.state import State, Told, Turn
from gpuboss.events import (
    ClockJumped,
    ClockTicked,
    Decision,
    DeviceLost,
    DeviceObserved,
    Event,
    EventRejected,
    LeaseDenied,
    LeaseEnded,
    LeaseExtended,
    LeaseGranted,
    LeaseIdled,
    LeaseReleased,
    LeaseRenewed,
    LeaseRequested,
    LeaseResumed,
    LeaseRevoked,
    LeaseStateChanged,
    PolicySet,
    PromiseMoved,
    SchedulerElected,
    SessionLost,
    SnapshotTaken,
    VramReclaimed,
    YieldRequested,
)
from gpuboss.fields import HeadStart, ServiceRules
from tests.core.model_decisions import Rejection

START_MS = 1_700_000_000_000
NODE = "alpha"
SERVICE = "imajin"


class Entry(NamedTuple):
    """One entry of the log: its stream id, and its field list as Redis holds it."""

    id: str
    fields: list[bytes]


class Log:
    """A log and one scheduler that reads, decides and commits it, all in memory.

    Entries that are appended between `read` and `commit` stand before the decisions of what was read, as they do
    in Redis when somebody writes while the scheduler thinks.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.now_ms = START_MS
        self.state = State()
        self.epoch = 0
        self.seq = 0  # of the last entry that was stamped
        self.stamped: set[str] = set()  # the ids of those entries
        self._read = 0  # how many entries the state has seen
        self._cursor = 0  # how many had been seen at the last commit
        self._held_back: list[Told] = []

    def append(self, *fields: bytes) -> str:
        """Append an entry with these fields, whatever they are, now. Returns its id."""
        ms, number = self.now_ms, 0
        if self.entries:
            last_ms, _, last_number = self.entries[-1].id.partition("-")
            if int(last_ms) >= ms:
                ms, number = int(last_ms), int(last_number) + 1
        self.entries.append(Entry(f"{ms}-{number}", list(fields)))
        return self.entries[-1].id

    def append_hostile(self, fields: list[bytes], rejection: Rejection) -> None:
        """Append what is no event, and should be rejected like this."""
        self.append(*fields)

    def write(self, event: Event) -> str:
        """Append an event, as a service or an operator does."""
        return self.append(b"type", type(event).__name__.encode(), b"data", msgspec.json.encode(event))

    def stamp(self, event: Event) -> str:
        """Append a fact or a decision with the next stamp, as the scheduler does."""
        if isinstance(event, SchedulerElected):
            self.epoch += 1
        self.seq += 1
        entry_id = self.write_stamped(event, self.epoch, self.seq)
        self.stamped.add(entry_id)
        return entry_id

    def write_stamped(self, event: Event, epoch: int, seq: int) -> str:
        """Append an event with a stamp, whoever writes it."""
        data = msgspec.to_builtins(event) | {"epoch": epoch, "seq": seq}  # a revocation has such fields of its own
        return self.append(b"type", type(event).__name__.encode(), b"data", msgspec.json.encode(data))

    def read(self, most: int | None = None) -> list[Told]:
        """Decide the next `most` entries (None: all there are), and keep the decisions until `commit`."""
        until = len(self.entries) if most is None else min(len(self.entries), self._read + most)
        told = [each for entry in self.entries[self._read : until] for each in self.step(entry).told]
        self._read = until
        self._held_back += told
        return told

    def step(self, entry: Entry) -> Turn:
        """Apply the next entry to the state."""
        return step(self.state, *entry)

    def commit(self) -> None:
        """Append what was decided."""
        self._cursor = self._read
        for told in self._held_back:
            if told.is_new:
                self.stamp(told.decision)
        self._held_back.clear()

    def settle(self) -> list[Told]:
        """Decide and commit until nothing is left to be read. Returns all that was told."""
        told = self.read()
        self.commit()
        again = self.read()
        assert not again, "decisions lead to nothing"
        self.commit()
        return told

    def restart(self) -> None:
        """Go on from a snapshot of the state."""
        dumped = snapshot.dump(self.state)
        self.state = snapshot.load(dumped)
        assert snapshot.dump(self.state) == dumped

    def take_snapshot(self) -> str:
        """Say in the log what the state is; it need not be kept. Returns the entry at which it stands."""
        through, inputs = self.state.last_id, self.state.inputs.hex()
        self.stamp(SnapshotTaken(through, inputs, snapshot.digest(snapshot.dump(self.state))))
        return through

    def crash(self) -> None:
        """Lose what was not committed: another scheduler folds the log, and decides the rest of it anew."""
        self.state = fold(self.entries[: self._cursor])
        self._read = self._cursor
        self._held_back.clear()
        self.stamp(SchedulerElected("another", "0", 1, self.state.incarnation))


def fold(entries: Sequence[Entry]) -> State:
    """The state that a log means."""
    state = State()
    for entry in entries:
        step(state, *entry)
    return state


def padded(name: str) -> str:
    """A lease_id or session of lawful length out of a short name."""
    return name.ljust(8, "_")


def observed(number: int, total_mib: int, node: str = NODE, **fields: Any) -> DeviceObserved:
    """A simulated device, unless `fields` say otherwise."""
    about: dict[str, Any] = {"uuid": f"GPU-{node}-{number}", "name": "simulated", "simulated": True}
    return DeviceObserved(node=node, device=f"cuda:{number}", total_mib=total_mib, **(about | fields))


def policy(
    lock_delay_ms: int = 0,
    max_waiting: int | None = None,
    services: Mapping[str, int | ServiceRules] | None = None,
    **head_start_ms: int,
) -> PolicySet:
    """The default rules but for the lock delay, which simulated devices do not need, for how many may wait (of each
    service, and of those named; any number unless given), for other rules of those named, and head starts given."""
    return PolicySet(
        HeadStart(**head_start_ms),
        margin_mib=None,
        session_ttl_ms=15_000,
        lock_delay_ms=lock_delay_ms,
        max_waiting=max_waiting,
        services={
            name: ServiceRules(rules) if isinstance(rules, int) else rules for name, rules in (services or {}).items()
        },
    )


class Scenario(Log):
    """A story about a scheduler that leads, with one simulated device `alpha/cuda:N` for each size given (MiB).

    Every verb appends one entry, has it decided, and returns what was decided, one line a decision. Names of leases
    and sessions may be short.
    """

    def __init__(self, *sizes_mib: int, lock_delay_ms: int = 0, **head_start_ms: int) -> None:
        super().__init__()
        self.heard: list[Told] = []  # all that was ever told
        self.happens(SchedulerElected("first", "0", 1, "log-1"))
        self.happens(policy(lock_delay_ms, None, None, **head_start_ms))
        for number, size_mib in enumerate(sizes_mib):
            self.device(number, size_mib)

    @property
    def last(self) -> Any:
        """The decision that was told last."""
        return self.heard[-1].decision

    def happens(self, fact: Event) -> list[str]:
        """The scheduler writes down a fact."""
        self.stamp(fact)
        return self._decide()

    def says(self, event: Event) -> list[str]:
        """A service or an operator writes an event."""
        self.write(event)
        return self._decide()

    def forges(self, event: Event, epoch: int, seq: int) -> list[str]:
        """Somebody writes an event with a stamp of their own making."""
        self.write_stamped(event, epoch, seq)
        return self._decide()

    def writes(self, type_name: bytes, data: bytes) -> list[str]:
        """Somebody writes anything."""
        self.append(b"type", type_name, b"data", data)
        return self._decide()

    def request(self, name: str, vram_mib: int, **fields: Any) -> list[str]:
        """Ask for a lease; further fields as in `LeaseRequested`."""
        if fields.get("session") is not None:
            fields["session"] = padded(fields["session"])
        return self.says(LeaseRequested(padded(name), fields.pop("service", SERVICE), vram_mib, **fields))

    def release(self, name: str, service: str = SERVICE) -> list[str]:
        """Give a lease back, or cancel a request."""
        return self.says(LeaseReleased(padded(name), service))

    def revoke(self, name: str, grace_ms: int = 0) -> list[str]:
        """An operator takes a lease."""
        return self.says(LeaseRevoked(padded(name), "maintenance", "root", grace_ms))

    def tick(self, after_ms: int = 0) -> list[str]:
        """Time passes, and the leader says so."""
        self.now_ms += after_ms
        return self.happens(ClockTicked(self.now_ms))

    def device(self, number: int, total_mib: int, node: str = NODE, **fields: Any) -> list[str]:
        """A device is there, or looks different."""
        return self.happens(observed(number, total_mib, node, **fields))

    def _decide(self) -> list[str]:
        told = self.settle()
        self.heard += told
        return [in_words(each, self.state.now_ms) for each in told]


def renewed(name: str, ttl_ms: int, service: str = SERVICE) -> LeaseRenewed:
    """A renewal."""
    return LeaseRenewed(padded(name), service, ttl_ms)


def idled(name: str, reload_ms: int = 0, service: str = SERVICE) -> LeaseIdled:
    """A lease is kept warm."""
    return LeaseIdled(padded(name), service, reload_ms)


def resumed(name: str, service: str = SERVICE) -> LeaseResumed:
    """A warm lease is to be used again."""
    return LeaseResumed(padded(name), service)


def session_lost(session: str, service: str = SERVICE) -> SessionLost:
    """A process is silent."""
    return SessionLost(service, padded(session))


def device_lost(number: int, node: str = NODE) -> DeviceLost:
    """A device is gone."""
    return DeviceLost(node, f"cuda:{number}")


def reclaimed(name: str) -> VramReclaimed:
    """The memory of a lease is back."""
    return VramReclaimed(padded(name), "nvml")


def jumped(from_ms: int, delta_ms: int) -> ClockJumped:
    """The server's clock jumped."""
    return ClockJumped(f"{from_ms}-0", delta_ms)


def in_words(told: Told, now_ms: int) -> str:
    """One decision as a short line; times count from `now_ms`."""
    return ("" if told.is_new else "again ") + _in_words(told.decision, now_ms)


def _in_words(decision: Decision, now_ms: int) -> str:
    match decision:
        case LeaseGranted():
            where = "+".join(decision.devices)
            words = f"on {where}" if decision.node == NODE else f"on {decision.node}/{where}"
            return f"granted {_short(decision.lease_id)} {words}"
        case LeaseDenied():
            return f"denied {_short(decision.lease_id)}: {decision.reason}"
        case LeaseEnded():
            freed = "freed" if decision.freed else "reclaiming"
            return f"ended {_short(decision.lease_id)}: {decision.reason}, {freed}"
        case YieldRequested():
            wanted = "" if decision.for_ is None else f" for {_short(decision.for_)}"
            return f"asked back {_short(decision.lease_id)} within {decision.deadline_ms - now_ms} ms{wanted}"
        case PromiseMoved(starts_by_ms=None):
            return f"promised {_short(decision.lease_id)} nothing any more"
        case PromiseMoved(starts_by_ms=starts_by_ms):
            return f"promised {_short(decision.lease_id)} a start in {(starts_by_ms or 0) - now_ms} ms"
        case LeaseExtended():
            return f"extended {_short(decision.lease_id)} by {decision.expires_at_ms - now_ms} ms"
        case LeaseStateChanged():
            return f"changed {_short(decision.lease_id)} to {decision.state}"
        case EventRejected(lease_id=None) | EventRejected(reason="forged"):
            return f"rejected: {decision.reason}"
        case EventRejected(lease_id=lease_id):
            return f"rejected {_short(lease_id or '')}: {decision.reason}"
    raise AssertionError(f"no words for {type(decision).__name__}")


def _short(lease_id: str) -> str:
    return lease_id.rstrip("_")
