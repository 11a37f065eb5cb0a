"""Serving HTTP from a thread of its own, so that the scheduler's loop never waits for it."""

from __future__ import annotations

import ipaddress
import socket
import threading

import uvicorn
from starlette.applications import Starlette

from gpuboss.errors import ConfigError

STOP_DEADLINE_S = 3.0


class WebServer:
    """One HTTP server on one address."""

    def __init__(self, application: Starlette, host: str, port: int) -> None:
        """Listens at once. Raises `ConfigError` if the address is taken, none of ours, or open to others."""
        if not _is_loopback(host):
            raise ConfigError(
                f"HTTP on {host} could be read by everybody who reaches this machine; listen on loopback, for example "
                f"--http 127.0.0.1:{port}, and put a proxy that asks for a token in front of it"
            )
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.socket(family, socket.SOCK_STREAM)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
            self._socket.listen()  # now, so that who asks early waits, and is not refused
        except OSError as error:
            self._socket.close()
            raise ConfigError(
                f"HTTP cannot listen on {host}:{port} ({error.strerror}); choose another with --http HOST:PORT, "
                "or --http off"
            ) from None
        config = uvicorn.Config(
            application, log_level="warning", access_log=False, lifespan="off", limit_concurrency=64
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="http", daemon=True)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering, within a few seconds."""
        self._server.should_exit = True
        self._thread.join(STOP_DEADLINE_S)
        self._socket.close()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
