"""The servers that other tests run on."""

import contextlib
import subprocess

import pytest
import redis

from tests.real.servers import RealServer, available_servers, redis_cli

pytestmark = pytest.mark.real


@pytest.mark.parametrize("kind", available_servers())
def test_real_servers_for_tests_do_as_they_are_told(tmp_path, kind) -> None:
    with RealServer(tmp_path, kind, flags={"maxmemory-policy": "allkeys-lru"}, tcp=True) as server:
        with contextlib.closing(server.client()) as client:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}
            client.set("kept", "yes")
        server.kill()
        server.start()
        with contextlib.closing(redis.Redis.from_url(server.tcp_url, protocol=2)) as client:
            assert client.get("kept") == b"yes"
        server.pause()
        with contextlib.closing(server.client(socket_timeout=0.1)) as client:
            with pytest.raises(redis.TimeoutError):
                client.ping()
            server.resume()
            assert client.ping()
        pid = server.pid
        server.restart()
        assert server.pid != pid
        with contextlib.closing(redis.Redis.from_url(server.url, protocol=2)) as client:
            assert client.get("kept") == b"yes"
    assert not server.socket_path.exists()


def test_a_real_server_for_tests_takes_a_long_path(tmp_path) -> None:
    with RealServer(tmp_path / ("z" * 120)) as server, contextlib.closing(server.client()) as client:
        assert client.ping()


@pytest.mark.skipif(redis_cli() is None, reason="no redis-cli on PATH")
def test_redis_cli_reaches_a_real_server(tmp_path) -> None:
    with RealServer(tmp_path) as server:
        asked = [str(redis_cli()), "-s", str(server.socket_path), "ping"]
        assert subprocess.run(asked, capture_output=True, timeout=5, check=True).stdout == b"PONG\n"
