"""A story about a log of which entries are lost, and what is told more than once in such stories."""

from __future__ import annotations

from typing import Any

from gpuboss.core.state import State
from gpuboss.core.verification import Verifier
from gpuboss.events import (
    LeaseReasserted,
    LogLost,
    SchedulerElected,
)
from tests.core.scenario import (
    NODE,
    SERVICE,
    START_MS,
    Scenario,
    fold,
    in_words,
    jumped,
    padded,
    policy,
    reclaimed,
    renewed,
    session_lost,
)

RECOVERY_MS = 15_000  # the session TTL; the lock delay of simulated devices is 0
LOST_FENCE = 1_000


class Lossy(Scenario):
    """A story about a log that loses entries."""

    def loses(self, entries: int = 0, fence: int = LOST_FENCE) -> list[str]:
        """The last `entries` are gone; another scheduler folds what is left, and says so."""
        last_id = self.entries[-1].id
        del self.entries[len(self.entries) - entries :]
        self.state = fold(self.entries)
        self.seq = self.state.seq
        self._read = self._cursor = len(self.entries)
        return self.happens(elected(LogLost(last_id, fence)))

    def reasserts(self, name: str, *numbers: int, **fields: Any) -> list[str]:
        """A holder says that it holds 8,192 MiB on these devices; further fields as in `LeaseReasserted`."""
        return self.says(reasserted(name, *numbers, **fields))

    def free_mib(self, number: int = 0) -> int:
        """What could still be granted on a device."""
        return self.state.ledger.devices[f"{NODE}/cuda:{number}"].free_mib

    def entries_added_by(self, verb: Any, *arguments: Any, **fields: Any) -> int:
        """How many entries the log grows by."""
        before = len(self.entries)
        verb(*arguments, **fields)
        return len(self.entries) - before


def elected(lost: LogLost | None = None) -> SchedulerElected:
    """Another reign; in another log, if entries of this one are gone."""
    return SchedulerElected("another", "0", 1, "log-1" if lost is None else "log-2", lost)


def reasserted(name: str, *numbers: int, **fields: Any) -> LeaseReasserted:
    """A holder repeats its lease."""
    devices = [f"cuda:{number}" for number in numbers or (0,)]
    if fields.get("session") is not None:
        fields["session"] = padded(fields["session"])
    about: dict[str, Any] = {
        "service": SERVICE,
        "node": NODE,
        "device": devices[0],
        "devices": devices,
        "vram_mib": 8_192,
        "priority": "normal",
        "state": "held",
        "granted_at_ms": START_MS,
        "fence": 1,
    }
    return LeaseReasserted(padded(name), **(about | fields))


def recovering(*sizes_mib: int, **settings_: Any) -> Lossy:
    """A scheduler that has just noticed that entries are gone."""
    scenario = Lossy(*(sizes_mib or (24_576,)), **settings_)
    assert scenario.loses() == []
    return scenario


def overcommitted() -> Lossy:
    """`stale` still stands in the log, though it ended; what was granted in its room is reasserted."""
    scenario = Lossy(24_576, 24_576)
    scenario.request("stale", 20_000, device="cuda:0", session="dead")
    scenario.request("waits", 20_000, device="cuda:0", session="alive")
    scenario.release("stale")
    assert scenario.last.lease_id == padded("waits")
    scenario.loses(3)
    assert scenario.reasserts("waits", vram_mib=20_000, session="alive") == ["again granted waits on cuda:0"]
    assert scenario.free_mib() == 24_576 - 40_000
    return scenario


def recovery(restarting: bool = False) -> Lossy:
    """A recovery in which everything happens; a `restarting` scheduler goes on from a snapshot after every entry."""
    scenario = overcommitted()
    steps = (
        lambda: scenario.reasserts("gang", 0, 1, vram_mib=1_000, expires_at_ms=START_MS + 8_000, session="alive"),
        lambda: scenario.reasserts("alone", 1, exclusive=False, state="idle", fence=LOST_FENCE + 9),
        lambda: scenario.reasserts("nowhere", 7),
        lambda: scenario.request("impossible", 99_999),
        lambda: scenario.request("pair", 4_000, gpus=2),
        lambda: scenario.request("short", 1, wait_ms=1_000),
        lambda: scenario.tick(1_000),
        lambda: scenario.happens(jumped(scenario.now_ms, 1)),
        lambda: scenario.happens(policy(lock_delay_ms=2_000)),
        lambda: scenario.happens(elected()),
        lambda: scenario.says(renewed("alone", 60_000)),
        lambda: scenario.revoke("gang", grace_ms=500),
        lambda: scenario.tick(9_000),
        lambda: scenario.happens(session_lost("dead")),
        lambda: scenario.happens(reclaimed("gang")),
        lambda: scenario.tick(9_000),
        lambda: scenario.happens(reclaimed("stale")),
        lambda: scenario.reasserts("late"),
        lambda: scenario.tick(60_000),
    )
    for each in steps:
        if restarting:
            scenario.restart()
        each()
    return scenario


def lines(scenario: Scenario) -> list[str]:
    """All that was ever told."""
    return [in_words(each, scenario.state.now_ms) for each in scenario.heard]


def verify(entries: Any) -> Verifier:
    """Derive every decision of a log again."""
    verifier = Verifier(State(), frozenset)
    for entry in entries:
        verifier.feed(*entry)
    assert verifier.finish() == 0
    return verifier


def unchanged_but_refused(
    scenario: Lossy, name: str, *numbers: int, reason: str = "unknown_lease", **fields: Any
) -> None:
    """Say so, see it refused, and see nothing charged or changed."""
    ledger, waiting = dict(scenario.state.ledger.leases), dict(scenario.state.waitlist.by_id)
    charged = [device.charged_mib for device in scenario.state.ledger.ordered_devices()]
    fence = scenario.state.fence
    assert scenario.reasserts(name, *numbers, fence=9_999, **fields) == [f"rejected {name}: {reason}"]
    assert scenario.state.ledger.leases == ledger
    assert scenario.state.waitlist.by_id == waiting
    assert [device.charged_mib for device in scenario.state.ledger.ordered_devices()] == charged
    assert scenario.state.fence == fence, "nor does a fence count that nobody believes"
    assert scenario.last.detail
