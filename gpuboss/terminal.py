"""Text that others wrote, made safe to show: nothing of it moves a cursor, changes a colour or turns a line around.

Anybody who reaches Redis chooses what events say. A terminal obeys ESC and its C1 twin, and lets a bidirectional
override show one word as another; so whatever is not printable is shown by its number instead.
"""

from __future__ import annotations

import unicodedata


def escaped(text: str) -> str:
    r"""The text with each character that is not printable as `\xNN`, `\uNNNN` or `\UNNNNNNNN`.

    That is controls (a newline too), format characters, lone surrogates, private ones, and those of no meaning yet.
    """
    if text.isprintable():
        return text
    return "".join(char if _is_harmless(char) else _by_number(char) for char in text)


def escaped_json(document: str) -> str:
    r"""A JSON document that means the same, with nothing in its strings that is not printable.

    Line ends between its values stay; inside of strings JSON has none.
    """
    if document.isascii() and "\x7f" not in document:
        return document
    return "".join(char if char == "\n" or _is_harmless(char) else _by_utf16(char) for char in document)


def is_safe(text: str) -> bool:
    """Whether `escaped` would change nothing of it."""
    return text.isprintable() or all(map(_is_harmless, text))


def _is_harmless(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"


def _by_number(char: str) -> str:
    code = ord(char)
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _by_utf16(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
