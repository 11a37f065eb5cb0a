"""Whether a scheduler leads and how long leases may be relied on, going by what beats saw: rules and no I/O."""

from __future__ import annotations

import math
import threading

from gpuboss.client.link import Look

SILENCE_MS = 5_000  # this long after the moment until which it said it would be alive, a leader leads no more
HANDOVER_S = 2.0  # how long after a leader was seen last another one may take to follow, or it to be heard again
HANDOVER_LOOK_S = 0.1
BEATS_PER_TTL = 3  # where one gets lost, there is time for a second try before trust is over
AGAIN_S = 0.05
TRUSTED = 2 / 3  # of a session TTL: the rest is for those who stop, and for clocks that do not run alike
assert 1 / BEATS_PER_TTL < TRUSTED < 1, "a beat comes in time, and trust is over before the session can be dead"


class Leadership:
    """What is known of the leader. All times are of our own monotonic clock."""

    def __init__(self) -> None:
        self.look: Look | None = None
        self._missed_at_s: float | None = None  # since when nobody leads though somebody just did

    def note(self, look: Look) -> None:
        """A beat saw this. A leader that resigned is followed soon; one that is silent all of a sudden is there yet: it
        was the server that stood still, or its clock that jumped, or it lost what was known."""
        was_there = self.is_there(look.at_s)
        self.look = look
        if self.is_there(look.at_s):
            self._missed_at_s = None
        elif self._missed_at_s is None and (was_there or look.alive_until_ms == 0):
            self._missed_at_s = look.at_s

    def is_there(self, now_s: float) -> bool:
        """Whether somebody leads, going by the last look and the time since."""
        return self.look is not None and _silent_in_s(self.look, now_s) >= 0

    def is_vacant(self, now_s: float) -> bool:
        """Whether nobody leads. During a handover neither this nor `is_there` is true."""
        if self.look is None or self._missed_at_s is None:
            return not self.is_there(now_s)
        return now_s - self._missed_at_s > HANDOVER_S

    def is_known(self, now_s: float) -> bool:
        """Whether somebody leads, and the last look is recent enough to rely on it."""
        return self.look is not None and self.is_there(now_s) and now_s - self.look.at_s < self._ttl_s() / 2

    def pause_s(self, now_s: float) -> float:
        """How long until the next beat: in time for the session, and when the leader would have to be missed."""
        if self.look is None:
            return 0.0
        if self._missed_at_s is not None and not self.is_vacant(now_s):
            return HANDOVER_LOOK_S
        pause_s = self._ttl_s() / BEATS_PER_TTL
        if self.is_there(now_s):
            pause_s = min(pause_s, _silent_in_s(self.look, now_s) + AGAIN_S)
        return pause_s

    def _ttl_s(self) -> float:
        return 0.0 if self.look is None else self.look.session_ttl_ms / 1000


class Trust:
    """Until when a client may rely on what it holds: for two thirds of a session TTL after the last beat that it knows
    was taken, counted from when that was sent.

    Redis counts a session as dead one TTL after a beat came in, at the earliest. So whoever stops by then has stopped
    before anybody else can be granted what it held. Once trust is over no beat brings it back, for between the two the
    session may have been lost: only `begin` does, after everything was given up. Threads may share it.
    """

    def __init__(self) -> None:
        self.look: Look | None = None  # of the last beat that counts; before the first there is nothing to rely on
        self._turn = threading.Lock()

    def until_s(self) -> float:
        """When trust is over, unless another beat is taken."""
        return math.inf if self.look is None else self.look.at_s + TRUSTED * self.look.session_ttl_ms / 1000

    def is_over(self, now_s: float) -> bool:
        """Whether everything that is held is to be given up."""
        return now_s >= self.until_s()

    def prolong(self, look: Look, now_s: float) -> bool:
        """A beat was answered by now; False if that was too late to count."""
        with self._turn:
            if self.is_over(now_s):
                return False
            if self.look is None or look.at_s > self.look.at_s:
                self.look = look
            return True

    def begin(self, look: Look) -> None:
        """Nothing is held any more that was before this beat."""
        with self._turn:
            self.look = look


def _silent_in_s(look: Look, now_s: float) -> float:
    """How long until the leader, if it says nothing more, leads no more; negative if it does not."""
    if not look.alive_until_ms:
        return -1.0
    return (look.alive_until_ms + SILENCE_MS - look.server_ms) / 1000 - (now_s - look.at_s)
