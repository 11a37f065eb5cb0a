"""A log whose every decision, and every row of its projections, is compared with what the model expects."""

from __future__ import annotations

from typing import Any

import msgspec

from gpuboss.core.projections import device_row, device_rows, lease_row, lease_rows, queue_row
from gpuboss.core.state import State, Told, Turn
from tests.core.model import Model
from tests.core.model_decisions import Answer, Rejection
from tests.core.scenario import Entry, Log


class ComparedLog(Log):
    """A log that is decided twice, by the core and by the model. Raises AssertionError where they differ."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self._shown = Shown(self.state)
        self._rejections: dict[str, Rejection] = {}

    def append_hostile(self, fields: list[bytes], rejection: Rejection) -> None:
        """Append what is no event, and must be rejected like this."""
        self._rejections[self.append(*fields)] = rejection

    def step(self, entry: Entry) -> Turn:
        """Apply the next entry to both."""
        turn = super().step(entry)
        expected = self.model.apply(entry.id, entry.fields, self._rejections.get(entry.id))
        assert [answer_of(each) for each in turn.told] == expected, entry
        self._compare_rows()
        self._shown.follow(turn)
        self._shown.check(self.state)
        return turn

    def crash(self) -> None:
        """Lose what was not committed."""
        super().crash()
        self.model = Model()
        for entry in self.entries[: self._cursor]:
            self.model.apply(entry.id, entry.fields, self._rejections.get(entry.id))
        self._shown = Shown(self.state)
        self._compare_rows()

    def _compare_rows(self) -> None:
        state, model = self.state, self.model
        assert (state.now_ms, state.epoch, state.seq) == (model.clock.now_ms, model.epoch, model.seq)
        queue = [(row.lease_id, row.priority) for row in map(queue_row, state.waitlist.in_order())]
        assert queue == [(case.asked["lease_id"], case.counts_as) for case in model.queue.in_order()]
        free_mib = {key: row.free_mib for key, row in device_rows(state).items()}
        assert free_mib == {key: model.room.free_mib(key) for key in model.devices}
        leases = {i: (row.state, row.expires_at_ms, row.priority) for i, row in lease_rows(state).items()}
        cases = {i: case for i, case in model.cases.items() if case.is_ not in ("waiting", "over")}
        assert leases == {i: (case.is_, case.expires_ms, case.counts_as) for i, case in cases.items()}


class Shown:
    """What Redis shows if only the rows are written anew of which a turn says that they changed."""

    def __init__(self, state: State) -> None:
        self._leases: dict[str, Any] = dict(lease_rows(state))
        self._queue: dict[str, Any] = {i: queue_row(waiting) for i, waiting in state.waitlist.by_id.items()}
        self._devices: dict[str, Any] = dict(device_rows(state))

    def follow(self, turn: Turn) -> None:
        """Write the rows that changed."""
        state = turn.state
        for lease_id in turn.lease_ids:
            lease, waiting = state.ledger.leases.get(lease_id), state.waitlist.by_id.get(lease_id)
            _put(self._leases, lease_id, None if lease is None else lease_row(lease))
            _put(self._queue, lease_id, None if waiting is None else queue_row(waiting))
        for gone_or_not in turn.devices:
            device = state.ledger.devices.get(gone_or_not.key)
            _put(self._devices, gone_or_not.key, None if device is None else device_row(device))

    def check(self, state: State) -> None:
        """Whether that is all of it. Raises AssertionError."""
        now = Shown(state)
        assert self._leases == now._leases
        assert self._queue == now._queue
        assert self._devices == now._devices


def answer_of(told: Told) -> Answer:
    """A decision as the model says it: without its detail, which is for people, but which there must be."""
    data: dict[str, Any] = msgspec.to_builtins(told.decision)
    assert data.pop("detail", None) != "", told
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}
    return Answer(type(told.decision).__name__, listed, told.address, told.is_new)


def _put(rows: dict[str, Any], name: str, row: Any) -> None:
    if row is None:
        rows.pop(name, None)
    else:
        rows[name] = row
