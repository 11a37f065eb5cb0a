"""An input that was changed in the server's file is served as data: a replay says between which snapshots it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpuboss.connection import connect
from gpuboss.core.state import State
from gpuboss.keys import Keys
from gpuboss.log import LogReader
from gpuboss_scheduler.recovery import recover
from gpuboss_scheduler.reign import Reign
from gpuboss_scheduler.scripts import Deposed
from gpuboss_scheduler.snapshots import Snapshots
from tests.core.scenario import Scenario
from tests.real.log_check import faults_of
from tests.real.redis_view import RedisView, Service
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer


@pytest.fixture
def often(tmp_path: Path) -> str:
    """A config.yaml with which a snapshot is kept every five entries."""
    path = tmp_path / "config.yaml"
    path.write_text("scheduler: {snapshot_every: 5}\n")
    return str(path)


def replay(url: str, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit code of `gpuboss replay --json`, and what it printed."""
    command = [sys.executable, "-m", "gpuboss", "replay", "--json", "--redis-url", url, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, json.loads(done.stdout)


def connected(url: str) -> RedisView:
    return RedisView(connect(url))


def through_in(view: RedisView) -> list[str]:
    """The entries at which the snapshots stand that the log tells of."""
    return [entry.data["through"] for entry in view.of_type("SnapshotTaken")]


def order(entry_id: str) -> tuple[int, ...]:
    return tuple(map(int, entry_id.split("-")))


def work(view: RedisView, models: list[str]) -> None:
    """Leases that are held and given back, each with the name of a model."""
    service = Service(view, "worker")
    for model in models:
        asked = service.request(1_000, model=model)
        assert service.answer(asked).type == "LeaseGranted"
        service.release(asked)
        service.told(asked, "LeaseEnded")


def test_a_byte_of_an_input_that_changed_in_the_file_is_found(tmp_path: Path, often: str) -> None:
    options: dict[str, Any] = {"embedded": True, "data_dir": str(tmp_path / "data"), "config": often}
    with SchedulerProcess(None, **options) as scheduler:
        scheduler.wait_leading()
        view = connected(scheduler.printed[0])
        work(view, [f"model-{number}" for number in range(10)])
        assert replay(scheduler.printed[0])[0] == 0
        [changed] = [entry for entry in view.of_type("LeaseRequested") if entry.data["model"] == "model-5"]
        marks = ["0-0", *through_in(view)]
        scheduler.terminate()
    [file] = (tmp_path / "data" / "appendonlydir").glob("*.incr.aof")
    stored = file.read_bytes()
    assert b"model-5" in stored
    file.write_bytes(stored.replace(b"model-5", b"model-6", 1))
    with SchedulerProcess(None, **options) as scheduler:
        scheduler.wait_leading()  # from its snapshot, which the change is not in
        code, document = replay(scheduler.printed[0])
        scheduler.terminate()
    assert code == 1
    [found] = document["divergences"]
    since, through = found["between"]
    assert order(since) < order(changed.id) <= order(through)
    assert marks.index(through) == marks.index(since) + 1, "two snapshots in a row"


def test_nothing_is_written_when_nothing_happens(server: RealServer, view: RedisView, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("scheduler: {snapshot_every: 1}\n")
    with SchedulerProcess(server.url, config=str(config)) as scheduler:
        scheduler.wait_leading()
        eventually(lambda: through_in(view), "a snapshot")
        beats = {view.scheduler()["alive_until_ms"]}

        def has_beaten_often() -> bool:
            beats.add(view.scheduler()["alive_until_ms"])
            return len(beats) > 4

        eventually(has_beaten_often, "some beats")
        assert len(through_in(view)) == 1
        assert scheduler.terminate() == 0
    assert len(through_in(view)) == 1, "nor is there anything new to keep at the end"


@pytest.mark.parametrize(("seq", "last_id"), [(4, "1-0"), (5, "2-0")])
def test_no_snapshot_is_kept_by_who_does_not_know_the_log(server: RealServer, seq: int, last_id: str) -> None:
    client, keys = connect(server.url), Keys("stranger")
    client.delete(keys.scheduler, keys.events, keys.snapshot)
    client.hset(keys.scheduler, mapping={"epoch": 1, "seq": 5})
    client.xadd(keys.events, {"type": "ClockTicked"}, id="1-0")
    state = State()
    state.last_id = last_id
    with pytest.raises(Deposed):
        Snapshots(Reign(client, keys, 1, seq, last_id), state, 1).write()
    assert (client.xlen(keys.events), client.exists(keys.snapshot)) == (1, 0)
    client.close()


def test_the_log_says_of_each_snapshot_what_it_is(server: RealServer, view: RedisView, often: str) -> None:
    with SchedulerProcess(server.url, config=often) as scheduler:
        scheduler.wait_leading()
        work(view, ["sdxl"] * 8)
        scheduler.terminate()
    kept: Any = view.client.hgetall(view.key("snapshot"))
    taken = view.of_type("SnapshotTaken")
    assert len(taken) > 3
    assert (taken[-1].data["through"], taken[-1].data["state"]) == (kept[b"id"].decode(), kept[b"digest"].decode())
    assert json.loads(kept[b"state"])["inputs"] == taken[-1].data["inputs"]
    assert faults_of(view) == []


def test_what_a_snapshot_stands_for_is_decided_also_where_it_led_to_nothing(server: RealServer) -> None:
    """Where entries are gone, what is undecided moves behind the election: the snapshot's word would not hold."""
    given = Scenario(24_576)
    given.request("a", 1)
    given.release("a")
    given.release("a")
    through = given.take_snapshot()
    client, keys = connect(server.url), Keys("stranger")
    client.delete(keys.events, keys.snapshot)
    for entry_id, fields in given.entries:
        client.execute_command("XADD", keys.events, entry_id, *fields)
    recovered = recover(LogReader(client, keys), "", is_lost=True)
    client.close()
    assert given.entries[-2].fields[1] == b"LeaseReleased"
    assert recovered.cursor == through
    assert all(entry.fields == [] for entry in recovered.undecided), "nothing moves; what a scheduler found goes"
