"""Writing an archive: each segment is on the disk, whole and under its name, before the log is trimmed of it."""

from __future__ import annotations

import gzip
import os
import threading
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from gpuboss.archive import segment_name, segments_in
from gpuboss.core.stream_ids import parse_id
from gpuboss_scheduler.failpoints import failpoint


class SegmentWriter:
    """One reign's way into an archive's folder. A thread writes: a disk takes its time, and nobody waits for it."""

    def __init__(self, folder: Path, epoch: int) -> None:
        self.folder = folder
        # Its own, so that a deposed scheduler that wakes up amid its work does not write into another one's file.
        self._draft = folder / f"epoch-{epoch}.partial"

    def open(self) -> str:
        """Make the folder if need be; returns the last entry that it holds, `0-0` for none. Raises `OSError`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for draft in self.folder.glob("epoch-*.partial"):
            draft.unlink(missing_ok=True)  # of a scheduler that was killed, or leads no more
        return max((segment.last for segment in segments_in(self.folder)), key=parse_id, default="0-0")

    def write(self, first: str, last: str, before: str, lines: list[bytes]) -> Future[None]:
        """Begin to write a segment. The answer comes when it is there to stay; it may be an `OSError`."""
        answer: Future[None] = Future()
        path = self.folder / segment_name(first, last, before)
        arguments = (answer, path, lines)
        threading.Thread(target=self._answer, args=arguments, name="archive", daemon=True).start()
        return answer

    def _answer(self, answer: Future[None], path: Path, lines: list[bytes]) -> None:
        try:
            self._write(path, lines)
        except Exception as error:  # whatever it is: who waits for the answer must hear of it
            with suppress(OSError):
                self._draft.unlink()  # a full disk has better uses
            answer.set_exception(error)  # last: whoever hears it may begin the next draft
        else:
            answer.set_result(None)

    def _write(self, path: Path, lines: list[bytes]) -> None:
        compressed = gzip.compress(b"\n".join([*lines, b""]), mtime=0)
        with self._draft.open("wb") as file:
            half = len(compressed) // 2
            file.write(compressed[:half])
            file.flush()
            failpoint("segment-begun")
            file.write(compressed[half:])
            file.flush()
            os.fsync(file.fileno())
        failpoint("segment-written")
        os.replace(self._draft, path)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        failpoint("segment-kept")
