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

from gpuboss.errors import ConfigError, GPUBossError
from gpuboss_scheduler import embedded
from gpuboss_scheduler.embedded import (
    DataFolderInUse,
    EmbeddedServer,
    ServerDidNotStart,
    start_embedded,
)
from tests.real.embedded_servers import answers, client_of, fake_server
from tests.real.servers import binary_of, wait_for

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("short_runtime_folder")]

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


@pytest.fixture
def servers() -> Iterator[contextlib.ExitStack]:
    """Whatever is entered here is over when the test is, even one that fails half way."""
    with contextlib.ExitStack() as stack:
        yield stack


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
    """`strict`: a `standard` server writes nothing while its disk is busy with a sync, and a kill takes that along."""
    with start_embedded(tmp_path, binary=binary, durability="strict") as server, client_of(server) as client:
        ids = [client.xadd("log", {"n": n}) for n in range(200)]
        os.kill(server.pid, signal.SIGKILL)
        with start_embedded(tmp_path, binary=binary) as again, client_of(again) as client_again:
            assert not again.joined
            assert again.pid != server.pid
            assert ids_in(client_again) == ids


def test_a_server_that_does_not_heed_sigterm_is_killed_and_loses_nothing(tmp_path, binary, monkeypatch) -> None:
    monkeypatch.setattr(embedded, "STOP_DEADLINE_S", 0.1)
    monkeypatch.setattr(embedded, "PROBE_DEADLINE_S", 0.1)
    server = start_embedded(tmp_path, binary=binary, durability="strict")
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


# --- a server that does not start ---


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
