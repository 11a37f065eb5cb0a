"""What is known of the log beside what it says itself, so that it is noticed when entries of it are gone: in memory as
long as the process lives, and in a file where one is given."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from gpuboss.core.stream_ids import parse_id
from gpuboss.errors import ConfigError
from gpuboss.log import LogReader
from gpuboss_scheduler.talk import say

FENCE_GAP = 1_000_000  # more grants than there can be between two notes


class Known(msgspec.Struct, frozen=True):
    """The log as it was seen last: its name, the highest epoch, its last entry and the highest fence; and the entry
    that was the last one when it was seen before that, for the last may have been written into a log that had just
    lost all others."""

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

    def note(self, known: Known) -> bool:
        """The log was seen to be so. To be said several times a second. Returns whether anything is new."""
        before = self._known
        if before is not None and known.epoch < before.epoch:
            return False  # it has gone back, maybe to what it was under another name: `missed` must find that
        if before is not None and before.incarnation == known.incarnation:
            # A standby sees less than the leader it may have been.
            last_id = max(before.last_id, known.last_id, key=parse_id)
            before_id = before.before_id if last_id == before.last_id else before.last_id
            known = Known(known.incarnation, known.epoch, last_id, max(before.fence, known.fence), before_id)
        if known == before:
            return False
        self._known = known
        if self._file is not None:
            self._try_to_write(self._file)
        return True

    def missed(self, incarnation: str, epoch: int, log: LogReader) -> Known | None:
        """What was known, if an entry of it is not there any more: others may have written on since, so where the log
        ends says nothing. `incarnation`: the name of the log that is found, empty if it has none; another name than
        the known one means that another scheduler noticed, and began anew, unless `epoch`, the highest that is found,
        was known before: then a replica took over that never heard of the known name. What a leader trimmed is not
        lost: who was away for long may know no later entry."""
        known = self._known
        if known is None:
            return None
        if incarnation not in ("", known.incarnation):
            return known if epoch <= known.epoch else None
        gone = [parse_id(each) for each in (known.last_id, known.before_id) if each and not log.holds(each)]
        if not gone:
            return None
        # Asked for in this order: it may be trimmed right now.
        trimmed, last_id = log.trimmed_through(), log.last_id() or "0-0"
        return None if max(gone) <= parse_id(trimmed) < parse_id(last_id) else known

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
