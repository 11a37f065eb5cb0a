"""Reading the log and its snapshot from Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from msgspec import MsgspecError

import gpuboss
from gpuboss.core import snapshot
from gpuboss.core.machine import CORE_VERSION
from gpuboss.core.state import State
from gpuboss.core.stream_ids import is_id
from gpuboss.errors import GPUBossError
from gpuboss.keys import Keys

if TYPE_CHECKING:
    import redis

PAGE = 1000  # entries in one answer: larger pages are slower, smaller ones too


class LogDamaged(GPUBossError):
    """What the log or its snapshot holds cannot be used; the message says what, and what to do."""


class NewerLog(LogDamaged):
    """The log, or its snapshot, was written by rules that these do not know."""

    def __init__(self, core: int) -> None:
        super().__init__(
            f"core {core} decides this log, and this version, {gpuboss.__version__}, knows the rules through core "
            f"{CORE_VERSION}: use one as new as the scheduler that wrote it, or another namespace"
        )
        self.core = core


class Entry(NamedTuple):
    """One entry: its stream id, and its fields and values as Redis holds them."""

    id: str
    fields: list[bytes]


class Gone(NamedTuple):
    """Whether entries of a log are gone, and the highest that was ever deleted by its id, `0-0` if none was."""

    any: bool
    deleted_through: str


class LogReader:
    """The log of one namespace. The client must come from `connection.connect`: it returns flat field lists."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def entries(self, after: str = "0-0", until: str = "+") -> Iterator[Entry]:
        """All entries behind `after`, through `until` (inclusive), in pages."""
        while True:
            page = self.page(after, until)
            yield from page
            if len(page) < PAGE:
                return
            after = page[-1].id

    def page(self, after: str = "0-0", until: str = "+", count: int = PAGE) -> list[Entry]:
        """The first `count` entries of these."""
        found: Any = self._client.xrange(self._keys.events, min=f"({after}", max=until, count=count)
        return [Entry(entry_id.decode(), fields) for entry_id, fields in found]

    def first_id(self) -> str | None:
        """The id of the first entry that is still there; None for an empty log."""
        page: Any = self._client.xrange(self._keys.events, count=1)
        return page[0][0].decode() if page else None

    def last_id(self, through: str = "+") -> str | None:
        """The id of the last entry up to `through`; None if there is none."""
        page: Any = self._client.xrevrange(self._keys.events, max=through, count=1)
        return page[0][0].decode() if page else None

    def holds(self, entry_id: str) -> bool:
        """Whether this very entry is there."""
        return bool(self._client.xrange(self._keys.events, min=entry_id, max=entry_id))

    def length(self) -> int:
        """How many entries the log holds."""
        return self._client.xlen(self._keys.events)

    def gone(self) -> Gone:
        """What the log remembers of entries that are not there any more."""
        if not self._client.exists(self._keys.events):
            return Gone(False, "0-0")
        about = self._client.xinfo_stream(self._keys.events)
        deleted: bytes = about["max-deleted-entry-id"]
        return Gone(int(about["entries-added"]) > int(about["length"]), deleted.decode())

    def trimmed_through(self) -> str:
        """The last entry that a scheduler took out of the log, because it was kept for long enough; `0-0` if none was.

        It moves in the same step of the server in which the entries go. So what was read before it was asked for, and
        lies behind it, was read whole.
        """
        found = cast(bytes | None, self._client.hget(self._keys.scheduler, "trimmed_through"))
        text = (found or b"").decode("ascii", "replace")
        return text if is_id(text) else "0-0"

    def cursor(self) -> str | None:
        """The last entry that the scheduler has decided; None if none ever led."""
        cursor = cast(bytes | None, self._client.hget(self._keys.scheduler, "cursor"))
        return None if cursor is None else cursor.decode()

    def snapshot(self) -> State | None:
        """The state that the snapshot holds, if there is one. Raises `NewerLog` if a newer core wrote it, and
        `LogDamaged` if it was changed since."""
        from redis.exceptions import ResponseError

        try:
            stored = cast(dict[bytes, bytes], self._client.hgetall(self._keys.snapshot))
        except ResponseError:
            raise LogDamaged(
                "what stands at the snapshot's key is no snapshot; delete it while the log is whole"
            ) from None
        core = stored.get(b"core", b"")
        if not core.isdigit():
            return None
        if int(core) > CORE_VERSION:
            raise NewerLog(int(core))
        return load_snapshot(stored.get(b"state", b""), stored.get(b"digest", b"").decode("ascii", "replace"))


def load_snapshot(dumped: bytes, digest: str) -> State:
    """Check the digest of a dumped state and load it. Raises `LogDamaged`."""
    found = snapshot.digest(dumped)
    if found != digest:
        raise LogDamaged(
            f"the snapshot was changed after it was written: its digest is {found[:16]}..., expected {digest[:16]}...; "
            "while the log is whole, deleting the snapshot is harmless"
        )
    try:
        return snapshot.load(dumped)
    except MsgspecError as error:
        raise LogDamaged(f"the snapshot cannot be read ({error}); delete it while the log is whole") from None
