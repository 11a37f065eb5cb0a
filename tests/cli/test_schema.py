"""`gpuboss schema`: says of every event what the door of the core says, and nothing else."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from gpuboss import events
from gpuboss.core.door import DATA_BYTES_MAX, DEPTH_MAX, Refusal, read_event
from tests.cli.console import Console

CONSOLE = Console("redis://127.0.0.1:1")

Schema = dict[str, Any]


def whole() -> Schema:
    ended = CONSOLE.call("schema")
    assert (ended.code, ended.err) == (0, "")
    document: Schema = ended.document
    return document


WHOLE = whole()


def fits(schema: Schema, value: object) -> bool:
    """Whether a value fits: of JSON Schema as much as the events need, and an error for anything more."""
    known = {"title", "description", "default", "$schema", "$defs", "oneOf", "anyOf", "allOf", "enum", "const", "$ref"}
    known |= {"type", "properties", "required", "items", "pattern", "minimum", "maximum", "minLength", "maxLength"}
    known |= {"additionalProperties", "minItems", "maxItems"}
    assert schema.keys() <= known, schema.keys() - known
    if "$ref" in schema and not fits(WHOLE["$defs"][schema["$ref"].removeprefix("#/$defs/")], value):
        return False
    if "anyOf" in schema and not any(fits(each, value) for each in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(fits(each, value) for each in schema["oneOf"]) != 1:
        return False
    if ("enum" in schema and value not in schema["enum"]) or ("const" in schema and value != schema["const"]):
        return False
    return fits_type(schema, value)


def fits_type(schema: Schema, value: object) -> bool:
    match value:
        case bool():
            return schema.get("type", "boolean") == "boolean"
        case int():
            low, high = schema.get("minimum", value), schema.get("maximum", value)
            return schema.get("type", "integer") == "integer" and low <= value <= high
        case str():
            if schema.get("type", "string") != "string" or len(value) > schema.get("maxLength", len(value)):
                return False
            return re.search(schema.get("pattern", ""), value) is not None
        case None:
            return schema.get("type", "null") == "null"
        case list():
            return schema.get("type", "array") == "array" and all(fits(schema.get("items", {}), each) for each in value)
        case dict():
            if schema.get("type", "object") != "object" or not set(schema.get("required", ())) <= value.keys():
                return False
            parts = schema.get("properties", {})
            if schema.get("additionalProperties") is False and not value.keys() <= parts.keys():
                return False
            return all(fits(parts.get(name, {}), each) for name, each in value.items())
    raise AssertionError(f"no JSON value: {value!r}")


REQUEST = {"lease_id": "4f9c0e7a1b2d", "service": "imajin-diffusion", "vram_mib": 8192}
DEVICE = {"node": "node-a", "device": "cuda:0", "uuid": "GPU-0", "name": "x", "total_mib": 24576}
HEAD_START = {"low": 0, "normal": 1, "high": 2}
POLICY = {"head_start_ms": HEAD_START, "margin_mib": None, "session_ttl_ms": 1, "lock_delay_ms": 0}
RELEASE = {"lease_id": "4f9c0e7a1b2d", "service": "imajin"}
REASSERTED = {
    **RELEASE,
    "node": "n",
    "device": "cuda:0",
    "devices": ["cuda:0"],
    "vram_mib": 1,
    "priority": "low",
    "state": "held",
    "granted_at_ms": 0,
    "expires_at_ms": None,
    "fence": 0,
}

VALID: list[tuple[str, dict[str, Any]]] = [
    ("LeaseRequested", REQUEST),
    ("LeaseRequested", REQUEST | {"priority": "high", "device": "cuda:12", "node": "a", "gpus": 1024, "ttl_ms": 1}),
    ("LeaseRequested", REQUEST | {"device": "GPU-ab-12", "session": "abcdefgh", "pid": 1, "model": "größer"}),
    ("LeaseRequested", REQUEST | {"device": None, "wait_ms": None, "unknown": {"anything": [1]}}),
    ("LeaseRequested", REQUEST | {"vram_mib": 16_777_216, "exclusive": True}),
    ("LeaseReleased", RELEASE),
    ("LeaseRenewed", RELEASE | {"ttl_ms": 2**53 - 1}),
    ("LeaseIdled", RELEASE),
    ("LeaseResumed", RELEASE | {"reload_ms": 5}),
    ("LeaseReasserted", REASSERTED),
    ("LeaseReasserted", {name: value for name, value in REASSERTED.items() if value is not None}),
    ("LeaseRevoked", {"lease_id": "4f9c0e7a1b2d", "reason": "", "by": "", "epoch": 1, "seq": 2}),
    ("SchedulerElected", {"scheduler": "a", "version": "1", "core": 1, "incarnation": "x", "epoch": 1, "seq": 1}),
    ("PolicySet", POLICY | {"epoch": 1, "seq": 2}),
    ("DeviceObserved", DEVICE),
    ("DeviceLost", {"node": "a", "device": "cuda:0"}),
    ("LeaseObserved", {"lease_id": "4f9c0e7a1b2d", "device": "cuda:0", "used_mib": 0}),
    ("SessionLost", {"service": "imajin", "session": "abcdefgh"}),
    ("ClockTicked", {"now_ms": 0, "epoch": 1, "seq": 9}),
    ("ClockTicked", {"now_ms": 0, "inputs_follow": True}),
    ("PolicySet", POLICY | {"reservations": 0, "backfill_order": "short", "starve_ms": 0}),
    ("ClockJumped", {"from_id": "1-0", "delta_ms": -5}),
    ("VramReclaimed", {"lease_id": "4f9c0e7a1b2d", "how": "nvml"}),
    ("SnapshotTaken", {"through": "1-0", "inputs": "0" * 64, "state": "a" * 64}),
    ("LeaseDenied", RELEASE | {"reason": "timeout", "detail": "", "cause": "1-0", "epoch": 1, "seq": 3, "now_ms": 5}),
    ("YieldRequested", RELEASE | {"deadline_ms": 5, "for": None, "cause": "1-0", "session": "abcdefgh"}),
    ("PromiseMoved", RELEASE | {"starts_by_ms": 7, "was_ms": 5, "cause": "1-0"}),
    ("PromiseMoved", RELEASE | {"starts_by_ms": None, "was_ms": 5, "cause": "1-0"}),
    ("LeaseExtended", RELEASE | {"expires_at_ms": 5, "cause": "1-0"}),
    ("LeaseStateChanged", RELEASE | {"state": "idle", "cause": "1-0"}),
    ("LeaseEnded", RELEASE | {"reason": "expired", "freed": False, "cause": "1-0"}),
    ("EventRejected", {"event_id": "1-0", "reason": "forged", "detail": "", "cause": "1-0"}),
    (
        "LeaseGranted",
        RELEASE
        | {"node": "a", "device": "cuda:0", "devices": ["cuda:0"], "uuids": ["GPU-0"], "vram_mib": 1}
        | {"granted_at_ms": 0, "expires_at_ms": None, "waited_ms": 0, "fence": 1, "cause": "1-0"},
    ),
]

INVALID: list[tuple[str, dict[str, Any]]] = [
    ("PolicySet", POLICY | {"reservations": 1_025}),
    ("PolicySet", POLICY | {"backfill_order": "long"}),
    ("LeaseRequested", {}),
    ("LeaseRequested", REQUEST | {"vram_mib": 0}),
    ("LeaseRequested", REQUEST | {"vram_mib": 16_777_217}),
    ("LeaseRequested", REQUEST | {"vram_mib": "8192"}),
    ("LeaseRequested", REQUEST | {"vram_mib": True}),
    ("LeaseRequested", REQUEST | {"vram_mib": None}),
    ("LeaseRequested", REQUEST | {"service": "Imajin"}),
    ("LeaseRequested", REQUEST | {"service": "imajin\n"}),
    ("LeaseRequested", REQUEST | {"service": "a" * 64}),
    ("LeaseRequested", REQUEST | {"lease_id": "short"}),
    ("LeaseRequested", REQUEST | {"lease_id": "4f9c0e7a1b2d\n"}),
    ("LeaseRequested", REQUEST | {"priority": "urgent"}),
    ("LeaseRequested", REQUEST | {"device": "cuda:01"}),
    ("LeaseRequested", REQUEST | {"device": "cpu"}),
    ("LeaseRequested", REQUEST | {"gpus": 0}),
    ("LeaseRequested", REQUEST | {"gpus": 1025}),
    ("LeaseRequested", REQUEST | {"ttl_ms": 0}),
    ("LeaseRequested", REQUEST | {"exclusive": "yes"}),
    ("LeaseRequested", REQUEST | {"model": "x" * 513}),
    ("LeaseReleased", {"lease_id": "4f9c0e7a1b2d"}),
    ("LeaseRenewed", RELEASE | {"ttl_ms": 2**53}),
    ("LeaseRenewed", RELEASE | {"ttl_ms": None}),
    ("LeaseReasserted", REASSERTED | {"devices": ["cuda:x"]}),
    ("LeaseReasserted", REASSERTED | {"state": "gone"}),
    ("LeaseRevoked", {"lease_id": "4f9c0e7a1b2d", "reason": "", "by": "", "grace_ms": -1}),
    ("PolicySet", POLICY | {"head_start_ms": {"low": 0, "middle": 1}}),
    ("DeviceObserved", DEVICE | {"total_mib": -1}),
    ("ClockTicked", {"now_ms": -1}),
    ("VramReclaimed", {"lease_id": "4f9c0e7a1b2d", "how": "luck"}),
    ("SnapshotTaken", {"through": "1-0", "inputs": "0" * 64, "state": "A" * 64}),
    ("LeaseEnded", RELEASE | {"reason": "bored", "freed": False, "cause": "1-0"}),
]


def is_taken(name: str, data: dict[str, Any]) -> bool:
    """What the core itself says."""
    fields = [b"type", name.encode(), b"data", msgspec.json.encode(data)]
    return not isinstance(read_event(fields), Refusal)


@pytest.mark.parametrize(("name", "data"), VALID)
def test_what_the_core_takes_fits(name: str, data: dict[str, Any]) -> None:
    assert is_taken(name, data)
    assert fits(WHOLE, {"type": name, "data": data})
    assert fits(WHOLE, {"id": "1-0", "type": name, "data": data})


@pytest.mark.parametrize(("name", "data"), INVALID)
def test_what_the_core_refuses_does_not_fit(name: str, data: dict[str, Any]) -> None:
    assert not is_taken(name, data)
    assert not fits(WHOLE, {"type": name, "data": data})


@pytest.mark.parametrize(
    "entry",
    [{}, {"type": "LeaseReleased"}, {"data": RELEASE}, {"type": "Unheard", "data": {}}, {"type": "x", "data": 5}],
)
def test_what_is_no_entry_does_not_fit(entry: dict[str, Any]) -> None:
    assert not fits(WHOLE, entry)


def test_every_type_of_event_is_there_and_tried() -> None:
    names = set(events.ALL)
    assert {each["properties"]["type"]["const"] for each in WHOLE["oneOf"]} == names
    assert names <= WHOLE["$defs"].keys()
    assert {name for name, _ in VALID} == names
    assert WHOLE["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("name", list(events.ALL))
def test_each_says_what_it_is_and_who_writes_it(name: str) -> None:
    description = WHOLE["$defs"][name]["description"]
    assert (events.ALL[name].__doc__ or "").split(".")[0].split("\n")[0] in description
    assert "ritten by " in description


@pytest.mark.parametrize("name", list(events.ALL))
def test_what_the_scheduler_writes_has_its_stamp(name: str) -> None:
    properties = WHOLE["$defs"][name]["properties"]
    by_scheduler = name in events.FACTS or name in events.DECISIONS
    assert ("epoch" in properties and "seq" in properties) == (by_scheduler or name == "LeaseRevoked")
    assert ("now_ms" in properties) == (name in events.DECISIONS or name == "ClockTicked")
    assert not {"epoch", "seq"} & set(WHOLE["$defs"][name]["required"])


def test_the_layout_is_described() -> None:
    for said in ("<namespace>:events", "<namespace>:replies:<service>", str(DATA_BYTES_MAX), str(DEPTH_MAX), "MiB"):
        assert said in WHOLE["description"]


@pytest.mark.parametrize("name", list(events.ALL))
def test_one_type_alone_is_complete(name: str) -> None:
    ended = CONSOLE.call("schema", "--type", name, "--json")
    assert ended.code == 0
    alone = ended.document
    assert alone["$schema"] == WHOLE["$schema"]
    references = set(re.findall(r'"#/\$defs/(\w+)"', ended.out))
    assert references == alone.pop("$defs", {}).keys()
    alone.pop("$schema")
    assert alone == WHOLE["$defs"][name]
