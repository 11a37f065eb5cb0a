"""What clients saw, and what is wrong with it: VRAM that more trusted than there is, and requests without an answer.

Each client notes what happens to its requests; the notes of all of them, in any order, are a history. The log says
what was promised; a history says who relied on it, and when: a holder that was paused, cut off or deposed may
go on relying on what the log has ended long ago. Times are of one clock that never goes back, in seconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

What = Literal["asked", "granted", "refused", "over", "died"]


class Note(NamedTuple):
    """One thing that a client saw. `request` is `<client>/<its number>`, or, where a client died, the client.

    `refused` is any answer but a grant, an error that the client raised among them; `over` is the moment from which the
    holder relies on nothing any more, whoever ended it. `devices` (`<node>/cuda:<n>`) and `vram_mib`, the MiB on each
    of them, belong to grants.
    """

    at_s: float
    what: What
    request: str
    devices: tuple[str, ...] = ()
    vram_mib: int = 0


def faults_in(history: Iterable[Note], capacity_mib: Mapping[str, int]) -> list[str]:
    """All that is wrong. `capacity_mib`: what each device lends."""
    notes = sorted(history)
    return [*double_promises(notes, capacity_mib), *lost_answers(notes)]


def double_promises(history: Iterable[Note], capacity_mib: Mapping[str, int]) -> list[str]:
    """At which moments holders relied on more VRAM of one device than it has."""
    found = []
    trusted: dict[str, dict[str, int]] = defaultdict(dict)
    for at_s, begins, grant in _moments(list(history)):
        for device in grant.devices:
            if not begins:
                del trusted[device][grant.request]
                continue
            trusted[device][grant.request] = grant.vram_mib
            promised_mib = sum(trusted[device].values())
            if promised_mib > capacity_mib[device]:
                named = ", ".join(f"{request} ({mib})" for request, mib in trusted[device].items())
                what = f"{promised_mib} MiB of the {capacity_mib[device]} on {device} are trusted by {named}"
                found.append(f"at {at_s:.3f} s {what}")
    return found


def _moments(notes: list[Note]) -> list[tuple[float, bool, Note]]:
    """When reliance on each grant begins (True) and ends, in order; what ends where something else begins does not
    overlap it. A grant that was over when its client learned of it was never relied on."""
    overs = {note.request: note.at_s for note in notes if note.what == "over"}
    deaths = {note.request: note.at_s for note in notes if note.what == "died"}
    moments = []
    for grant in notes:
        if grant.what == "granted":
            client = grant.request.partition("/")[0]
            ends = [over_s for over_s in (overs.get(grant.request), deaths.get(client)) if over_s is not None]
            if not ends or min(ends) > grant.at_s:
                moments.append((grant.at_s, True, grant))
                moments += [(min(ends), False, grant)] if ends else []
    return sorted(moments)


def lost_answers(history: Iterable[Note]) -> list[str]:
    """Requests without an answer, whose client lived, and requests with two."""
    return list(_answers_amiss(sorted(history)))


def _answers_amiss(notes: list[Note]) -> Iterator[str]:
    asked = {note.request: note.at_s for note in notes if note.what == "asked"}
    answers: dict[str, list[str]] = defaultdict(list)
    for note in notes:
        if note.what in ("granted", "refused"):
            answers[note.request].append(note.what)
    dead = {note.request for note in notes if note.what == "died"}
    for request, at_s in asked.items():
        if request not in answers and request.partition("/")[0] not in dead:
            yield f"{request}, asked at {at_s:.3f} s, was never answered"
    for request, each in answers.items():
        if len(each) > 1 or request not in asked:
            yield f"{request} was answered with {' and '.join(each)}{'' if request in asked else ', and never asked'}"
