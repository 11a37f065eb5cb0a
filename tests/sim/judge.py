"""Says whether the promise was kept: after every step by the log's own account, at the end by its auditors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gpuboss.cli.look_ahead import forged_ids, number_begun_at
from gpuboss.core.state import State
from gpuboss.core.stream_ids import parse_id
from gpuboss.core.verification import Verifier
from gpuboss.log import Entry, load_snapshot
from tests.core.auditor import audit
from tests.sim.promises import Promises
from tests.verdict.history import double_promises

if TYPE_CHECKING:
    from tests.sim.world import World

EVENTS = b"gpuboss:events"


class Judge:
    """Reads the log as it is written. What it finds is in `world.faults_found`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.injected: set[bytes] = set()
        self._moved: set[bytes] = set()
        self.recoveries = 0  # in logs that are gone
        self._unseen_jump_from: tuple[int, int] | None = None
        self._excused_at_us: int | None = None
        self._written: dict[str, None] = {}  # the ids
        self._is_loss_unseen = False
        self.promises = self._new()
        self._last_id = b"0-0"

    def clock_jumped(self) -> None:
        """The server's clock was set ahead. A scheduler that leads on sees that, and says so. One that begins to lead
        cannot know whether time passed or the clock jumped, and takes it for time: what waits for a time to pass, the
        lock delay too, is over early then."""
        self._unseen_jump_from = len(self.promises.elections), self.promises.jumps

    def begins_from_nothing(self) -> None:
        """A scheduler that has never seen the log leads on an empty server: a new installation, as far as it can know.
        Whoever held something before may do so still."""
        self._excuse()

    @property
    def is_excused(self) -> bool:
        """Whether more was asked than is promised: a jump of the clock went unseen, or all was lost and forgotten."""
        return self._excused_at_us is not None

    def _excuse(self) -> None:
        if self._excused_at_us is None:
            self._excused_at_us = self._world.timeline.now_us

    def look(self, keys: set[bytes]) -> None:
        """Something was written to these keys."""
        if EVENTS in keys:
            self._read_on()

    def begin_anew(self, deleted_id: str | None = None) -> None:
        """Entries of the log are gone: what is left is the log now. `deleted_id`: this one is, which no scheduler saw,
        and which one has to miss all the same."""
        before = self.promises
        self._written.pop(deleted_id or "", None)
        self._look_what_is_lost()
        self.recoveries += before.recoveries
        self.promises = self._new(quiet=True)
        self.promises.total_mib |= before.total_mib  # what a snapshot knows need not be said again
        self._last_id = b"0-0"
        is_unseen = self.promises.is_cut = self._is_loss_unseen
        self._read_on()
        self.promises.is_cut = False
        self._is_loss_unseen = is_unseen
        self.recoveries -= self.promises.recoveries  # those that stand there still
        self._is_quiet = False

    @property
    def is_answer_lost(self) -> bool:
        """Whether entries are gone and no scheduler noticed: none had seen them. Whoever wrote them was told that they
        are there, and waits for an answer in vain; what is asked and released after that is answered as ever."""
        return self._is_loss_unseen

    def _look_what_is_lost(self) -> None:
        there = {entry_id for entry_id, _ in self._entries(b"-")}
        self._is_loss_unseen = self._is_loss_unseen or not self._written.keys() <= there
        self._written = dict.fromkeys(entry_id for entry_id in self._written if entry_id in there)

    def finish(self) -> None:
        """All is over: judge the history, verify and audit the log, and see that nothing is left open."""
        self._judge_history()
        entries = self._entries(b"-")
        state = State()
        # As a replay sees it: a log that somebody emptied, and that was cut or brought back, tells by its numbers.
        beginning_is_gone = number_begun_at(lambda: (Entry(*each) for each in entries)) != 1
        if beginning_is_gone:
            snapshot = self._world.read_hash(b"gpuboss:snapshot")
            if snapshot:
                state = load_snapshot(snapshot[b"state"], snapshot[b"digest"].decode())
        else:
            for problem in audit(entries)[:3]:
                self._world.blame(f"the log's auditor: {problem}")
        if not beginning_is_gone or state.last_id != "0-0":
            self._verify(state, entries)
        for key in () if self.is_answer_lost else (b"gpuboss:leases", b"gpuboss:queue"):
            if rows := self._world.read_hash(key):
                self._world.blame(f"{key.decode()} still shows {rows}")

    def _judge_history(self) -> None:
        until_s = math.inf if self._excused_at_us is None else self._excused_at_us / 1e6
        cards = self._world.cards
        for problem in double_promises((note for note in cards.history if note.at_s < until_s), cards.total_mib)[:3]:
            self._world.blame(problem)

    def _verify(self, state: State, entries: list[tuple[str, list[bytes]]]) -> None:
        cursor = self._world.read_hash(b"gpuboss:scheduler").get(b"cursor", b"0-0").decode()
        # Not only what was injected: of a log that was lost, decisions that stand alone are moved behind the election.
        verifier = Verifier(state, lambda: forged_ids(Entry(*each) for each in entries), cursor)
        after = parse_id(state.last_id)
        for entry_id, fields in entries:
            if parse_id(entry_id) > after:
                verifier.feed(entry_id, fields)
        undecided = verifier.finish()
        for found in verifier.divergences[:3]:
            self._world.blame(f"the log diverges at {found.entry_id}: {found.problem}")
        self._check_nothing_left(verifier.state, undecided)

    def _check_nothing_left(self, state: State, undecided: int) -> None:
        world = self._world
        if self.is_answer_lost:
            return
        if undecided:
            world.blame(f"L1: {undecided} entries have no answer")
        if state.waitlist.by_id:
            world.blame(f"L1: still waiting: {', '.join(state.waitlist.by_id)}")
        if state.ledger.leases:
            left = [f"{lease_id} ({lease.state})" for lease_id, lease in state.ledger.leases.items()]
            world.blame(f"L2: not free again: {', '.join(left)}")
        kept = [device.key for device in state.ledger.devices.values() if device.hold_mib or device.plan is not None]
        if kept or state.planned:
            world.blame(f"L1: kept for nobody: {', '.join([*kept, *state.planned])}")
        if left := self.promises.not_given_back():
            world.blame(f"asked back, and never ended: {', '.join(left)}")

    def _new(self, quiet: bool = False) -> Promises:
        self._is_quiet = quiet
        limits_mib = {
            name: rules.limit_mib
            for name, rules in self._world.settings.policy.services.items()
            if rules.limit_mib is not None
        }
        return Promises(self._blame, self.injected, self._moved, limits_mib=limits_mib, has_gap=quiet)

    def _blame(self, problem: str) -> None:
        if not self._is_quiet:
            self._world.blame(problem)

    def _read_on(self) -> None:
        for entry_id, fields in self._entries(b"(" + self._last_id):
            self._last_id = entry_id.encode()
            recoveries = self.promises.recoveries
            self.promises.take(entry_id, fields)
            self._written[entry_id] = None
            if self.promises.recoveries > recoveries:
                self._is_loss_unseen = False
        if self._unseen_jump_from is not None:
            elections, jumps = self._unseen_jump_from
            if self.promises.jumps > jumps:
                self._unseen_jump_from = None
            elif len(self.promises.elections) != elections:
                self._excuse()

    def _entries(self, after: bytes) -> list[tuple[str, list[bytes]]]:
        answer: Any = self._world.host.server.execute([b"XRANGE", EVENTS, after, b"+"])
        if not isinstance(answer, list):
            return []
        return [(entry_id.decode(), fields) for entry_id, fields in answer]
