"""Folds a log of JSON lines from stdin, in an interpreter of its own, and prints one digest of all it decided and one
of the state at its end. `python -m tests.core.fold_log [SNAPSHOT_EVERY]`: with snapshots, it goes on from each."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable

import msgspec

from gpuboss.core import snapshot
from gpuboss.core.machine import step
from gpuboss.core.state import State
from gpuboss.jsonl import read_jsonl


def fold_and_digest(entries: Iterable[tuple[str, list[bytes]]], snapshot_every: int = 0) -> tuple[str, str]:
    """The digest of everything told, in order, and of the state at the end."""
    state = State()
    decided = hashlib.sha256()
    for number, (entry_id, fields) in enumerate(entries, start=1):
        for told in step(state, entry_id, fields).told:
            name = type(told.decision).__name__.encode()
            decided.update(b"%s %s %a %d\n" % (name, msgspec.json.encode(told.decision), told.address, told.is_new))
        if snapshot_every and number % snapshot_every == 0:
            state = snapshot.load(snapshot.dump(state))
    return decided.hexdigest(), snapshot.digest(snapshot.dump(state))


if __name__ == "__main__":
    print(*fold_and_digest(read_jsonl(sys.stdin.buffer, "stdin"), int(sys.argv[1]) if len(sys.argv) > 1 else 0))
