"""The log as lines of JSON: whatever its bytes are, they come back."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpuboss.jsonl import BadLine, read_jsonl, to_line
from gpuboss.log import Entry
from tests.cli.test_terminal import DANGEROUS

ID = "1700000000000-0"
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(), JSON_VALUES, max_size=4)
LAYOUTS: Any = st.builds(
    lambda value, ascii_only, indent: json.dumps(value, ensure_ascii=ascii_only, indent=indent),
    OBJECTS,
    st.booleans(),
    st.sampled_from([None, 0, 2]),
).map(lambda text: text.encode("utf-8", "surrogatepass"))
DATA = LAYOUTS | st.binary() | LAYOUTS.map(lambda data: b" " + data) | LAYOUTS.map(lambda data: data[:-1])
TYPES = st.sampled_from([b"LeaseRequested", b"EventRejected"]) | st.binary() | st.text().map(str.encode)
FIELDS = (
    st.tuples(st.just(b"type"), TYPES, st.just(b"data"), DATA).map(list)
    | st.tuples(st.just(b"data"), DATA, st.just(b"type"), TYPES).map(list)
    | st.lists(st.binary() | st.sampled_from([b"type", b"data"]), max_size=8)
)


def back(line: bytes) -> Entry:
    [entry] = read_jsonl([line], "log.jsonl")
    return entry


def entry_of(type_name: bytes, data: bytes) -> Entry:
    return Entry(ID, [b"type", type_name, b"data", data])


@given(FIELDS)
@example([b"type", b"A", b"data", b'{"a":"\\ud800"}'])
@example([b"type", b"A", b"data", b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"])
@example([b"type", b"A", b"data", b'{"a":1}\n'])
@example([b"type", b"A", b"data", b'{"a":1e999}'])
@example([b"type", b"A", b"data", b'{"a":1,"a":1}'])
@example([b"type", b"A", b"data", b"{}", b"data", b"{}"])
@example([b"type", b"A", b"data", b'{"raw":["AA=="]}'])
@example([])
def test_every_entry_comes_back_byte_for_byte(fields: list[bytes]) -> None:
    entry = Entry(ID, fields)
    line = to_line(entry)
    assert back(line) == entry
    assert b"\n" not in line
    assert b"\r" not in line


@given(FIELDS)
def test_every_line_is_json_that_is_safe_on_a_terminal(fields: list[bytes]) -> None:
    import unicodedata

    line = to_line(Entry(ID, fields)).decode()
    assert {"id", "type", "data"} <= json.loads(line).keys() <= {"id", "type", "data", "raw"}
    assert not [char for char in line if unicodedata.category(char) in DANGEROUS]


@given(OBJECTS.filter(lambda value: "\x7f" not in str(value)))
def test_ordinary_data_stands_in_the_line_as_it_stands_in_the_log(value: dict[str, Any]) -> None:
    data = json.dumps(value).encode()
    try:
        msgspec.json.decode(data)
    except ValueError:
        return  # lone surrogates, infinite numbers
    assert to_line(entry_of(b"LeaseReleased", data)) == b'{"id":"%s","type":"LeaseReleased","data":%s}' % (
        ID.encode(),
        data,
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b' {"a":1}',
        b'{"a":1} ',
        b'{"a":\n1}',
        b'{"a":\t1}',
        b'{"a":"\x1b"}',
        b'{"a":"\xc2\x9b"}',
        b'{"a":"\xe2\x80\xae"}',
        b'{"a":"\x7f"}',
        b'{"a":"\xff"}',
        b'{"a":01}',
        b'{"a":NaN}',
    ],
)
def test_odd_data_is_kept_in_base64_beside_what_can_be_read_of_it(data: bytes) -> None:
    line = json.loads(to_line(entry_of(b"Thing", data)))
    assert line["raw"] == [b64encode(part).decode() for part in (b"type", b"Thing", b"data", data)]
    assert line["type"] == "Thing"


def test_odd_fields_are_read_for_people_as_far_as_they_go() -> None:
    assert json.loads(to_line(Entry(ID, [b"data", b'{"a":1}', b"type", b"Thing\x1b"]))) == {
        "id": ID,
        "type": "Thing\\x1b",
        "data": {"a": 1},
        "raw": ["ZGF0YQ==", "eyJhIjoxfQ==", "dHlwZQ==", "VGhpbmcb"],
    }
    assert json.loads(to_line(Entry(ID, [b"field", b"value"]))) == {
        "id": ID,
        "type": None,
        "data": None,
        "raw": ["ZmllbGQ=", "dmFsdWU="],
    }


@pytest.mark.parametrize(
    "line",
    [
        '{"id":"1-2","type":"A","data":{"a": 1}}',
        '{"data":{"a": 1},"type":"A","id":"1-2"}',
        '  { "id" : "1-2" , "more" : [1] , "type" : "\\u0041" , "data" : {"a": 1} }  \r\n',
        '\ufeff{"id":"1-2","type":"A","data":{"a": 1}}\n',
        '{"id":"1-2","raw":["dHlwZQ==","QQ==","ZGF0YQ==","eyJhIjogMX0="]}',
        '{"id":"1-2","type":"B","data":{},"raw":["dHlwZQ==","QQ==","ZGF0YQ==","eyJhIjogMX0="]}',
    ],
)
def test_lines_that_others_wrote_are_read(line: str) -> None:
    assert back(line.encode()) == Entry("1-2", [b"type", b"A", b"data", b'{"a": 1}'])


def test_empty_lines_are_skipped_and_counted() -> None:
    lines = [b"\n", b'{"id":"1-2","type":"A","data":{}}\n', b"  \n", b"nonsense\n"]
    reading = read_jsonl(lines, "log.jsonl")
    assert next(reading).id == "1-2"
    with pytest.raises(BadLine, match=r"log\.jsonl:4: no entry of a log: .*; expected \{"):
        next(reading)


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"{}",
        b'{"type":"A","data":{}}',
        b'{"id":5,"type":"A","data":{}}',
        b'{"id":"5","type":"A","data":{}}',
        b'{"id":"-1-0","type":"A","data":{}}',
        b'{"id":"1-0\\n","type":"A","data":{}}',
        b'{"id":"18446744073709551616-0","type":"A","data":{}}',
        b'{"id":"1-0","data":{}}',
        b'{"id":"1-0","type":null,"data":{}}',
        b'{"id":"1-0","type":"A"}',
        b'{"id":"1-0","type":"A","data":null}',
        b'{"id":"1-0","type":"A","data":"{}"}',
        b'{"id":"1-0","type":"A","data":[]}',
        b'{"id":"1-0","raw":["A"]}',
        b'{"id":"1-0","raw":"dHlwZQ=="}',
        b'{"id":"1-0","type":"A","data":' + b"[" * 5000,
    ],
)
def test_a_line_that_is_no_entry_is_refused_with_its_place(line: bytes) -> None:
    with pytest.raises(BadLine, match=r"^there:1: no entry"):
        list(read_jsonl([line], "there"))
