"""Logs that the command line is asked about, the digest of what they lead to, and how they become a file."""

from __future__ import annotations

import json
from pathlib import Path

from gpuboss.core import snapshot
from tests.cli.console import Console
from tests.core.scenario import Scenario, fold

HOSTILE = (
    [b"type", b"\x1b[31mRed", b"data", b'{"a":"\\u001b[2J"}'],
    [b"type", b"LeaseRequested", b"data", b'{"service":"\xc2\x9b31m","lease_id":"\xe2\x80\xaegnp"}'],
    [b"type", b"LeaseRequested", b"data", b'{"\xc2\x9b":{"\\u009b":["\xf3\xa0\x81\x81"]},"b":"\\ud83d\\ude00"}'],
    [b"type", b"LeaseGranted", b"data", b"\x1b]0;title\x07\x9b\xff\r\n\x00"],
    [b"type", b"", b"data", b""],
    [b"\x1b", b"\x9b", b"\xc2\x85", b"\x0e"],
    [b"type", b"A", b"data", b'{"a":"x\\ny"}', b"\x7f", b"\x08"],
    [b"type", b"A" * 100_000, b"data", b"[" * 60_000],
    [b"type", b"A", b"data", json.dumps({f"field{number}": "\x1b" for number in range(500)}).encode()],
)


def quiet() -> Scenario:
    """A lease that was held and given back, and a request that waited for it."""
    given = Scenario(24_576)
    given.request("holder", 8_192)
    given.request("second", 24_000, priority="high")
    given.release("holder")
    return given


def hostile() -> Scenario:
    """The same, and entries that are no events, full of what a terminal must never see."""
    given = quiet()
    for fields in HOSTILE:
        given.append(*fields)
    given.settle()
    return given


def story() -> Scenario:
    """Two cards, three requests, a forged grant and a lease that expires."""
    given = Scenario(24_576, 24_576)
    given.request("holder", 20_000, ttl_ms=60_000)
    given.request("second", 20_000)
    given.request("asking", 20_000, priority="high")
    given.writes(b"LeaseGranted", b'{"lease_id":"thief___","epoch":1,"seq":99,"cause":"1-1"}')
    given.tick(60_000)
    return given


def digest_of(given: Scenario, length: int | None = None) -> str:
    """The digest of the state that its first entries, or all of them, lead to."""
    return snapshot.digest(snapshot.dump(fold(given.entries[:length])))


def exported(console: Console, tmp_path: Path) -> Path:
    """The log in Redis as a file."""
    file = tmp_path / "log.jsonl"
    file.write_text(console.call("export").out)
    return file
