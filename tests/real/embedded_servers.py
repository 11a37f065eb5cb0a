"""What tests of the embedded server need: clients that try once, and servers that only say which version they are."""

from __future__ import annotations

import contextlib
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from gpuboss_scheduler.embedded import EmbeddedServer


def connected(url: str) -> contextlib.closing[redis.Redis]:
    retry = Retry(NoBackoff(), 0)
    return contextlib.closing(redis.Redis.from_url(url, protocol=2, socket_timeout=5, retry=retry))


def client_of(server: EmbeddedServer) -> contextlib.closing[redis.Redis]:
    return connected(server.url)


def fake_server(folder: Path, version_line: str, name: str = "redis-server", then: str = "exit 3") -> Path:
    """A script that says `version_line` when asked for its version, and does `then` when it should serve."""
    folder.mkdir(exist_ok=True)
    script = folder / name
    script.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then echo "{version_line}"; exit 0; fi\n{then}\n')
    script.chmod(0o755)
    return script


def answers(server: EmbeddedServer) -> bool:
    with client_of(server) as client:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False
