"""A wall clock that a test sets, for a server that runs: by libfaketime, where it is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt/homebrew/lib")
_LIBRARIES = ("faketime/libfaketimeMT.so.1", "*/faketime/libfaketimeMT.so.1", "faketime/libfaketimeMT.1.dylib")

NOT_HERE = "libfaketime is not installed (apt-get install faketime): no server's clock can be made to jump"


def library() -> Path | None:
    """The library that is put before the server's own; None if it is not here."""
    for folder in _FOLDERS:
        for pattern in _LIBRARIES:
            for found in sorted(Path(folder).glob(pattern)):
                return found
    return None


class FalseClock:
    """The wall clock of whoever is started with `environ`. Its monotonic clock stays true."""

    def __init__(self, folder: Path) -> None:
        """`folder` holds a file that says how wrong the clock is."""
        found = library()
        if found is None:
            raise RuntimeError(NOT_HERE)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "clock"
        self._library = found
        self.set_ahead(0)

    @property
    def environ(self) -> Mapping[str, str]:
        """What makes a process follow this clock."""
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def set_ahead(self, seconds: int) -> None:
        """Have it show so much more than the true time from now on; less, where it is negative."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}s\n")
        fresh.replace(self._file)
