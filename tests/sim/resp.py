"""What a server answers, and how commands and answers go over a connection (RESP2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import hiredis


class Status(str):
    """A word that says how it went: OK, PONG, the name of a type."""

    __slots__ = ()


class Error(str):
    """Why a command was not carried out, code and all: `WRONGTYPE Operation against ...`."""

    __slots__ = ()


class Blocked(NamedTuple):
    """An XREAD that found nothing and waits: whoever called does `again` when one of `keys` was touched, and answers
    None once `block_ms` are over, counted from the first time; 0 is for ever."""

    keys: list[bytes]
    block_ms: int
    again: list[bytes]


Answer = None | int | bytes | Status | Error | Blocked | list["Answer"]


class Refused(Exception):
    """A command cannot be carried out. `answer` is what the server says."""

    def __init__(self, text: str, code: str = "ERR") -> None:
        super().__init__(text)
        self.answer = Error(f"{code} {text}")


def encode(answer: Answer) -> bytes:
    """The bytes of an answer. Raises `TypeError` for `Blocked`: that one is answered later."""
    parts: list[bytes] = []
    _write(answer, parts)
    return b"".join(parts)


def _write(answer: Any, parts: list[bytes]) -> None:
    kind = type(answer)  # what it is, not what it may stand for: that is told twice as quickly
    if kind is bytes:
        parts.append(b"$%d\r\n%b\r\n" % (len(answer), answer))
    elif kind is list:
        parts.append(b"*%d\r\n" % len(answer))
        for each in answer:
            if type(each) is bytes:
                parts.append(b"$%d\r\n%b\r\n" % (len(each), each))
            else:
                _write(each, parts)
    elif kind is int:
        parts.append(b":%d\r\n" % answer)
    elif answer is None:
        parts.append(b"$-1\r\n")
    elif kind is Status or kind is Error:
        parts.append(b"%b%b\r\n" % (b"-" if kind is Error else b"+", answer.encode("latin-1")))
    else:
        raise TypeError(f"{answer!r} is not answered yet")


class Requests:
    """The commands that come in on one connection, in whatever pieces."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()

    def feed(self, received: bytes) -> Iterator[list[bytes]]:
        """The commands that are complete by now, as their words. Raises hiredis' `ProtocolError`."""
        self._reader.feed(received)
        while (words := self._reader.gets()) is not False:
            yield words
