"""Says whether the promise was kept: after every step by the log's own account, at the end by its auditors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpuboss.core.state import State
from gpuboss.core.verification import Verifier
from tests.core.auditor import audit
from tests.sim.promises import Promises

if TYPE_CHECKING:
    from tests.sim.world import World

EVENTS = b"gpuboss:events"


class Judge:
    """Reads the log as it is written. What it finds is in `world.faults_found`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.injected: set[bytes] = set()
        self.recoveries = 0  # in logs that are gone
        self.promises = self._new()
        self._last_id = b"0-0"

    def look(self, keys: set[bytes]) -> None:
        """Something was written to these keys."""
        if EVENTS in keys:
            self._read_on()

    def begin_anew(self) -> None:
        """Entries of the log are gone: what is left is the log now."""
        self.recoveries += self.promises.recoveries
        self.promises = self._new(quiet=True)
        self._last_id = b"0-0"
        self._read_on()
        self.recoveries -= self.promises.recoveries  # those that stand there still
        self._is_quiet = False

    def finish(self) -> None:
        """The log is complete: verify it, audit it, and see that nothing is left open."""
        entries = self._entries(b"-")
        cursor = self._world.read_hash(b"gpuboss:scheduler").get(b"cursor", b"0-0").decode()
        forged = frozenset(
            entry_id for entry_id, fields in entries if len(fields) == 4 and fields[3] in self.injected
        )
        verifier = Verifier(State(), lambda: forged, cursor)
        for entry_id, fields in entries:
            verifier.feed(entry_id, fields)
        undecided = verifier.finish()
        for found in verifier.divergences[:3]:
            self._world.blame(f"the log diverges at {found.entry_id}: {found.problem}")
        for problem in audit(entries)[:3]:
            self._world.blame(f"the log's auditor: {problem}")
        self._check_nothing_left(verifier.state, undecided)

    def _check_nothing_left(self, state: State, undecided: int) -> None:
        world = self._world
        if undecided:
            world.blame(f"L1: {undecided} entries have no answer")
        if state.waitlist.by_id:
            world.blame(f"L1: still waiting: {', '.join(state.waitlist.by_id)}")
        if state.ledger.leases:
            left = [f"{lease_id} ({lease.state})" for lease_id, lease in state.ledger.leases.items()]
            world.blame(f"L2: not free again: {', '.join(left)}")
        for key in (b"gpuboss:leases", b"gpuboss:queue"):
            if rows := world.read_hash(key):
                world.blame(f"{key.decode()} still shows {rows}")

    def _new(self, quiet: bool = False) -> Promises:
        self._is_quiet = quiet
        return Promises(self._blame, self.injected, has_gap=quiet)

    def _blame(self, problem: str) -> None:
        if not self._is_quiet:
            self._world.blame(problem)

    def _read_on(self) -> None:
        for entry_id, fields in self._entries(b"(" + self._last_id):
            self._last_id = entry_id.encode()
            self.promises.take(entry_id, fields)

    def _entries(self, after: bytes) -> list[tuple[str, list[bytes]]]:
        answer: Any = self._world.host.server.execute([b"XRANGE", EVENTS, after, b"+"])
        if not isinstance(answer, list):
            return []
        return [(entry_id.decode(), fields) for entry_id, fields in answer]
