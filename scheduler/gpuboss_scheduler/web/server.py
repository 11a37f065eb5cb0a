"""Serving HTTP from a thread of its own, so that the scheduler's loop never waits for it."""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading

import uvicorn
from starlette.applications import Starlette

from gpuboss.errors import ConfigError
from gpuboss_scheduler.talk import say

STOP_DEADLINE_S = 3.0
RETRY_S = 0.5


class WebServer:
    """One HTTP server on one address. Where another scheduler of this machine has the address it waits for it: who
    stands by now answers once the other is gone."""

    def __init__(self, application: Starlette, host: str, port: int) -> None:
        """Raises `ConfigError` if the address is none of ours, or open to others."""
        if not _is_loopback(host):
            raise ConfigError(
                f"HTTP on {host} could be read by everybody who reaches this machine; listen on loopback, for example "
                f"--http 127.0.0.1:{port}, and put a proxy that asks for a token in front of it"
            )
        self._address = (host, port)
        self._socket = self._bind()
        config = uvicorn.Config(
            application, log_level="warning", access_log=False, lifespan="off", limit_concurrency=64
        )
        self._server = uvicorn.Server(config)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        if self._socket is None:
            say(f"HTTP: {self._address[0]}:{self._address[1]} is taken; waiting for it, choose another with --http")
        self._thread.start()

    def stop(self) -> None:
        """Stop answering, within a few seconds."""
        self._stopping.set()
        self._server.should_exit = True
        self._thread.join(STOP_DEADLINE_S)

    def _serve(self) -> None:
        while self._socket is None and not self._stopping.wait(RETRY_S):
            self._socket = self._bind()
        if self._socket is not None:
            self._server.run([self._socket])
            self._socket.close()

    def _bind(self) -> socket.socket | None:
        """A socket at our address; None if somebody else has it."""
        host, port = self._address
        bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(self._address)
            bound.listen()  # who connects before we serve waits, and is not refused
        except OSError as error:
            bound.close()
            if error.errno == errno.EADDRINUSE:
                return None
            raise ConfigError(
                f"HTTP cannot listen on {host}:{port} ({error.strerror}); choose another with --http HOST:PORT, "
                "or --http off"
            ) from None
        return bound


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
