"""Entries of the log as JSON lines and back, byte for byte: what `gpuboss export` writes and `gpuboss replay` reads.

A line is `{"id": ..., "type": ..., "data": {...}}`, with `data` as the log holds it, byte for byte. An entry that
would not come back from that (other fields, another order, data that is no JSON object, a line end in it, text that
a terminal would obey) also has `"raw"`: its field list, field, value, field, value, ..., each as a string in
base64. Where there is a `raw` it alone counts; `type` and `data` are then for people, as far as they can be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from gpuboss.core.stream_ids import is_id
from gpuboss.errors import GPUBossError
from gpuboss.log import Entry
from gpuboss.terminal import escaped, escaped_json, is_safe

EXPECTED = '{"id":"1700000000000-0","type":"LeaseReleased","data":{...}}'
_NUMBER_MAX = 2**64 - 1  # of each half of a stream id
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class BadLine(GPUBossError):
    """A line that is no entry of a log; the message says in which file, in which line, and why."""


class _Line(msgspec.Struct):
    id: str
    type: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    raw: list[bytes] | None = None


_DECODER = msgspec.json.Decoder(_Line)


def to_line(entry: Entry) -> bytes:
    """The entry as one line of JSON, in UTF-8 and without a line end. Total: any bytes can be in its fields."""
    if _is_plain(entry.fields):
        _, type_name, _, data = entry.fields
        plain = b'{"id":"%s","type":%s,"data":%s}' % (entry.id.encode(), _encoded(type_name.decode()), data)
        # Read back rather than reasoned about: whatever the decoder makes of it is what a replay will see.
        if _read_or_none(plain) == entry:
            return plain
    type_bytes, data_bytes = _fields_by_name(entry.fields)
    line = _Line(
        id=entry.id,
        type=None if type_bytes is None else escaped(type_bytes.decode("utf-8", "backslashreplace")),
        data=msgspec.Raw(b"null" if data_bytes is None else _readable(data_bytes)),
        raw=entry.fields,
    )
    return msgspec.json.encode(line)


def read_jsonl(lines: Iterable[bytes], name: str) -> Iterator[Entry]:
    """The entries of a file, exactly as they were when it was written. `name` is the file's, for messages.

    Empty lines are skipped, and so are fields of a line that mean nothing here. Raises `BadLine`.
    """
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line.isspace() and line:
            try:
                yield _read(line)
            except (ValueError, RecursionError) as error:  # msgspec's errors and UnicodeDecodeError are ValueErrors
                raise BadLine(f"{name}:{number}: no entry of a log: {error}; expected {EXPECTED}") from None


def compressed_lines(path: Path) -> Iterator[bytes]:
    """The lines of a gzip file. Raises `BadLine` where it is cut off, or none, and `OSError`."""
    import gzip
    import zlib

    try:
        with gzip.open(path) as file:
            yield from file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadLine(f"{path}: cut off, or no gzip file: {error}") from None


def _read(line: bytes) -> Entry:
    read = _DECODER.decode(line)
    if not is_id(read.id) or any(int(half) > _NUMBER_MAX for half in read.id.split("-")):
        raise ValueError(f"id is {escaped(read.id[:80])!r}, which is no stream id")
    if read.raw is not None:
        return Entry(read.id, read.raw)
    if read.type is None:
        raise ValueError("it has neither type nor raw")
    data = bytes(read.data)
    if not data.startswith(b"{"):
        raise ValueError("data is no JSON object, and there is no raw")
    return Entry(read.id, [b"type", read.type.encode(), b"data", data])


def _read_or_none(line: bytes) -> Entry | None:
    try:
        return _read(line)
    except (ValueError, RecursionError):
        return None


def _is_plain(fields: list[bytes]) -> bool:
    """Whether the entry is of the usual form, and its data JSON for every reader, on one line, safe to be shown."""
    if len(fields) != 4 or fields[0] != b"type" or fields[2] != b"data":
        return False
    try:
        if not is_safe(fields[1].decode()) or not is_safe(fields[3].decode()):
            return False
        return isinstance(msgspec.json.decode(fields[3]), dict)
    except (ValueError, RecursionError):
        return False


def _fields_by_name(fields: list[bytes]) -> tuple[bytes | None, bytes | None]:
    """The first type and the first data among the fields, whatever else there is."""
    found = dict(reversed(list(zip(fields[0::2], fields[1::2], strict=False))))
    return found.get(b"type"), found.get(b"data")


def _readable(data: bytes) -> bytes:
    """The data for people: as JSON if it can be read so, otherwise as a string."""
    try:
        return escaped_json(msgspec.json.encode(msgspec.json.decode(data)).decode()).encode()
    except (ValueError, RecursionError):
        return _encoded(escaped(data.decode("utf-8", "backslashreplace")))


def _encoded(text: str) -> bytes:
    return msgspec.json.encode(text)
