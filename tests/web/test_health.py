"""What the scheduler answers over HTTP: whether there is VRAM to lend, whether it lives, whether it is of use."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.real.redis_view import RedisView, Service
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer, available_servers

ONE_CARD = "cuda:0=24576"
DEFAULT_PORT = 8003


class Answer(NamedTuple):
    """What came back: the status, the media type and the body, as it is."""

    status: int
    media_type: str
    body: str


@pytest.fixture
def server(tmp_path: Path) -> RealServer:
    """A server for one test alone, not running yet."""
    return RealServer(tmp_path / "server", available_servers()[0])


@pytest.fixture
def address() -> str:
    """An address of the loopback where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def get(address: str, path: str, method: str = "GET") -> Answer:
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        media_type = response.headers.get_content_type()
        return Answer(response.status, media_type, response.read().decode())
    finally:
        connection.close()


def is_open(host: str, port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex((host, port)) == 0


def health(address: str) -> tuple[int, object]:
    answer = get(address, "/health")
    assert answer.media_type == "application/json"
    return answer.status, json.loads(answer.body)


def test_health_is_exactly_as_promised(server: RealServer, address: str) -> None:
    scheduler = SchedulerProcess(server.url, devices=ONE_CARD, http=address)
    with server, server.client() as client, scheduler:
        scheduler.wait_leading()
        assert health(address) == (200, {"gpu_available": True, "vram_total": 24576, "vram_free": 24576})
        service = Service(RedisView(client), "imajin-diffusion")
        held = service.lease(8192)
        assert health(address) == (200, {"gpu_available": True, "vram_total": 24576, "vram_free": 16384})
        service.lease(16384)
        assert health(address) == (200, {"gpu_available": True, "vram_total": 24576, "vram_free": 0})
        service.release(held)
        service.told(held, "LeaseEnded")
        assert health(address)[1] == {"gpu_available": True, "vram_total": 24576, "vram_free": 8192}
        assert get(address, "/livez").status == 200
        assert get(address, "/readyz") == Answer(200, "text/plain", "leading")
        assert get(address, "/nowhere").status == 404
        assert get(address, "/health", "POST").status == 405


def test_only_the_devices_of_this_node_count(server: RealServer, address: str) -> None:
    with server, server.client() as client:
        with SchedulerProcess(server.url, node="node-b", devices="cuda:0=40000") as other:
            other.wait_leading()
            other.terminate()
        with SchedulerProcess(server.url, node="node-a", devices=ONE_CARD, http=address) as scheduler:
            scheduler.wait_leading()
            assert RedisView(client).rows("devices").keys() == {"node-a/cuda:0", "node-b/cuda:0"}
            assert health(address) == (200, {"gpu_available": True, "vram_total": 24576, "vram_free": 24576})


def test_a_standby_answers_as_the_leader_does(server: RealServer, address: str) -> None:
    with server, SchedulerProcess(server.url, devices=ONE_CARD) as leader:
        leader.wait_leading()
        with SchedulerProcess(server.url, devices=ONE_CARD, http=address) as standby:
            standby.wait_for("standing by")
            eventually(lambda: get(address, "/readyz") == Answer(200, "text/plain", "standing by"), "it to be ready")
            assert health(address) == (200, {"gpu_available": True, "vram_total": 24576, "vram_free": 24576})


def test_without_redis_it_lives_and_is_of_no_use(server: RealServer, address: str) -> None:
    with server, SchedulerProcess(server.url, devices=ONE_CARD, http=address) as scheduler:
        scheduler.wait_leading()
        server.kill()
        assert health(address) == (503, {"gpu_available": False, "vram_total": 0, "vram_free": 0})
        eventually(lambda: get(address, "/readyz").status == 503, "it to see that Redis is gone")
        assert "Redis" in get(address, "/readyz").body
        assert get(address, "/livez").status == 200
        server.start()
        eventually(lambda: get(address, "/readyz").status == 200, "it to lead again")
        assert health(address)[0] == 200


def test_a_server_that_hangs_hangs_no_answer(server: RealServer, address: str) -> None:
    with server, SchedulerProcess(server.url, devices=ONE_CARD, http=address) as scheduler:
        scheduler.wait_leading()
        server.pause()
        assert health(address) == (503, {"gpu_available": False, "vram_total": 0, "vram_free": 0})
        assert get(address, "/livez").status == 200
        server.resume()


def test_rows_that_cannot_be_read_are_no_vram(server: RealServer, address: str) -> None:
    scheduler = SchedulerProcess(server.url, devices=ONE_CARD, http=address)
    with server, server.client() as client, scheduler:
        scheduler.wait_leading()
        client.hset("gpuboss:devices", "node-a/cuda:0", "no JSON")
        assert health(address) == (503, {"gpu_available": False, "vram_total": 0, "vram_free": 0})


def test_a_port_that_is_taken_is_named_and_waited_for(server: RealServer, address: str) -> None:
    host, _, port = address.partition(":")
    with server, socket.socket() as other:
        other.bind((host, int(port)))
        other.listen()
        with SchedulerProcess(server.url, http=address) as scheduler:
            line = scheduler.wait_for("is taken")
            assert address in line
            assert "--http" in line
            scheduler.wait_leading()
            other.close()
            eventually(lambda: is_open(host, int(port)), "the port to be taken over")
            assert health(address)[0] == 200


def test_the_default_address(server: RealServer) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", DEFAULT_PORT))
        except OSError:
            pytest.skip(f"somebody else listens on port {DEFAULT_PORT} of this machine")
    with server, SchedulerProcess(server.url, devices=ONE_CARD, http=None) as scheduler:
        scheduler.wait_leading()
        assert health(f"127.0.0.1:{DEFAULT_PORT}")[0] == 200


def test_off_is_off(server: RealServer) -> None:
    with server, SchedulerProcess(server.url, http="off") as scheduler:
        scheduler.wait_leading()
        assert scheduler.process is not None
        listening = Path(f"/proc/{scheduler.process.pid}/net/tcp")
        if not listening.exists():
            pytest.skip("only Linux tells who listens")
        sockets = {path.readlink().name for path in Path(f"/proc/{scheduler.process.pid}/fd").iterdir()}
        inodes = {line.split()[9] for line in listening.read_text().splitlines()[1:] if line.split()[3] == "0A"}
        assert not {f"socket:[{inode}]" for inode in inodes} & sockets


def test_it_stops_answering_when_it_ends(server: RealServer, address: str) -> None:
    with server, SchedulerProcess(server.url, devices=ONE_CARD, http=address) as scheduler:
        scheduler.wait_leading()
        assert health(address)[0] == 200
        scheduler.signal(signal.SIGTERM)
        assert scheduler.wait(5.0) == 0
        with pytest.raises(ConnectionRefusedError):
            get(address, "/health")


def test_what_is_wrong_is_said_while_it_leads_all_the_same(server: RealServer, address: str, tmp_path: Path) -> None:
    archive = tmp_path / "file" / "archive"
    archive.parent.touch()
    scheduler = SchedulerProcess(server.url, http=address, retention_age="7d", archive=str(archive))
    with server, scheduler:
        scheduler.wait_leading()
        said = f"leading; nothing is taken out of the log: cannot write the archive {archive}: Not a directory"
        eventually(lambda: get(address, "/readyz") == Answer(200, "text/plain", said), "it to be said")
