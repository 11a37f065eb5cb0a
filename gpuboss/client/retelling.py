"""What is said again: to a log that was begun anew and knows nothing of it, and where answers may have been missed."""

from __future__ import annotations

from gpuboss.client.desk import Desk, late_reassertions, reassertions, repetitions
from gpuboss.client.outbox import Outbox


class Retelling:
    """Says again what is on the desk.

    `answers_missed`: what was decided is to be told again. `told`: the incarnation of the log that is known to have
    been told of what is held; another thread may read it.
    """

    def __init__(self, desk: Desk, outbox: Outbox) -> None:
        self.answers_missed = False
        self.told = ""
        self._desk = desk
        self._outbox = outbox
        self._incarnation = ""

    def to(self, incarnation: str) -> None:
        """The log has this name. Whoever decides next reads what is said now, so nobody needs to lead."""
        before, self._incarnation = self._incarnation, incarnation
        if before in ("", incarnation):
            self.told = self.told or incarnation
            return
        letters = [self._outbox.post(event) for event in reassertions(self._desk)]
        self.answers_missed = False
        if letters:
            letters[-1].when_delivered(lambda _: self._note_told(incarnation))
        else:
            self._note_told(incarnation)

    def to_leader(self) -> None:
        """Somebody leads, and tells again what it is asked again."""
        if self.answers_missed:
            for event in repetitions(self._desk):
                self._outbox.post(event)
        self.answers_missed = False

    def of_late_grants(self) -> None:
        """All that there was has been read: of grants among it that may be of a log that was lost, tell the new one."""
        for event in late_reassertions(self._desk):
            self._outbox.post(event)

    def _note_told(self, incarnation: str) -> None:
        self.told = incarnation
