"""Text of others as a terminal may see it."""

from __future__ import annotations

import json
import sys
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuboss.terminal import escaped, escaped_json, is_safe

DANGEROUS: Any = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
ANY_TEXT = st.text(st.characters() | st.characters(categories=DANGEROUS))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("imajin-diffusion", "imajin-diffusion"),
        ("größer als 模型 – ok", "größer als 模型 – ok"),
        ("non\u00a0breaking", "non\u00a0breaking"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31m", "\\x9b31m"),
        ("a\nb\tc\0", "a\\x0ab\\x09c\\x00"),
        ("\x7f", "\\x7f"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("\u2028", "\\u2028"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("\ue000", "\\ue000"),
    ],
)
def test_what_is_not_printable_is_shown_by_its_number(text: str, shown: str) -> None:
    assert escaped(text) == shown
    assert is_safe(text) == (text == shown)


@given(ANY_TEXT)
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    assert not [char for char in escaped(text) if unicodedata.category(char) in DANGEROUS]


@given(st.dictionaries(ANY_TEXT, ANY_TEXT))
def test_json_means_the_same_with_nothing_in_it_that_a_terminal_obeys(value: dict[str, str]) -> None:
    document = json.dumps(value, ensure_ascii=False, indent=1)
    shown = escaped_json(document)
    assert json.loads(shown) == value
    assert not [char for char in shown if char != "\n" and unicodedata.category(char) in DANGEROUS]


def test_every_character_of_unicode_is_harmless_or_escaped() -> None:
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    left = {unicodedata.category(char) for char in escaped(every)}
    assert not left & set(DANGEROUS)
    assert "Ll" in left
