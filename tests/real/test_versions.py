"""Two versions of the rules on one log: a newer one takes over what an older one decided, and never the other way."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.real.one_server import served_by
from tests.real.redis_view import RedisView, Service
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer

server_process = served_by(0)
CARDS = "cuda:0=24576,cuda:1=24576,cuda:2=24576"


def newer(url: str, **options: Any) -> SchedulerProcess:
    """A scheduler of core 2, not started."""
    process = SchedulerProcess(url, devices=CARDS, **options)
    process.command[1:3] = ["-m", "tests.real.newer_scheduler"]
    return process


def replay(module: str, url: str, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit code of `replay --json` of one version, and what it printed."""
    command = [sys.executable, "-m", module, "replay", "--json", "--redis-url", url, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, json.loads(done.stdout or json.dumps({"error": done.stderr}))


def ready(address: str) -> tuple[int, str]:
    """What `/readyz` answers; (0, "") while nobody answers."""
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError:
        return 0, ""
    finally:
        connection.close()


def free_address() -> str:
    """An address of the loopback where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def both(server: RealServer) -> Iterator[RedisView]:
    """A view of a log that no single version of the rules derives."""
    with server.client() as client:
        yield RedisView(client)


def reign_of_core_1(server: RealServer, view: RedisView) -> list[str]:
    """What it leaves: a lease that fills the first card, one on the second, and a request that waits for the first."""
    service = Service(view, "worker")
    with SchedulerProcess(server.url, devices=CARDS) as old:
        old.wait_leading()
        first, second = service.lease(24_576, device="cuda:0"), service.lease(1_000)
        waiting = service.queue(24_576, device="cuda:0")
        old.kill()  # without a snapshot: the log alone says what was decided
    return [first, second, waiting]


def test_a_newer_core_takes_over_what_an_older_one_decided(server: RealServer, both: RedisView) -> None:
    view, service = both, Service(both, "worker")
    first, second, waiting = reign_of_core_1(server, view)
    asked = service.request(2_000)
    with newer(server.url) as new:
        new.wait_for("core 1 decided this log so far; from here on core 2 does")
        assert service.answer(asked).data["device"] == "cuda:2", "decided by the new rules"
        assert view.rows("leases")[second]["device"] == "cuda:1", "by the old ones"
        service.release(first)
        assert service.answer(waiting).data["device"] == "cuda:0"
        assert view.rows("leases").keys() == {second, waiting, asked}
        new.kill()
    elected = view.of_type("SchedulerElected")[1].data
    assert elected["core"] == 2
    taken = view.of_type("SnapshotTaken")[0]
    [granted] = [entry for entry in view.of_type("LeaseGranted") if entry.data["lease_id"] == asked]
    assert order(elected["cursor"]) <= order(taken.data["through"]) < order(asked_at(view, asked))
    assert order(taken.id) < order(granted.id), "the state is kept before the new rules decide"
    code, document = replay("tests.real.newer_replay", server.url)
    assert (code, document["divergences"], document["taken_over"]) == (0, [], 2)
    assert document["leases"].keys() == {second, waiting, asked}
    for deleted in ((), ("snapshot",), ("snapshot", "scheduler")):
        for name in deleted:
            view.client.delete(view.key(name))
        with newer(server.url) as again:  # it derives again what its own core decided, and that alone
            again.wait_leading()
            assert "core 1" not in again.stderr
            assert view.rows("leases").keys() == {second, waiting, asked}
            again.kill()


def asked_at(view: RedisView, lease_id: str) -> str:
    return next(entry.id for entry in view.of_type("LeaseRequested") if entry.data["lease_id"] == lease_id)


def test_a_clean_end_hands_over_with_a_snapshot_of_the_older_core(server: RealServer, both: RedisView) -> None:
    service = Service(both, "worker")
    with SchedulerProcess(server.url, devices=CARDS) as old:
        old.wait_leading()
        held, waiting = service.lease(24_576, device="cuda:0"), service.queue(24_576, device="cuda:0")
        with newer(server.url) as new:
            new.wait_for("standing by")
            old.terminate()
            new.wait_leading()
            service.release(held)
            assert service.answer(waiting).type == "LeaseGranted"
            new.terminate()
    code, document = replay("tests.real.newer_replay", server.url)
    assert (code, document["divergences"]) == (0, [])


def test_an_older_core_never_leads_a_log_of_a_newer_one(server: RealServer, both: RedisView) -> None:
    view, address = both, free_address()
    reign_of_core_1(server, view)
    with newer(server.url) as new:
        new.wait_leading()
        with SchedulerProcess(server.url, devices=CARDS, http=address) as old:
            line = old.wait_for("cannot lead: core 2 decides this log")
            assert "through core 1" in line
            assert "use one as new" in line
            eventually(lambda: ready(address)[0] == 503, "it to say that it could not take over")
            assert "core 2 decides this log" in ready(address)[1]
            new.kill()
            # Whatever of it is left says so: the hash, the snapshot, the log.
            view.client.delete(view.key("scheduler"))
            with SchedulerProcess(server.url, devices=CARDS) as other:
                other.wait_for("cannot lead: core 2 decides this log")
                view.client.delete(view.key("snapshot"))
            with SchedulerProcess(server.url, devices=CARDS) as other:
                other.wait_for("cannot lead: core 2 decides this log")
            new.start()
            assert new.wait_leading() == 3
            assert "leading" not in old.stderr
            assert old.stderr.count("cannot lead") == 1
            new.terminate()
            eventually(lambda: view.scheduler()["leader"] == "", "nobody to lead")
            view.client.delete(view.key("scheduler"))
            view.client.xtrim(view.key("events"), maxlen=1, approximate=False)
            with SchedulerProcess(server.url, devices=CARDS) as other:  # only the snapshot says it now
                other.wait_for("cannot lead: core 2 decides this log")
            view.client.flushall()  # a log of nobody: it is free to begin one
            old.wait_leading()
    assert replay("gpuboss", server.url)[0] == 0


def test_a_replay_by_an_older_version_says_that_it_cannot(server: RealServer, both: RedisView) -> None:
    reign_of_core_1(server, both)
    with newer(server.url) as new:
        new.wait_leading()
        new.terminate()
    code, document = replay("gpuboss", server.url)
    assert code == 1
    assert "core 2 decides this log" in document["error"]
    cursor = both.of_type("SchedulerElected")[1].data["cursor"]
    assert replay("gpuboss", server.url, "--until", cursor)[0] == 0, "what its own core decided it can verify"


def order(entry_id: str) -> tuple[int, ...]:
    return tuple(map(int, entry_id.split("-")))
