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
    for note in sorted(history, key=_ends_first):
        if note.what == "granted":
            for device in note.devices:
                trusted[device][note.request] = note.vram_mib
                promised_mib = sum(trusted[device].values())
                if promised_mib > capacity_mib[device]:
                    named = ", ".join(f"{request} ({mib})" for request, mib in trusted[device].items())
                    found.append(
                        f"at {note.at_s:.3f} s {promised_mib} MiB of the {capacity_mib[device]} on {device} are trusted "
                        f"by {named}"
                    )
        elif note.what in ("over", "died"):
            for holders in trusted.values():
                for request in [each for each in holders if _concerns(note, each)]:
                    del holders[request]
    return found


def lost_answers(history: Iterable[Note]) -> list[str]:
    """Requests without an answer, whose client lived, and requests with two."""
    return list(_answers_amiss(sorted(history)))


def _answers_amiss(notes: list[Note]) -> Iterator[str]:
    asked = {note.request: note.at_s for note in notes if note.what == "asked"}
    answers: dict[str, list[str]] = defaultdict(list)
    for note in notes:
        if note.what in ("granted", "refused"):
            answers[note.request].append(note.what)
    dead = [note for note in notes if note.what == "died"]
    for request, at_s in asked.items():
        if request not in answers and not any(_concerns(death, request) for death in dead):
            yield f"{request}, asked at {at_s:.3f} s, was never answered"
    for request, each in answers.items():
        if len(each) > 1 or request not in asked:
            yield f"{request} was answered with {' and '.join(each)}{'' if request in asked else ', and never asked'}"


def _concerns(note: Note, request: str) -> bool:
    return request == note.request or (note.what == "died" and request.startswith(f"{note.request}/"))


def _ends_first(note: Note) -> tuple[float, bool]:
    """What ends at the moment at which something else begins does not overlap it."""
    return note.at_s, note.what == "granted"
