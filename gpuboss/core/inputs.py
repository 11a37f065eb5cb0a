"""The running digest of the inputs: whether two logs gave the core the same entries, in the same order.

Decisions are no part of it: they follow from the inputs, and a replay derives them again. A change of an input may
lead to no other decision, and then nothing but this digest tells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

NO_INPUTS = bytes(32)

_framed = msgspec.msgpack.Encoder().encode


def chained(before: bytes, entry_id: str, fields: Sequence[bytes]) -> bytes:
    """The digest behind one more input: the SHA-256 of MessagePack's array of the digest before it, its stream id and
    the list of its fields and values as the log holds them. Each carries its length, so no two logs look alike."""
    return hashlib.sha256(_framed((before, entry_id, fields))).digest()
