"""What is known of the log beside what it says itself, so that it is noticed when entries of it are gone: in memory as
long as the process lives, and in a file where one is given."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from gpuboss.core.verification import parse_id
from gpuboss.errors import ConfigError
from gpuboss.log import LogReader
from gpuboss_scheduler.talk import say

FENCE_GAP = 1_000_000  # more grants than there can be between two notes


class Known(msgspec.Struct, frozen=True):
    """The log as it was seen last: its name, the highest epoch, its last entry and the highest fence.

    `before_id` is the last entry as it was seen before that. Of a log that was lost and is written on, the last entry
    that was read may be a new one.
    """

    incarnation: str
    epoch: int
    last_id: str
    fence: int
    before_id: str = ""


class KnownLog:
    """One namespace's log, as this scheduler saw it."""

    def __init__(self, file: Path | None = None) -> None:
        """`file`: where it is kept beyond the life of the process. Raises `ConfigError` if that cannot be written."""
        self._file = file
        self._known: Known | None = None
        self._is_written = True
        if file is not None:
            self._known = _read(file)
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                self._write(file)
            except OSError as error:
                raise ConfigError(
                    f"cannot write {file}, where the end of the log is remembered: {error.strerror}; name another file "
                    "with --memory-file"
                ) from None

    def note(self, known: Known) -> None:
        """The log was seen to be so. To be said several times a second."""
        before = self._known
        if before is not None and before.incarnation == known.incarnation:
            # A standby sees less than the leader it may have been.
            last_id = max(before.last_id, known.last_id, key=parse_id)
            epoch, fence = max(before.epoch, known.epoch), max(before.fence, known.fence)
            before_id = before.before_id if last_id == before.last_id else before.last_id
            known = Known(known.incarnation, epoch, last_id, fence, before_id)
        if known != before:
            self._known = known
            if self._file is not None:
                self._try_to_write(self._file)

    def missed(self, incarnation: str, log: LogReader) -> Known | None:
        """What was known, if its last entries are not there any more: others may have written on since, so where the log
        ends says nothing. `incarnation`: the name of the log that is found, empty if it has none; another name than
        the known one means that another scheduler noticed, and began anew."""
        known = self._known
        if known is None or incarnation not in ("", known.incarnation):
            return None
        is_there = log.holds(known.last_id) and (not known.before_id or log.holds(known.before_id))
        return None if is_there else known

    def _try_to_write(self, file: Path) -> None:
        """A full disk must not end a reign; it is said once."""
        try:
            self._write(file)
            self._is_written = True
        except OSError as error:
            if self._is_written:
                say(f"cannot write {file} ({error.strerror}): a log lost before a restart may go unnoticed")
            self._is_written = False

    def _write(self, file: Path) -> None:
        fresh = file.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(self._known))
        os.replace(fresh, file)


def _read(file: Path) -> Known | None:
    """What was remembered. A file that cannot be read is as good as none, and is said."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Known | None)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        say(f"{file}, where the end of the log is remembered, cannot be read ({error}): a lost log may go unnoticed")
        return None
