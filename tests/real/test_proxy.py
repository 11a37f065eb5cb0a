"""The proxy between clients and servers breaks connections as it says: a test that relies on it tests something."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.real.one_server import served_by
from tests.real.proxy import Proxy
from tests.real.servers import RealServer

server_process = served_by(0)


@pytest.fixture
def proxy(server: RealServer) -> Iterator[Proxy]:
    with Proxy(server.socket_path) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[redis.Redis]:
    """Connected, with little patience."""
    retry = Retry(NoBackoff(), 0)
    with redis.Redis(port=proxy.port, protocol=2, driver_info=None, retry=retry, socket_timeout=0.3) as client:
        client.set("text", "b" * 200_000)
        yield client


def test_it_passes_everything_on(client: redis.Redis) -> None:
    assert client.get("text") == b"b" * 200_000


def test_a_command_that_is_cut_off_is_not_taken(client: redis.Redis, proxy: Proxy, server: RealServer) -> None:
    proxy.cut_all("request", 20)
    with pytest.raises(redis.ConnectionError):
        client.set("text", "another")
    assert client.strlen("text") == 200_000


def test_an_answer_that_is_cut_off_was_taken(client: redis.Redis, proxy: Proxy) -> None:
    proxy.cut_all("reply", 3)
    with pytest.raises(redis.ConnectionError):
        client.set("text", "another")
    assert client.get("text") == b"another"


def test_silence_is_noticed_by_time_alone(client: redis.Redis, proxy: Proxy) -> None:
    proxy.silence()
    for _ in range(2):
        with pytest.raises(redis.TimeoutError):
            client.set("text", "another")
    proxy.heal()
    assert client.strlen("text") == 200_000


def test_what_is_held_back_comes_later(client: redis.Redis, proxy: Proxy, server: RealServer) -> None:
    proxy.hold()
    with pytest.raises(redis.TimeoutError):
        client.set("text", "another")
    with server.client() as direct:
        assert direct.strlen("text") == 200_000
        proxy.let_go()
        assert client.ping()


def test_new_connections_go_to_the_new_target(client: redis.Redis, proxy: Proxy, tmp_path) -> None:
    with RealServer(tmp_path) as other:
        proxy.target = other.socket_path
        proxy.cut_all()
        with suppress(redis.ConnectionError):  # unless it has seen by now that it was cut
            client.ping()
        assert client.get("text") is None
