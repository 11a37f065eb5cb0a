"""Comparing the inputs of a log with the digests that were kept with its snapshots.

A changed byte of an input is served as data, and may lead to no other decision. Each `SnapshotTaken` says what the
inputs through one entry were when it was written, so a change since then lies between two of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from gpuboss.core.divergence import Divergence
from gpuboss.core.door import read_event
from gpuboss.core.inputs import chained
from gpuboss.core.snapshot import digest, dump
from gpuboss.core.state import State
from gpuboss.core.stream_ids import parse_id
from gpuboss.events import SnapshotTaken

# How many inputs may stand between a snapshot's entry and its `SnapshotTaken`: those that came while it was written.
RECENT_MAX = 65_536


class _Input(Struct, frozen=True, gc=False):
    entry_id: str
    fields: Sequence[bytes]
    inputs: bytes  # the digest behind it


class Checkpoints:
    """One log's inputs as they are read, and what its snapshots say of them."""

    def __init__(self, state: State) -> None:
        """`state`: what the log meant before the first entry that will be noted."""
        self.through = state.last_id  # the entry of the last snapshot that was compared
        self.compared = 0
        self.is_derived = True  # the state, from its beginning on: one that was taken over need not be the same in all
        # The first is the last input that a snapshot may still be of; what came before it was compared, or is lost.
        self._recent = deque([_Input(state.last_id, (), state.inputs)], RECENT_MAX)

    def note(self, entry_id: str, fields: Sequence[bytes], inputs: bytes) -> None:
        """An input was applied; `inputs` is the digest behind it."""
        self._recent.append(_Input(entry_id, fields, inputs))

    def compare(self, entry_id: str, fields: Sequence[bytes], state: State) -> Divergence | None:
        """Hold a `SnapshotTaken` against the log, whose state before it is `state`. Where the inputs are not what they
        were, that goes on from what they were, so that one change is one divergence. What a snapshot says of a time
        before the first input noted cannot be compared."""
        taken = read_event(fields)
        through = parse_id(taken.through) if isinstance(taken, SnapshotTaken) else (0, 0)
        known = parse_id(self._recent[0].entry_id) <= through < parse_id(entry_id)
        if not isinstance(taken, SnapshotTaken) or not known:
            return None
        while len(self._recent) > 1 and parse_id(self._recent[1].entry_id) <= through:
            self._recent.popleft()
        since, self.through = self.through, taken.through
        self.compared += 1
        inputs = self._recent[0].inputs.hex()
        if inputs != taken.inputs:
            self._go_on_from(bytes.fromhex(taken.inputs), state)
            beginning = "the beginning of the log" if since == "0-0" else since
            problem = f"between {beginning} and {taken.through} an input was changed, taken out or put in later"
            return _differs(entry_id, problem, taken, replace(taken, inputs=inputs), (since, taken.through))
        if self.is_derived and taken.through == state.last_id and (found := digest(dump(state))) != taken.state:
            problem = f"the inputs through {taken.through} are what they were, but lead to another state"
            return _differs(entry_id, problem, taken, replace(taken, state=found))
        return None

    def _go_on_from(self, inputs: bytes, state: State) -> None:
        first, *rest = self._recent
        self._recent.clear()
        self._recent.append(_Input(first.entry_id, (), inputs))
        for each in rest:
            inputs = chained(inputs, each.entry_id, each.fields)
            self.note(each.entry_id, each.fields, inputs)
        state.inputs = inputs


def _differs(
    entry_id: str, problem: str, taken: SnapshotTaken, found: SnapshotTaken, between: tuple[str, str] | None = None
) -> Divergence:
    recorded, derived = ({"type": "SnapshotTaken", "data": to_builtins(each)} for each in (taken, found))
    return Divergence(entry_id, problem, recorded, derived, between)
