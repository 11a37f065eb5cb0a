"""Entries that are no events, each with the rejection that it must meet: what anybody who reaches Redis may append."""

from __future__ import annotations

import json
from typing import Any

from tests.core.model_decisions import Rejection

VALID: dict[str, Any] = {"lease_id": "lease-0001", "service": "imajin", "vram_mib": 8192}
ADDRESSED = Rejection("invalid", "lease-0001", "imajin", None, "imajin")
UNADDRESSED = Rejection("invalid", "lease-0001")  # its service is no name: nobody can be told
MALFORMED = Rejection("malformed")
TOO_LARGE = Rejection("too_large")
FORGED = Rejection("forged")
FORGED_GRANT = Rejection("forged", "lease-0001", "imajin")  # named in the log, and told to nobody


def entry(type_name: bytes, data: bytes) -> list[bytes]:
    """An entry of the usual form."""
    return [b"type", type_name, b"data", data]


def asked(**fields: Any) -> list[bytes]:
    """A request with these fields over a valid one's."""
    return entry(b"LeaseRequested", json.dumps(VALID | fields).encode())


def asked_raw(**fields: str) -> list[bytes]:
    """A request with these fields over a valid one's, each given as JSON text, which need not be valid."""
    texts = {name: json.dumps(value) for name, value in VALID.items()} | fields
    return entry(b"LeaseRequested", ("{" + ",".join(f'"{name}":{text}' for name, text in texts.items()) + "}").encode())


def asked_of_size(size: int) -> list[bytes]:
    """A request whose data has exactly this many bytes, thanks to a field that nobody knows."""
    bare = len(json.dumps(VALID | {"padding": ""}))
    return asked(padding="x" * (size - bare))


def asked_nested(levels: int) -> list[bytes]:
    """A request that nests this many levels, the outermost object among them."""
    return asked_raw(deep="[" * (levels - 1) + "]" * (levels - 1))


NUMBERS: tuple[str, ...] = ("-5", "0", "-0", "1.5", "8192.0", "1e3", "1E3", "true", "null", "[8192]", '"8192"')
NUMBERS += ("{}", "1e400", "16777217", str(2**63), str(2**64), str(10**26))
NAMES: tuple[str, ...] = ("", "Imajin", "imäjin", "ima jin", "imajin\n", "\nimajin", "ima\0jin", "\x1b[31m", "a/b")
NAMES += ("a:b", ".a", "a" * 64)
LEASE_IDS: tuple[str, ...] = ("", "a" * 7, "a" * 65, "lease-0001\n", "lease 0001", "lease\x000001", "lease-ÄÖÜß")
LEASE_IDS += ("lease.0001", "../../etc")
DEVICES: tuple[str, ...] = ("", "cpu", "cuda", "cuda:", "cuda:-1", "cuda:01", "cuda:10000", "cuda:0\n", "CUDA:0")
DEVICES += ("GPU-", "GPU--1", "gpu-1")

INVALID: dict[str, tuple[list[bytes], Rejection]] = {
    **{f"vram_mib {text}": (asked_raw(vram_mib=text), ADDRESSED) for text in NUMBERS},
    **{f"service {name!a}": (asked(service=name), UNADDRESSED) for name in NAMES},
    **{
        f"lease_id {name!a}": (asked(lease_id=name), Rejection("invalid", None, "imajin", None, "imajin"))
        for name in LEASE_IDS
    },
    **{f"device {name!a}": (asked(device=name), ADDRESSED) for name in DEVICES},
    **{f"gpus {text}": (asked_raw(gpus=text), ADDRESSED) for text in ("0", "-1", "1025", "1.0", "true", "null")},
    **{f"ttl_ms {text}": (asked_raw(ttl_ms=text), ADDRESSED) for text in ("0", "-1", "1.5", "true", str(2**53))},
    **{f"wait_ms {text}": (asked_raw(wait_ms=text), ADDRESSED) for text in ("0", "-1", "1e3", '"1"', str(2**53))},
    **{f"exclusive {text}": (asked_raw(exclusive=text), ADDRESSED) for text in ("0", "1", '"true"', "null", "[]")},
    **{f"priority {text}": (asked_raw(priority=text), ADDRESSED) for text in ('"urgent"', '"HIGH"', "1", "null", '""')},
    **{f"pid {text}": (asked_raw(pid=text), ADDRESSED) for text in ("-1", '"1"', str(2**32 + 1))},
    "model of 513 characters": (asked(model="x" * 513), ADDRESSED),
    "a number as service": (asked(service=5), UNADDRESSED),
    "a list as lease_id": (asked(lease_id=["lease-0001"]), Rejection("invalid", None, "imajin", None, "imajin")),
    "a session too short": (asked(session="short"), ADDRESSED),
    "a good session, a bad priority": (
        asked(session="session-01", instance="a", priority="urgent"),
        Rejection("invalid", "lease-0001", "imajin", "session-01", "imajin:a"),
    ),
    "an instance that is no name": (asked(instance="A:B"), Rejection("invalid", "lease-0001", "imajin")),
    "a reply key smuggled in": (asked(service="x\r\nDEL gpuboss:events"), UNADDRESSED),
    "a field left out": (entry(b"LeaseRequested", b'{"lease_id":"lease-0001","service":"imajin"}'), ADDRESSED),
    "all fields left out": (entry(b"LeaseRequested", b"{}"), Rejection("invalid")),
    "a release without id": (entry(b"LeaseReleased", b'{"service":"imajin"}'), ADDRESSED._replace(lease_id=None)),
    "a renewal without end": (entry(b"LeaseRenewed", b'{"lease_id":"lease-0001","service":"imajin"}'), ADDRESSED),
    "a revocation of nothing": (entry(b"LeaseRevoked", b"{}"), Rejection("invalid")),
    "a grace below zero": (entry(b"LeaseRevoked", b'{"lease_id":"lease-0001","grace_ms":-1}'), UNADDRESSED),
}

NO_OBJECTS: tuple[bytes, ...] = (b"", b" ", b"null", b"true", b"5", b'"x"', b"[]", b"[{}]", b"{", b"{]", b'{"a":}')
NO_OBJECTS += (b'{"a":1,}', b"{'a':1}", b"nan", b"\xff", b"\xef\xbb\xbf{}", b"\x00")
NO_OBJECTS += (b'{"lease_id":"\xff"}', b'{"x":NaN}')
NO_OBJECTS += (b'{"service":"\\ud800"}', b'{"service":"\\x41"}', b'{"service":"a\nb"}', b'{"service":"a\x00b"}')
VALID_DATA = json.dumps(VALID).encode()
FIELD_LISTS: tuple[list[bytes], ...] = (
    [],
    [b"type"],
    [b"type", b"LeaseRequested"],
    [b"type", b"LeaseRequested", b"data"],
    [b"data", VALID_DATA],
    [b"type", b"LeaseRequested", b"type", b"LeaseRequested"],
    [b"data", VALID_DATA, b"data", VALID_DATA],
    [b"Type", b"LeaseRequested", b"data", VALID_DATA],
    [b"type", b"LeaseRequested", b"data", VALID_DATA, b"more", b"1"],
    [b"type", b"LeaseRequested", b"data", VALID_DATA, b"data", b"{}"],
    [b"\xff\x00\x1b", b"LeaseRequested", b"data", VALID_DATA],
    [b"a", b"b"] * 1000,
)

MALFORMED_ENTRIES: dict[str, tuple[list[bytes], Rejection]] = {
    **{f"data {data!a}": (entry(b"LeaseRequested", data), MALFORMED) for data in NO_OBJECTS},
    **{f"fields {number}": (fields, MALFORMED) for number, fields in enumerate(FIELD_LISTS)},
    "bytes that are no UTF-8 in an unknown field": (
        entry(b"LeaseRequested", VALID_DATA[:-1] + b',"note":"\xc3\x28"}'),
        MALFORMED,
    ),
    "an infinity": (asked_raw(vram_mib="Infinity"), MALFORMED),
    "a number that begins with zero": (asked_raw(vram_mib="08192"), MALFORMED),
    "something behind the object": (entry(b"LeaseRequested", VALID_DATA + b"\0"), MALFORMED),
}

LARGE: dict[str, tuple[list[bytes], Rejection]] = {
    "65537 bytes": (asked_of_size(65_537), TOO_LARGE),
    "a megabyte": (asked_of_size(1_000_000), TOO_LARGE),
    "33 levels": (asked_nested(33), TOO_LARGE),
    "60,000 open brackets": (entry(b"LeaseRequested", b"[" * 60_000), TOO_LARGE),
    "60,000 open objects": (entry(b"LeaseRequested", b'{"a":' * 12_000), TOO_LARGE),
    "a deep entry of no known type": (entry(b"Nonsense", b'{"lease_id":"lease-0001","x":' + b"[" * 900), TOO_LARGE),
}

NO_TYPES: tuple[bytes, ...] = (b"", b"leaserequested", b"LeaseRequested ", b"LeaseRequested\n", b"Event")
NO_TYPES += (b"Decision", b"Stamp", b"None")
NO_TYPES += (b"\xff\xfe", b"\x1b]0;owned\x07", b"__class__", b"x" * 70_000)
UNKNOWN: dict[str, tuple[list[bytes], Rejection]] = {
    **{
        f"type {name[:20]!a}": (entry(name, VALID_DATA), ADDRESSED._replace(reason="unknown_type")) for name in NO_TYPES
    },
    "no type and no data": (entry(b"Nonsense", b"\xff"), Rejection("unknown_type")),
}

GRANT = b'{"cause":"1-0","lease_id":"lease-0001","service":"imajin","node":"alpha","device":"cuda:0"'
FORGERIES: dict[str, tuple[list[bytes], Rejection]] = {
    "a grant without a stamp": (entry(b"LeaseGranted", GRANT + b"}"), FORGED_GRANT),
    "a grant with seq 0": (entry(b"LeaseGranted", GRANT + b',"epoch":1,"seq":0}'), FORGED_GRANT),
    "a grant far ahead": (entry(b"LeaseGranted", GRANT + b',"epoch":9,"seq":999999}'), FORGED_GRANT),
    "a grant with words for numbers": (entry(b"LeaseGranted", GRANT + b',"epoch":"1","seq":"2"}'), FORGED_GRANT),
    "a grant with a seq below zero": (entry(b"LeaseGranted", GRANT + b',"epoch":1,"seq":-1}'), FORGED_GRANT),
    "a grant that is no object": (entry(b"LeaseGranted", b"[]"), FORGED),
    "an end of nothing": (entry(b"LeaseEnded", b""), FORGED),
    "a rejection": (entry(b"EventRejected", b'{"cause":"1-0","event_id":"1-0","reason":"forged"}'), FORGED),
    "a tick": (entry(b"ClockTicked", b'{"now_ms":9007199254740991}'), FORGED),
    "a tick from epoch 0": (entry(b"ClockTicked", b'{"now_ms":9007199254740991,"epoch":0,"seq":1}'), FORGED),
    "an election of an old epoch": (entry(b"SchedulerElected", b'{"scheduler":"me","epoch":0,"seq":1}'), FORGED),
    "a device": (entry(b"DeviceObserved", b'{"node":"alpha","device":"cuda:7","total_mib":99999}'), FORGED),
    "a dead session": (
        entry(b"SessionLost", b'{"service":"imajin","session":"session-01"}'),
        Rejection("forged", None, "imajin", "session-01"),
    ),
    "a policy of two megabytes": (entry(b"PolicySet", b'{"x":"' + b"x" * 2_000_000 + b'"}'), FORGED),
    "a very deep grant": (entry(b"LeaseGranted", GRANT + b',"x":' + b"[" * 100_000), FORGED),
}

ALL: dict[str, tuple[list[bytes], Rejection]] = INVALID | MALFORMED_ENTRIES | LARGE | UNKNOWN | FORGERIES
