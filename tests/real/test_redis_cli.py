"""A service made of nothing but `redis-cli`: whoever can reach Redis can take part."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from tests.real.redis_view import RedisView
from tests.real.schedulers import SchedulerProcess
from tests.real.servers import RealServer, redis_cli

pytestmark = pytest.mark.skipif(redis_cli() is None, reason="no redis-cli on PATH")

WITHIN_S = 15


class Shell:
    """`redis-cli` on one server; its answers as it prints them into a pipe, line by line."""

    def __init__(self, server: RealServer) -> None:
        self._command = [str(redis_cli()), "-s", str(server.socket_path)]
        self._waiting: subprocess.Popen[str] | None = None

    def run(self, *words: str) -> list[str]:
        """One command, and its answer."""
        done = subprocess.run([*self._command, *words], capture_output=True, text=True, timeout=WITHIN_S, check=True)
        return done.stdout.splitlines()

    def begin(self, *words: str) -> None:
        """A command that waits, in the background."""
        self._waiting = subprocess.Popen([*self._command, *words], stdout=subprocess.PIPE, text=True)

    def finish(self) -> list[str]:
        """The answer of the one that waits."""
        assert self._waiting is not None
        printed, _ = self._waiting.communicate(timeout=WITHIN_S)
        return printed.splitlines()

    def close(self) -> None:
        if self._waiting is not None:
            self._waiting.kill()
            self._waiting.communicate()


@pytest.fixture
def shell(server: RealServer, view: RedisView, scheduler: SchedulerProcess) -> Iterator[Shell]:
    shell = Shell(server)
    yield shell
    shell.close()


def told(lines: list[str]) -> list[tuple[str, str, dict[str, object]]]:
    """Id, type and data of the replies that an XREAD of one stream printed."""
    assert lines[0].startswith("gpuboss:replies:"), lines
    entries = [lines[at : at + 5] for at in range(1, len(lines), 5)]
    return [(entry_id, kind, json.loads(data)) for entry_id, _, kind, _, data in entries]


def test_request_wait_grant_release_and_cancel(shell: Shell) -> None:
    ask = ("XADD", "gpuboss:events", "*", "type")
    stream = "gpuboss:replies:imajin-diffusion"
    # Exactly as the documentation has it: wait first, then ask.
    shell.begin("XREAD", "BLOCK", "10000", "STREAMS", stream, "0")
    shell.run(
        *ask, "LeaseRequested", "data", '{"lease_id":"4f9c0e7a1b2d","service":"imajin-diffusion","vram_mib":24576}'
    )
    [(granted_at, kind, data)] = told(shell.finish())
    assert kind == "LeaseGranted"
    assert (data["lease_id"], data["device"], data["vram_mib"]) == ("4f9c0e7a1b2d", "cuda:0", 24576)
    [row] = [json.loads(each) for each in shell.run("HVALS", "gpuboss:leases")]
    assert row["state"] == "held"

    pinned = '"service":"imajin-diffusion","vram_mib":100,"device":"cuda:0"}'
    for lease_id in ("waits-for-it", "loses-patience"):
        shell.run(*ask, "LeaseRequested", "data", f'{{"lease_id":"{lease_id}",{pinned}')
    shell.run(*ask, "LeaseReleased", "data", '{"lease_id":"loses-patience","service":"imajin-diffusion"}')
    [(denied_at, kind, data)] = told(shell.run("XREAD", "BLOCK", "10000", "STREAMS", stream, granted_at))
    assert (kind, data["lease_id"], data["reason"]) == ("LeaseDenied", "loses-patience", "cancelled")

    shell.run(*ask, "LeaseReleased", "data", '{"lease_id":"4f9c0e7a1b2d","service":"imajin-diffusion"}')
    answers = told(shell.run("XREAD", "BLOCK", "10000", "STREAMS", stream, denied_at))
    assert [(kind, data["lease_id"]) for _, kind, data in answers] == [
        ("LeaseEnded", "4f9c0e7a1b2d"),
        ("LeaseGranted", "waits-for-it"),
    ]
    shown = [key for key in shell.run("KEYS", "gpuboss:*") if key != "gpuboss:snapshot"]
    assert sorted(shown) == sorted(
        [f"gpuboss:{name}" for name in ("devices", "events", "leases", "scheduler")] + [stream]
    )


def test_a_mistake_is_explained(shell: Shell) -> None:
    bad = '{"lease_id":"4f9c0e7a1b2d","service":"imajin-diffusion","vram_mib":"8 GB"}'
    [entry_id] = shell.run("XADD", "gpuboss:events", "*", "type", "LeaseRequested", "data", bad)
    lines = shell.run("XREAD", "BLOCK", "10000", "STREAMS", "gpuboss:replies:imajin-diffusion", "0")
    [(_, kind, data)] = told(lines)
    assert (kind, data["event_id"], data["reason"]) == ("EventRejected", entry_id, "invalid")
    assert "vram_mib" in str(data["detail"])
    assert "8 GB" in str(data["detail"])
