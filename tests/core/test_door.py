"""The door: what is no event is rejected with its reason and a sentence, and stops nothing; what is one passes."""

import json
import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuboss import events
from gpuboss.core.door import DATA_BYTES_MAX, DEPTH_MAX, Refusal, is_decision, is_stamped, read_event, read_stamp
from gpuboss.events import EventRejected, LeaseRequested, Stamp
from gpuboss.fields import GPUS_MAX, MS_MAX, VRAM_MIB_MAX
from tests.core import hostile
from tests.core.compared import answer_of
from tests.core.hostile import VALID, asked, asked_nested, asked_of_size, asked_raw
from tests.core.model import Model
from tests.core.scenario import Scenario

GOOD_IDS = ("a" * 8, "a" * 64, "A-_09zZz", "--------", "0" * 8)
GOOD_NAMES = ("a", "0", "a" * 63, "imajin-diffusion", "a.b_c-d", "0.")
GOOD_DEVICES = ("cuda:0", "cuda:10", "cuda:9999", "GPU-8f1c1b9e-0a7c-4f6b-9d3e-7f2f5a0f3b11", "MIG-1/2/3")


@pytest.mark.parametrize("name", hostile.ALL)
def test_what_is_no_event_is_rejected_and_stops_nothing(name):
    fields, rejection = hostile.ALL[name]
    scenario = Scenario(24_576)
    scenario.request("before", 8_192)
    model = Model()
    for entry in scenario.entries:
        model.apply(entry.id, entry.fields)

    entry_id = scenario.append(*fields)
    told = scenario.settle()

    assert [answer_of(each) for each in told] == model.apply(entry_id, fields, rejection)
    assert scenario.request("after", 16_384) == ["granted after on cuda:0"]


@pytest.mark.parametrize("name", hostile.ALL)
def test_a_rejection_says_what_is_wrong_in_one_printable_line(name):
    scenario = Scenario(24_576)
    scenario.append(*hostile.ALL[name][0])
    [told] = scenario.settle()
    assert isinstance(told.decision, EventRejected)
    detail = told.decision.detail
    assert 10 < len(detail) < 1_000
    assert detail.isprintable()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (asked_raw(vram_mib="-5"), ("vram_mib", "-5", ">= 1")),
        (asked_raw(vram_mib=str(10**26)), ("vram_mib", str(10**26), str(VRAM_MIB_MAX))),
        (asked_raw(vram_mib="true"), ("vram_mib", "int", "bool", "true")),
        (asked_raw(vram_mib="1e3"), ("vram_mib", "int", "float")),
        (asked(priority="urgent"), ("priority", "urgent")),
        (asked(service="Imajin\n"), ("service", "Imajin")),
        (asked(device="cuda:01"), ("device", "cuda:01")),
        (hostile.entry(b"LeaseRequested", b"{}"), ("lease_id",)),
        (hostile.entry(b"LeaseRequested", b"[1,2]"), ("JSON object", "[1,2]")),
        (hostile.entry(b"LeaseReleasd", b"{}"), ("LeaseReleasd",)),
        (hostile.entry(b"LeaseRequested", hostile.VALID_DATA[:-1] + b"\xff"), ("UTF-8",)),
        (asked_of_size(65_537), ("65537", "65536")),
        (asked_nested(33), ("33", "32")),
        ([b"Type", b"x", b"DATA", b"y"], ("type and data", "'Type'", "'DATA'")),
        ([], ("type and data", "none")),
    ],
)
def test_the_detail_names_what_was_given_and_what_was_expected(fields, said):
    refusal = read_event(fields)
    assert isinstance(refusal, Refusal)
    for word in said:
        assert word in refusal.detail


def test_the_limits_are_where_the_contract_puts_them():
    assert DATA_BYTES_MAX == 65_536
    assert DEPTH_MAX == 32
    assert isinstance(read_event(asked_of_size(65_536)), LeaseRequested)
    assert isinstance(read_event(asked_nested(32)), LeaseRequested)
    assert isinstance(read_event(asked(note="[" * 5_000 + '\\"{')), LeaseRequested), "brackets in text nest nothing"


@pytest.mark.parametrize(
    "fields",
    [
        *({"lease_id": each} for each in GOOD_IDS),
        *({"session": each} for each in GOOD_IDS),
        *({"service": each} for each in GOOD_NAMES),
        *({"instance": each} for each in GOOD_NAMES),
        *({"node": each} for each in GOOD_NAMES),
        *({"device": each} for each in GOOD_DEVICES),
        *({"vram_mib": each} for each in (1, VRAM_MIB_MAX)),
        *({"gpus": each} for each in (1, GPUS_MAX)),
        *({"ttl_ms": each, "wait_ms": each} for each in (None, 1, MS_MAX)),
        *({"priority": each} for each in ("low", "normal", "high")),
        {"pid": 2**32, "model": "ß" * 512, "traceparent": ""},
        {"exclusive": True, "reclaimable": True, "preemptible": False},
    ],
    ids=str,
)
def test_everything_within_the_bounds_passes(fields):
    event = read_event(asked(**fields))
    assert isinstance(event, LeaseRequested)
    for name, value in fields.items():
        assert getattr(event, name) == value


def test_what_is_left_out_has_the_contracts_default():
    event = read_event(asked())
    assert msgspec.to_builtins(event) == VALID | {
        "priority": "normal",
        "device": None,
        "node": None,
        "gpus": 1,
        "exclusive": False,
        "ttl_ms": None,
        "wait_ms": None,
        "reclaimable": False,
        "preemptible": True,
        "instance": None,
        "session": None,
        "pid": None,
        "model": None,
        "traceparent": None,
    }


def test_fields_that_nobody_knows_pass():
    assert read_event(asked(note={"a": [1.5, None, "ü", True]}, vram_gb=8)) == read_event(asked())


def test_fields_may_come_in_either_order():
    data, type_name = hostile.VALID_DATA, b"LeaseRequested"
    assert read_event([b"data", data, b"type", type_name]) == read_event([b"type", type_name, b"data", data])
    scenario = Scenario(24_576)
    scenario.append(b"data", data, b"type", type_name)
    assert [told.address for told in scenario.settle()] == ["imajin"]


@pytest.mark.parametrize("data", [b' {"a":1} ', b"\t\r\n" + hostile.VALID_DATA + b"\n", b'{"a":1,"a":2}'])
def test_white_space_and_repeated_names_are_json(data):
    event = read_event([b"type", b"LeaseRequested", b"data", data])
    assert not (isinstance(event, Refusal) and event.reason == "malformed")


def test_the_last_of_repeated_names_counts_as_in_every_reader():
    data = hostile.VALID_DATA[:-1] + b',"vram_mib":1}'
    event = read_event([b"type", b"LeaseRequested", b"data", data])
    assert isinstance(event, LeaseRequested)
    assert event.vram_mib == json.loads(data)["vram_mib"] == 1


def test_bytes_that_are_no_text_are_refused_also_where_nobody_looks():
    refusal = read_event([b"type", b"LeaseReleased", b"data", hostile.VALID_DATA[:-1] + b',"note":"\xe9"}'])
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "malformed"


def test_a_broken_name_redirects_no_answer():
    refusal = read_event(asked(service="imajin", instance="a:b", priority="urgent"))
    assert isinstance(refusal, Refusal)
    assert (refusal.service, refusal.instance, refusal.is_told) == ("imajin", None, False)


def called_from_deep_down(frames, call):
    """What `call` returns when so many frames are on the stack already."""
    return call() if frames == 0 else called_from_deep_down(frames - 1, call)


@pytest.mark.parametrize("type_name", [b"LeaseRequested", b"Nonsense", b"LeaseGranted", b"ClockTicked"])
def test_what_is_read_does_not_depend_on_who_reads(type_name):
    # A decoder that recurses gets less deep the deeper its caller stands; replay and scheduler would differ.
    deep = b"[" * 400 + b"]" * 400
    data = b'{"lease_id":"lease-0001","service":"imajin","epoch":1,"seq":2,"x":%s}' % deep

    def read():
        return read_event([b"type", type_name, b"data", data]), read_stamp(data)

    assert called_from_deep_down(0, read) == called_from_deep_down(700, read)


@pytest.mark.parametrize(
    ("data", "stamp"),
    [
        (b'{"epoch":3,"seq":7}', Stamp(3, 7)),
        (b'{"cause":"1-0","epoch":3,"seq":7,"more":[]}', Stamp(3, 7)),
        (b"{}", Stamp()),
        (b'{"epoch":3}', Stamp(3, 0)),
        (b'{"epoch":"3","seq":7}', Stamp()),
        (b'{"epoch":3.0,"seq":7}', Stamp()),
        (b'{"epoch":-3,"seq":7}', Stamp()),
        (b'{"epoch":3,"seq":%d}' % 2**70, Stamp()),
        (b"[3,7]", Stamp()),
        (b"", Stamp()),
        (b'{"epoch":3,"seq":7,"x":"' + b"x" * 100_000 + b'"}', Stamp(3, 7)),
        (b'{"epoch":3,"seq":7,"x":"' + b"x" * 2_000_000 + b'"}', Stamp()),
    ],
    ids=range(12),
)
def test_a_stamp_is_read_or_none(data, stamp):
    assert read_stamp(data) == stamp


def test_only_the_scheduler_stamps():
    stamped = {name for name in events.ALL if is_stamped(name.encode())}
    assert stamped == set(events.FACTS) | set(events.DECISIONS)
    assert {name for name in events.ALL if is_decision(name.encode())} == set(events.DECISIONS)


def test_every_type_has_one_place_in_the_tables():
    tables = (events.FROM_SERVICES, events.FROM_OPERATORS, events.FACTS, events.DECISIONS)
    assert sum(len(table) for table in tables) == len(events.ALL)
    assert all(name == cls.__name__ for name, cls in events.ALL.items())


# Bytes that look like entries: known names and JSON with something odd in it, and anything at all.
pieces = st.sampled_from([b"type", b"data", *(name.encode() for name in events.ALL), hostile.VALID_DATA, b"{}", b"[]"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(VALID)), inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(st.sampled_from([*VALID, "priority", "device", "session", "epoch", "seq"]), json_values)
odd_data = objects.map(lambda each: json.dumps(VALID | each).encode()) | st.binary(max_size=64)


@given(st.lists(pieces | st.binary(max_size=16), max_size=6))
@settings(max_examples=200)
def test_no_field_list_whatever_breaks_the_door(fields):
    outcome = read_event(fields)
    assert isinstance(outcome, Refusal | events.Event)


@given(st.sampled_from(sorted(events.ALL)), odd_data)
@settings(max_examples=300)
def test_no_data_whatever_breaks_the_door(type_name, data):
    outcome = read_event([b"type", type_name.encode(), b"data", data])
    if isinstance(outcome, Refusal):
        assert outcome.reason in ("malformed", "invalid")
        assert outcome.service is None or re.fullmatch("[a-z0-9][a-z0-9._-]{0,62}", outcome.service)
    else:
        assert type(outcome) is events.ALL[type_name]
    assert isinstance(read_stamp(data), Stamp)


@given(odd_data)
@settings(max_examples=100)
def test_no_data_whatever_breaks_the_scheduler(data):
    scenario = Scenario(24_576)
    for type_name in events.ALL:
        scenario.writes(type_name.encode(), data)
    assert scenario.state.ledger.devices["alpha/cuda:0"].observed.total_mib == 24_576
