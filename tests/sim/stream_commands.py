"""The commands on streams."""

from __future__ import annotations

from typing import NamedTuple

from tests.sim.database import Database
from tests.sim.resp import Answer, Blocked, Refused
from tests.sim.streams import (
    FIRST,
    HIGHEST,
    LAST,
    Id,
    Stream,
    following,
    parse_first,
    parse_id,
    parse_last,
)
from tests.sim.words import SYNTAX, as_text, integer

NODE_ENTRIES = 100  # trimming "about" takes whole nodes alone
NOT_ABOVE = "The ID specified in XADD is equal or smaller than the target stream top item"


class Trim(NamedTuple):
    """What is to go: all but the last `length` entries, or those below `lowest`; `about`: where that is cheap."""

    length: int | None
    lowest: Id
    about: bool


class Options(NamedTuple):
    """The options of XADD or XTRIM, and where the words go on behind them. `wanted`: the id that XADD is given, or its
    ms alone; None: that is left to the stream."""

    trim: Trim | None
    make: bool
    wanted: Id | int | None
    at: int


_PLAIN = Options(None, True, None, 2)


def xadd(data: Database, words: list[bytes]) -> Answer:
    """XADD key [NOMKSTREAM] [MAXLEN|MINID [=|~] threshold [LIMIT count]] *|id field value ..."""
    trim, make, wanted, at = _PLAIN if words[2] == b"*" else _options(words, adding=True)
    fields = words[at + 1 :]
    if not fields or len(fields) % 2:
        raise Refused("wrong number of arguments for 'xadd' command")
    if wanted == FIRST:
        raise Refused("The ID specified in XADD must be greater than 0-0")
    key = words[1]
    stream = data.find(key, Stream) if not make else data.find_or_make(key, Stream)
    if stream is None:
        return None
    last_id = stream.last_id
    if last_id == LAST:
        raise Refused("The stream has exhausted the last possible ID, unable to add more items")
    entry_id = _given(stream, wanted, data)
    if entry_id <= last_id:
        raise Refused(NOT_ABOVE)
    name = stream.add(entry_id, fields)  # type: ignore[arg-type]
    data.undo.append((stream.take_back, last_id))
    data.touched.add(key)
    if trim is not None:
        _trim(data, stream, trim)
    return name


def xtrim(data: Database, words: list[bytes]) -> Answer:
    """XTRIM key MAXLEN|MINID [=|~] threshold [LIMIT count]"""
    trim = _options(words, adding=False).trim
    if trim is None:
        raise Refused("syntax error, XTRIM must be called with a trimming strategy")
    stream = data.find(words[1], Stream)
    return 0 if stream is None else _trim(data, stream, trim)


def xdel(data: Database, words: list[bytes]) -> Answer:
    """XDEL key id ..."""
    stream = data.find(words[1], Stream)
    if stream is None:
        return 0
    gone = 0
    for entry_id in [parse_id(word) for word in words[2:]]:
        at = stream.find(entry_id)
        if at is not None:
            data.undo.append((stream.put_back, at, entry_id, stream.entries[at], stream.max_deleted_id))
            stream.remove(at)
            gone += 1
    return gone


def xlen(data: Database, words: list[bytes]) -> Answer:
    """XLEN key"""
    stream = data.find(words[1], Stream)
    return 0 if stream is None else len(stream.ids)


def xrange(data: Database, words: list[bytes]) -> Answer:
    """XRANGE key start end [COUNT count]"""
    return _range(data, words, parse_first(words[2]), parse_last(words[3]), backwards=False)


def xrevrange(data: Database, words: list[bytes]) -> Answer:
    """XREVRANGE key end start [COUNT count]"""
    return _range(data, words, parse_first(words[3]), parse_last(words[2]), backwards=True)


def xread(data: Database, words: list[bytes]) -> Answer:
    """XREAD [COUNT count] [BLOCK ms] STREAMS key ... id ..."""
    count, block_ms, at = _read_options(words)
    number = (len(words) - at) // 2
    keys, after = words[at : at + number], words[at + number :]
    found: list[Answer] = []
    positions = []
    for key, word in zip(keys, after, strict=True):
        stream = data.find(key, Stream)
        position = parse_id(word) if word != b"$" else FIRST if stream is None else stream.last_id
        positions.append(position)
        if stream is not None and stream.last_id > position:
            first, last = stream.between(following(position), LAST)
            if first < last:
                found.append([key, stream.entries[first : min(last, first + count) if count else last]])  # type: ignore[list-item]
    if found or block_ms is None:
        return found or None
    if b"$" in after:  # it means the end as it is now
        words = [*words[: at + number], *(b"%d-%d" % position for position in positions)]
    return Blocked(keys, block_ms, words)


def xinfo(data: Database, words: list[bytes]) -> Answer:
    """XINFO STREAM key"""
    if words[1].upper() != b"STREAM" or len(words) != 3:
        raise Refused(f"unknown subcommand '{as_text(words[1])}'. Try XINFO HELP.")
    stream = data.find(words[2], Stream)
    if stream is None:
        raise Refused("no such key")
    first = stream.ids[0] if stream.ids else FIRST
    about: dict[bytes, Answer] = {
        b"length": len(stream.ids),
        b"radix-tree-keys": 1,
        b"radix-tree-nodes": 2,
        b"last-generated-id": b"%d-%d" % stream.last_id,
        b"max-deleted-entry-id": b"%d-%d" % stream.max_deleted_id,
        b"entries-added": stream.added,
        b"recorded-first-entry-id": b"%d-%d" % first,
        b"groups": 0,
        b"first-entry": stream.entries[0] if stream.ids else None,
        b"last-entry": stream.entries[-1] if stream.ids else None,
    }
    return [each for pair in about.items() for each in pair]


def _wanted(word: bytes) -> Id | int:
    """An id, or the ms of one whose number is left to the stream."""
    if word.endswith(b"-*"):
        return parse_id(word[:-2])[0]
    return parse_id(word)


def _given(stream: Stream, wanted: Id | int | None, data: Database) -> Id:
    """The id that an entry gets; whether it is above the last one is not asked here."""
    if wanted is None:
        return stream.next_id(data.now_us() // 1000)
    if isinstance(wanted, tuple):
        return wanted
    last_ms, number = stream.last_id
    if wanted != last_ms:
        return wanted, 0
    if number == HIGHEST:
        raise Refused(NOT_ABOVE)
    return wanted, number + 1


def _options(words: list[bytes], *, adding: bool) -> Options:
    trim: Trim | None = None
    wanted: Id | int | None = None
    make, limit, at = True, False, 2
    while at < len(words):
        option, more = words[at].upper(), len(words) - 1 - at
        if adding and option == b"*":
            break
        if option in (b"MAXLEN", b"MINID") and more:
            if trim is not None:
                raise Refused("syntax error, MAXLEN and MINID options at the same time are not compatible")
            signed = more >= 2 and words[at + 1] in (b"~", b"=")
            about = signed and words[at + 1] == b"~"
            at += 1 + signed
            trim = _trim_to(option, words[at], about)
        elif option == b"LIMIT" and more:
            at += 1
            limit = True
            if integer(words[at]) < 0:
                raise Refused("The LIMIT argument must be >= 0.")
        elif adding and option == b"NOMKSTREAM":
            make = False
        elif adding:
            wanted = _wanted(words[at])
            break
        else:
            raise Refused(SYNTAX)
        at += 1
    if limit and trim is None:
        raise Refused("syntax error, LIMIT cannot be used without specifying a trimming strategy")
    if limit and trim is not None and not trim.about:
        raise Refused("syntax error, LIMIT cannot be used without the special ~ option")
    return Options(trim, make, wanted, at)


def _trim_to(option: bytes, word: bytes, about: bool) -> Trim:
    if option == b"MINID":
        return Trim(None, parse_id(word), about)
    length = integer(word)
    if length < 0:
        raise Refused("The MAXLEN argument must be >= 0.")
    return Trim(length, FIRST, about)


def _trim(data: Database, stream: Stream, trim: Trim) -> int:
    length = trim.length
    count = stream.between(trim.lowest, LAST)[0] if length is None else max(0, len(stream.ids) - length)
    if trim.about:
        count = _whole_nodes(stream, count)
    if count:
        data.undo.append((stream.restore, *stream.drop(count)))
    return count


def _whole_nodes(stream: Stream, count: int) -> int:
    """How many of the first `count` entries fill whole nodes."""
    gone = stream.added - len(stream.ids)
    return max(0, (gone + count) // NODE_ENTRIES * NODE_ENTRIES - gone)


def _range(data: Database, words: list[bytes], first: Id, last: Id, *, backwards: bool) -> Answer:
    count = _count(words)
    stream = data.find(words[1], Stream)
    if stream is None:
        return []
    if count is not None and count <= 0:
        return None
    start, end = stream.between(first, last)
    if backwards:
        start = start if count is None else max(start, end - count)
        return stream.entries[start:end][::-1]  # type: ignore[return-value]
    return stream.entries[start : end if count is None else min(end, start + count)]  # type: ignore[return-value]


def _count(words: list[bytes]) -> int | None:
    count, at = None, 4
    while at < len(words):
        if words[at].upper() != b"COUNT" or at + 1 == len(words):
            raise Refused(SYNTAX)
        count, at = integer(words[at + 1]), at + 2
    return count


def _read_options(words: list[bytes]) -> tuple[int, int | None, int]:
    """How many entries at most (0: all), how long to wait, and where the streams begin."""
    count, block_ms, at = 0, None, 1
    while at < len(words):
        option, more = words[at].upper(), len(words) - 1 - at
        if option == b"STREAMS" and more:
            if more % 2:
                raise Refused("Unbalanced XREAD list of streams: for each stream key an ID or '$' must be specified.")
            return count, block_ms, at + 1
        if option == b"COUNT" and more:
            count = max(0, integer(words[at + 1]))
        elif option == b"BLOCK" and more:
            block_ms = _timeout(words[at + 1])
        else:
            raise Refused(SYNTAX)
        at += 2
    raise Refused(SYNTAX)


def _timeout(word: bytes) -> int:
    try:
        block_ms = integer(word)
    except Refused:
        raise Refused("timeout is not an integer or out of range") from None
    if block_ms < 0:
        raise Refused("timeout is negative")
    return block_ms
