"""The door of the core: the raw fields of a log entry become an event, or a refusal with its reason.

Strict, because anybody who reaches Redis can append anything: sizes are bounded before anything is decoded, and
every way in which decoding can fail is a refusal, never an exception.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gpuboss import events
from gpuboss.events import Decision, Event, FromService, LeaseRequested, RejectionReason, Stamp
from gpuboss.fields import check_names, is_lease_id, is_service_name

DATA_BYTES_MAX = 64 * 1024
STAMPED_BYTES_MAX = 1024 * 1024  # a grant of 1,024 MIG slices names them all
DEPTH_MAX = 32
SHOWN_MAX = 80  # how much of a bad value a detail repeats

_DECODERS: dict[bytes, msgspec.json.Decoder[Event]] = {
    name.encode(): msgspec.json.Decoder(cls) for name, cls in events.ALL.items()
}
_STAMP_DECODER = msgspec.json.Decoder(Stamp)

# Whether an entry of this type is one that the scheduler derived, rather than an input; and whether only the scheduler
# may write it. Asked of every entry, so without a function around it.
is_decision = frozenset(name.encode() for name in events.DECISIONS).__contains__
is_stamped = frozenset(name.encode() for name in events.FACTS | events.DECISIONS).__contains__


class Refusal(msgspec.Struct, frozen=True):
    """Why an entry is no event, and what could still be read of it to address the answer."""

    reason: RejectionReason
    detail: str
    lease_id: str | None = None
    service: str | None = None
    instance: str | None = None
    session: str | None = None
    is_told: bool = True  # false: the names are in the log, but it is not certain enough who listens to tell anybody


class _Salvage(msgspec.Struct):
    """The fields that address an answer, whatever their types turn out to be."""

    lease_id: Any = None
    service: Any = None
    instance: Any = None
    session: Any = None


_SALVAGE_DECODER = msgspec.json.Decoder(_Salvage)


def read_type(fields: Sequence[bytes]) -> bytes | None:
    """The entry's type, or None if the entry does not have exactly the fields `type` and `data`."""
    if len(fields) != 4:
        return None
    if fields[0] == b"type" and fields[2] == b"data":
        return fields[1]
    if fields[0] == b"data" and fields[2] == b"type":
        return fields[3]
    return None


def read_data(fields: Sequence[bytes]) -> bytes:
    """The entry's data. Only for entries of which `read_type` knows the type."""
    return fields[3] if fields[0] == b"type" else fields[1]


def read_stamp(data: bytes) -> Stamp:
    """The reign and number that an entry claims; zeros, which no scheduler uses, where it has none."""
    if len(data) > STAMPED_BYTES_MAX or _is_deep(data):
        return Stamp()
    try:
        return _STAMP_DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Stamp()


def read_event(fields: Sequence[bytes]) -> Event | Refusal:
    """Decode one entry. Total: it raises for no input whatever."""
    type_name = read_type(fields)
    if type_name is None:
        return Refusal("malformed", f"an entry has exactly the fields type and data, not {_field_names(fields)}")
    return read_known(type_name, read_data(fields))


def read_known(type_name: bytes, data: bytes) -> Event | Refusal:
    """The same for an entry of which `read_type` knows the type."""
    if len(data) > DATA_BYTES_MAX:
        return Refusal("too_large", f"data has {len(data)} bytes; at most {DATA_BYTES_MAX} are read")
    if _is_deep(data):
        return Refusal("too_large", f"data is nested {_depth(data)} levels deep; at most {DEPTH_MAX} are read")
    decoder = _DECODERS.get(type_name)
    if decoder is None:
        return refuse(data, "unknown_type", f"no event type is called {_show(type_name)}")
    try:
        if not data.isascii():
            data.decode()  # the decoder skips unknown fields, bytes that are no UTF-8 and all
        event = decoder.decode(data)
        if isinstance(event, FromService):
            check_names(event.lease_id, event.service, event.session if isinstance(event, LeaseRequested) else None)
        return event
    except msgspec.ValidationError as error:
        if not data.lstrip().startswith(b"{"):
            return Refusal("malformed", f"data is a JSON object, not {_show(data)}")
        return refuse(data, "invalid", _explain(str(error), data))
    except UnicodeDecodeError as error:
        return Refusal("malformed", f"data is UTF-8; byte {error.start} is not")
    except (msgspec.DecodeError, RecursionError) as error:
        return Refusal("malformed", f"data is no JSON object: {error}")


def read_decision(type_name: bytes, data: bytes) -> Decision | None:
    """What a scheduler decided, of any size; None for what cannot be read."""
    try:
        decoded = _DECODERS[type_name].decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return decoded if isinstance(decoded, Decision) else None


def refuse(data: bytes, reason: RejectionReason, detail: str) -> Refusal:
    """A refusal that is addressed to whomever the entry names, as far as its names are names."""
    if len(data) > DATA_BYTES_MAX or _is_deep(data):
        return Refusal(reason, detail)
    try:
        salvage = _SALVAGE_DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Refusal(reason, detail)
    service, instance = _name(is_service_name, salvage.service), _name(is_service_name, salvage.instance)
    lease_id, session = _name(is_lease_id, salvage.lease_id), _name(is_lease_id, salvage.session)
    # A broken instance must not redirect the answer to the stream of all replicas. And a forged answer must not make
    # us answer whom it names.
    is_told = (salvage.instance is None or instance is not None) and reason != "forged"
    return Refusal(reason, detail, lease_id, service, instance, session, is_told)


def _name(is_name: Callable[[str], object], value: object) -> str | None:
    return value if isinstance(value, str) and is_name(value) else None


def _explain(message: str, data: bytes) -> str:
    """msgspec says what it expected and where; add what it was given."""
    found = re.search(r" - at `\$\.([a-z_]+)`$", message)
    if found is None:
        return message
    try:
        values = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        return message
    field = found[1]
    return f"{field}: {message[: found.start()]}, given {_show(msgspec.json.encode(values.get(field)))}"


def _show(raw: bytes) -> str:
    text = ascii(raw[:SHOWN_MAX].decode("utf-8", "backslashreplace"))
    return text if len(raw) <= SHOWN_MAX else f"{text}... ({len(raw)} bytes)"


def _field_names(fields: Sequence[bytes]) -> str:
    names = ", ".join(_show(name) for name in fields[0:16:2]) or "none"
    return names if len(fields) <= 16 else f"{names}, ... ({len(fields) // 2} fields)"


def _is_deep(data: bytes) -> bool:
    """Whether data nests deeper than is read. Asked before any decoder: how deep one gets depends on who calls it,
    so two readers of one log could differ."""
    return data.count(b"[") + data.count(b"{") > DEPTH_MAX and _depth(data) > DEPTH_MAX


def _depth(data: bytes) -> int:
    """How deep arrays and objects nest, counted over the bytes: a decoder would recurse, and so could be broken."""
    depth = deepest = 0
    in_string = escaped = False
    for byte in data:
        if escaped:
            escaped = False
        elif in_string:
            if byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in (0x5B, 0x7B):
            depth += 1
            deepest = max(deepest, depth)
        elif byte in (0x5D, 0x7D):
            depth -= 1
    return deepest
