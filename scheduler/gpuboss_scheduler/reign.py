"""One scheduler's reign: its epoch, the number of the last entry that it wrote, and the writes that carry both."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import msgspec

from gpuboss.events import ClockJumped, Event
from gpuboss.keys import Keys
from gpuboss_scheduler.scripts import Deposed, Script

if TYPE_CHECKING:
    import redis

LEADERSHIP_MS = 1_000  # how long after its last beat a standby waits before it takes over
BEAT_S = 0.25

_append = Script("append")
_beat = Script("beat")


def stamped(event: Event, epoch: int, seq: int) -> bytes:
    """The event as the log holds it: with the reign and the number of whoever wrote it."""
    data = msgspec.json.encode(event)
    separator = b"" if data == b"{}" else b","
    return b'%s%s"epoch":%d,"seq":%d}' % (data[:-1], separator, epoch, seq)


class Reign:
    """The right to write. Every write checks on the server that it still holds, and raises `Deposed` if not."""

    def __init__(self, client: redis.Redis, keys: Keys, epoch: int, seq: int, last_id: str, leader: str = "") -> None:
        """`leader`: who leads, as the hash says; empty if it does not."""
        self.client = client
        self.keys = keys
        self.epoch = epoch
        # An epoch alone may be another's as well: of two who lead one after the other on servers that lost everything.
        self.token = f"{epoch} {leader}"
        self.seq = seq
        self.jump_seq = 0  # the number of the last jump of the clock that was told
        self.fence = 0  # the highest that was granted, as far as the last beat was told
        self.recovering_until_ms: int | None = None
        self.trouble = ""  # what people should know is wrong
        self.last_id = last_id  # an entry of which it is known that the log holds it
        self.read_through = last_id  # what is deleted through this one was read before, or is known to be gone

    def append(self, facts: Sequence[Event], *, latest_ms: int | None = None) -> str:
        """Append facts to the log; returns the id of the last. There must be at least one. Raises `ClockAhead`, and
        appends nothing, where the server's clock shows more than `latest_ms`."""
        latest = "" if latest_ms is None else latest_ms
        arguments: list[str | bytes | int] = [self.token, self.seq, self.seq + len(facts), latest]
        for number, fact in enumerate(facts, start=1):
            arguments += [type(fact).__name__, stamped(fact, self.epoch, self.seq + number)]
        (last_id,) = _append(self.client, [self.keys.scheduler, self.keys.events], arguments)
        self.seq += len(facts)
        return str(last_id.decode())

    def tell_jump(self, from_ms: int, delta_ms: int) -> None:
        """The server's clock jumped: what was set before `from_ms` moves. Until that is read back nobody can say by the
        log's clock what is due."""
        self.append([ClockJumped(from_id=f"{from_ms}-0", delta_ms=delta_ms)])
        self.jump_seq = self.seq

    def beat(self) -> tuple[int, str]:
        """Say that the leader is alive; returns the server's time in ms, and the highest entry that was ever deleted.
        Raises `Deposed` if entries of the log are gone: whoever leads on must notice that first."""
        now_ms, found, deleted_id = self._beat(LEADERSHIP_MS)
        if not found:
            raise Deposed(f"the log has been read through {self.last_id}, which is not there any more")
        return int(now_ms), deleted_id.decode()

    def _beat(self, leadership_ms: int) -> list[Any]:
        until_ms = "" if self.recovering_until_ms is None else self.recovering_until_ms
        keys = [self.keys.scheduler, self.keys.events]
        said = [self.token, leadership_ms, self.fence, until_ms, self.last_id, self.trouble, self.read_through]
        return _beat(self.client, keys, said)

    @contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Beat from a thread of its own while something takes long. Otherwise the standby would take over, and take
        as long, and two schedulers would depose each other in turn for ever."""
        import redis

        over = threading.Event()

        def beat() -> None:
            with suppress(Deposed, redis.RedisError):  # whoever works meanwhile meets the same
                while not over.wait(BEAT_S):
                    self.beat()

        thread = threading.Thread(target=beat, name="beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def resign(self) -> None:
        """Say that nobody leads, so that a standby takes over at once."""
        self._beat(0)
