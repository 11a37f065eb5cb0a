"""An answer as it comes in the reply stream: read tolerantly, for a later scheduler may say more than we know."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Reply(msgspec.Struct, frozen=True):
    """The fields of all decisions that a client acts on; which of them count depends on `kind`."""

    lease_id: str = ""
    cause: str = ""
    session: str | None = None
    now_ms: int = 0
    reason: str = ""
    detail: str = ""
    node: str = ""
    device: str = ""
    devices: tuple[str, ...] = ()
    uuids: tuple[str, ...] = ()
    vram_mib: int = 0
    granted_at_ms: int = 0
    expires_at_ms: int | None = None
    deadline_ms: int = 0
    state: str = ""
    fence: int = 0


_DECODER = msgspec.json.Decoder(Reply)


def read_reply(fields: Mapping[bytes, bytes]) -> tuple[str, Reply] | None:
    """The type and the content of an entry; None for what no scheduler can have written."""
    try:
        return fields[b"type"].decode(), _DECODER.decode(fields[b"data"])
    except (KeyError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def log_id(text: str) -> tuple[int, int]:
    """The id of an entry of the log, so that two can be compared; (0, 0) for what is none."""
    ms, _, number = text.partition("-")
    return (int(ms), int(number)) if ms.isdecimal() and number.isdecimal() else (0, 0)
