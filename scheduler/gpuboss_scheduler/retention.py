"""Taking out of the log what it need not hold any more: in slices between batches, archived first where that is wanted.

What goes lies behind a snapshot, so that a start does not miss it; it is decided; it is so old that a power failure
does not take it back; and it is not the last of the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from gpuboss.config import RetentionConfig
from gpuboss.core.machine import entry_ms
from gpuboss.core.state import State
from gpuboss.core.stream_ids import parse_id
from gpuboss.jsonl import to_line
from gpuboss.log import Entry, LogReader
from gpuboss_scheduler.clock import LogClock
from gpuboss_scheduler.failpoints import failpoint
from gpuboss_scheduler.reign import Reign
from gpuboss_scheduler.scripts import Script
from gpuboss_scheduler.segments import SegmentWriter
from gpuboss_scheduler.snapshots import Snapshots
from gpuboss_scheduler.talk import say

LOOK_S = 1.0
RETRY_S = 10.0
ANSWER_S = 0.01
PAGE = 100  # entries in one slice: about 1 ms, which a request may have to wait for
SEGMENT_BYTES = 4 * 1024 * 1024  # before it is compressed
SEGMENT_ENTRIES = 10_000  # five times as many, and handing them over takes 50 ms instead of a few
SLACK = 100  # a hundredth more than is wanted is let be: every segment is a file
SETTLED_MS = 3_000  # of what is younger, a power failure may take back what the archive would hold then
REST = 2  # after a slice, so many times as long for others

_trim = Script("trim")


@dataclass(slots=True)
class _Run:
    """A run of entries from the log's beginning, about to go. `excess`: so many are too many; `older_ms`: what is older
    is too old; `settled_ms`: what is younger stays."""

    excess: int
    older_ms: int
    settled_ms: int
    first: str = ""
    through: str = ""
    entries: int = 0
    size: int = 0
    lines: list[bytes] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether it is enough for one segment."""
        return self.size >= SEGMENT_BYTES or self.entries >= SEGMENT_ENTRIES

    def take(self, entry: Entry, line: bytes | None) -> None:
        """The next entry goes too; `line`: as it is archived, if it is."""
        self.first, self.through = self.first or entry.id, entry.id
        self.entries += 1
        if line is not None:
            self.lines.append(line)
            self.size += len(line)


class Retention:
    """The trimming of one reign, slice by slice. `due_s`: when the next slice is due, by the monotonic clock."""

    def __init__(
        self,
        reign: Reign,
        state: State,
        clock: LogClock,
        snapshots: Snapshots,
        rules: RetentionConfig,
        writer: SegmentWriter | None,
        beat: Callable[[], None],
        trouble: Callable[[str], None],
    ) -> None:
        """`writer` None: what goes is gone. `beat` notes where the log ends, and raises `Deposed` where this reign is
        over; `trouble` is told what keeps this from its work, and '' when that has passed."""
        self.due_s = 0.0
        self._reign = reign
        self._state = state
        self._clock = clock
        self._snapshots = snapshots
        self._rules = rules
        self._writer = writer
        self._beat = beat
        self._tell = trouble
        self._log = LogReader(reign.client, reign.keys)
        self._gone = "0-0"  # the last entry that is not in the log any more
        self._run = _Run(0, 0, 0)
        self._answer: Future[None] | None = None
        self._phase: Callable[[], float] = self._open

    def work(self) -> None:
        """One slice. Raises `Deposed`, and redis' errors."""
        started_s = time.monotonic()
        pause_s = self._phase()
        now_s = time.monotonic()
        self.due_s = now_s + max(pause_s, REST * (now_s - started_s))

    # Each phase returns how long to wait until the next (s).

    def _open(self) -> float:
        self._gone = self._log.trimmed_through()
        if self._writer is not None:
            try:
                last = self._writer.open()
            except OSError as error:
                return self._fail(error)
            if parse_id(last) < parse_id(self._gone):
                say(
                    f"the archive {self._writer.folder} ends at {last}, but the log was trimmed through {self._gone}: "
                    "what is between is missing here; if another machine's archive has it, put both into one folder"
                )
        return self._go_on(self._look)

    def _look(self) -> float:
        """Is there more than is wanted?"""
        page = self._log.page(count=1)
        if not page:
            return LOOK_S
        now_ms, age_ms, count = self._clock.now_ms(), self._rules.age_ms, self._rules.count
        excess = 0 if count is None else self._log.length() - count
        older_ms = 0 if age_ms is None else now_ms - age_ms
        too_old = age_ms is not None and entry_ms(page[0].id) < older_ms - age_ms // SLACK
        if not too_old and (count is None or excess <= count // SLACK):
            return LOOK_S
        self._run = _Run(excess, older_ms, now_ms - SETTLED_MS)
        return self._go_on(self._read)

    def _read(self) -> float:
        """Take the next page, or begin to get rid of what was taken."""
        run = self._run
        page = self._log.page(run.through or self._gone, count=PAGE)
        for entry in page:
            if not self._may_go(entry):
                break
            run.take(entry, None if self._writer is None else to_line(entry))
        else:
            if len(page) == PAGE and not run.is_full:
                return 0.0
        return self._go_on(self._archive) if run.entries else self._go_on(self._look, LOOK_S)

    def _archive(self) -> float:
        run = self._run
        if self._writer is None:
            return self._go_on(self._trim)
        # Another leader could have trimmed the log between two pages. Since this one still leads, none did.
        self._beat()
        self._answer = self._writer.write(run.first, run.through, self._gone, run.lines)
        run.lines = []
        return self._go_on(self._await, ANSWER_S)

    def _await(self) -> float:
        assert self._answer is not None
        if not self._answer.done():
            return ANSWER_S
        error = self._answer.exception()
        if error is not None:
            return self._fail(error)
        self._tell("")
        return self._go_on(self._trim)

    def _trim(self) -> float:
        # Whoever remembers where the log ends must not remember an entry that goes now.
        self._beat()
        keys, run = self._reign.keys, self._run
        stays = [self._snapshots.last_id, self._state.last_id, _next_id(run.through)]
        arguments = [self._reign.token, *stays, run.through]
        (gone,) = _trim(self._reign.client, [keys.scheduler, keys.events, keys.snapshot], arguments)
        if gone == b"":  # somebody deleted or changed the snapshot
            self._snapshots.last_id = ""
        else:
            failpoint("log-trimmed")
            self._gone = run.through
        return self._go_on(self._look, 0.0 if run.is_full else LOOK_S)

    def _go_on(self, phase: Callable[[], float], pause_s: float = 0.0) -> float:
        self._phase = phase
        return pause_s

    def _may_go(self, entry: Entry) -> bool:
        """Whether the log need not hold it; if all that is missing for that is a snapshot, it is written."""
        run, ms = self._run, entry_ms(entry.id)
        if (run.entries >= run.excess and ms >= run.older_ms) or ms >= run.settled_ms:
            return False
        if not self._snapshots.covers(entry.id) and self._snapshots.may_be_asked_for():
            self._snapshots.write()
        return self._snapshots.covers(entry.id)

    def _fail(self, error: BaseException) -> float:
        """Nothing goes that is not archived; it is tried again."""
        assert self._writer is not None
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        self._tell(f"nothing is taken out of the log: cannot write the archive {self._writer.folder}: {reason}")
        return self._go_on(self._open, RETRY_S)


def _next_id(entry_id: str) -> str:
    """The first id that can come behind this one."""
    ms, number = parse_id(entry_id)
    return f"{ms}-{number + 1}" if number < 2**64 - 1 else f"{ms + 1}-0"
