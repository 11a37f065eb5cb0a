"""What a replay found, for programs and for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from gpuboss.cli.fold import BEGINNING
from gpuboss.cli.wording import count
from gpuboss.core import projections
from gpuboss.core.divergence import Divergence
from gpuboss.core.snapshot import digest, dump
from gpuboss.core.verification import Verifier
from gpuboss.terminal import escaped

DIVERGENCES_SHOWN = 20
VALUE_CHARACTERS_MAX = 500


def document(verifier: Verifier, undecided: int, origin: str) -> dict[str, Any]:
    """All of it, as JSON will show it."""
    state = verifier.state
    return {
        "events": verifier.events,
        "decisions": verifier.decisions + verifier.takeover.decisions,
        "divergences": verifier.divergences,
        "digest": digest(dump(state)),
        "leases": projections.lease_rows(state),
        "queue": projections.queue_rows(state),
        "devices": projections.device_rows(state),
        "undecided": undecided,
        "from": origin,
        "snapshots": verifier.checkpoints.compared,
        "taken_over": verifier.takeover.decisions,
    }


def report(verifier: Verifier, undecided: int, origin: str) -> str:
    """The verdict first, then what it rests on; escaped."""
    state, found, taken_over = verifier.state, verifier.divergences, verifier.takeover.decisions
    start = "beginning" if origin == BEGINNING else origin
    lines = [
        f"{count(len(found), 'divergence')}: the log is not what its inputs lead to"
        if found
        else "verified: every recorded decision was derived again, and nothing differs"
        if not taken_over
        else "verified: every decision of these rules was derived again, and nothing differs"
    ]
    lines += [
        f"replayed {count(verifier.events, 'event')} from the {start} through {state.last_id}, "
        f"{count(verifier.decisions + taken_over, 'decision')} among them",
        f"then there are {count(len(state.ledger.leases), 'lease')}, {len(state.waitlist.by_id):,} waiting, "
        f"{count(len(state.ledger.devices), 'device')}",
        f"digest {digest(dump(state))}",
    ]
    if taken_over:
        lines.append(f"{count(taken_over, 'decision')} of other versions of the rules were taken as they stand there")
    checked = verifier.checkpoints
    if checked.compared:
        what = count(checked.compared, "snapshot")
        lines.append(f"the inputs were compared with what {what} had kept of them, through {checked.through}")
    if undecided:
        lines.append(f"{count(undecided, 'input')} at the end not decided yet, which is no divergence")
    for divergence in found[:DIVERGENCES_SHOWN]:
        lines += ["", *_explained(divergence)]
    if len(found) > DIVERGENCES_SHOWN:
        lines += ["", f"... and {len(found) - DIVERGENCES_SHOWN:,} more, which --json shows"]
    return "\n".join(map(escaped, lines))


def _explained(divergence: Divergence) -> Iterator[str]:
    yield f"entry {divergence.entry_id}: {divergence.problem}"
    recorded, derived = divergence.recorded, divergence.derived
    if recorded is not None and derived is not None and recorded["type"] == derived["type"]:
        about = next(filter(None, map(recorded["data"].get, ("lease_id", "cause", "through"))))
        yield f"  {recorded['type']} of {about}"
        for name in sorted(recorded["data"].keys() | derived["data"].keys()):
            there, here = (_cut(_shown(side["data"].get(name))) for side in (recorded, derived))
            if there != here:
                yield f"    {name}: recorded {there}, derived {here}"
        return
    yield f"  recorded  {_shown_whole(recorded)}"
    if recorded is None or "fields" not in recorded:  # of what is merely out of place nothing is derived
        yield f"  derived   {_shown_whole(derived)}"


def _shown_whole(side: dict[str, Any] | None) -> str:
    if side is None:
        return "nothing"
    if "fields" in side:
        return _cut(" ".join(side["fields"]))
    return f"{side['type']} {_cut(_shown(side['data']))}"


def _shown(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _cut(text: str) -> str:
    return text if len(text) <= VALUE_CHARACTERS_MAX else f"{text[:VALUE_CHARACTERS_MAX]}..."
