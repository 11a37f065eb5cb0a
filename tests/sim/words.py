"""The words of a command: what they mean as numbers and options, and what is said when they mean nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import lru_cache

from tests.sim.resp import Refused

Word = str | int | bytes

SYNTAX = "syntax error"
_INTEGER = re.compile(rb"(?:0|-?[1-9]\d{0,18})(?!\n)\Z")
_INTEGERS = range(-(1 << 63), 1 << 63)


def spelled(words: Iterable[Word]) -> list[bytes]:
    """Words as they go over a connection."""
    return [word if isinstance(word, bytes) else str(word).encode() for word in words]


def as_text(word: bytes) -> str:
    """Any bytes as text; as an answer it is spelled with the same bytes again."""
    return word.decode("latin-1")


@lru_cache(maxsize=1 << 12)  # the same few are said again and again
def integer(word: bytes) -> int:
    """A whole number of 64 bits. Raises `Refused`."""
    if _INTEGER.match(word) and (number := int(word)) in _INTEGERS:
        return number
    raise Refused("value is not an integer or out of range")


@lru_cache(maxsize=1 << 12)
def score(word: bytes) -> float:
    """A finite number, or an infinity. Raises `Refused`."""
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if math.isnan(number) or b"_" in word or word != word.strip():
        raise Refused("value is not a valid float")
    return number


def bound(word: bytes) -> tuple[float, bool]:
    """The end of a range of scores, and whether it lies outside. Raises `Refused`."""
    outside = word[:1] == b"("
    text = word[1:] if outside else word
    try:
        return score(text) if text else 0.0, outside  # here nothing at all is zero, too
    except Refused:
        raise Refused("min or max is not a float") from None


def number_text(number: float) -> bytes:
    """A score, or a number of Lua's, as the server writes it."""
    return b"%d" % int(number) if number.is_integer() and abs(number) < 1e17 else b"%.17g" % number
