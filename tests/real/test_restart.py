"""Starting again: from the log, from a snapshot and its tail, and after all else in Redis was lost or changed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuboss.connection import connect
from gpuboss.core import snapshot
from gpuboss.core.machine import CORE_VERSION, step
from gpuboss.core.state import State
from gpuboss.core.stream_ids import parse_id
from gpuboss.keys import Keys
from gpuboss.log import LogReader
from gpuboss_scheduler.recovery import recover
from tests.real.log_check import faults_of, replayed_digest
from tests.real.one_server import served_by
from tests.real.redis_view import RedisView, Service
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer
from tests.real.traffic import Traffic

server_process = served_by(-1)


@pytest.fixture
def unchecked(server: RealServer) -> Iterator[RedisView]:
    """A view for tests that damage the log, which is then not true any more."""
    with server.client() as client:
        yield RedisView(client)


@pytest.fixture
def often(tmp_path: Path) -> str:
    """A config.yaml with which a snapshot is kept every ten entries."""
    path = tmp_path / "config.yaml"
    path.write_text("scheduler: {snapshot_every: 10}\n")
    return str(path)


def snapshot_id(view: RedisView) -> str:
    found: Any = view.client.hget(view.key("snapshot"), "id")
    return "" if found is None else str(found.decode())


def rewrite(view: RedisView, changed: dict[str, dict[str, object]]) -> None:
    """Write the log anew, with other data in the entries that `changed` names."""
    raw = view.raw()
    view.client.delete(view.key("events"))
    for entry_id, fields in raw:
        if entry_id in changed:
            fields[3] = json.dumps(changed[entry_id]).encode()
        view.client.execute_command("XADD", view.key("events"), entry_id, *fields)


def refused(server: RealServer) -> str:
    """Start a scheduler that must not lead; returns what it said."""
    with SchedulerProcess(server.url) as scheduler:
        assert scheduler.wait() == 1
        assert "leading" not in scheduler.stderr
        return scheduler.lines[-1]


def test_clean_restarts_in_a_row_keep_everything(server: RealServer, view: RedisView) -> None:
    service = Service(view, "worker")
    for epoch in range(1, 4):
        with SchedulerProcess(server.url) as scheduler:
            assert scheduler.wait_leading() == epoch
            if epoch == 1:
                held = service.lease(20_000, device="cuda:0")
                waiting = service.queue(20_000, device="cuda:0")
            assert view.rows("leases").keys() == {held}
            assert view.rows("queue").keys() == {waiting}
            assert scheduler.terminate() == 0
    with SchedulerProcess(server.url) as scheduler:
        scheduler.wait_leading()
        service.release(held)
        assert service.answer(waiting).data["fence"] == 2


def test_a_start_takes_the_snapshot_and_what_came_after_it(
    server: RealServer, unchecked: RedisView, often: str
) -> None:
    view = unchecked
    service = Service(view, "worker")
    with SchedulerProcess(server.url, config=often) as scheduler:
        scheduler.wait_leading()
        for _ in range(10):
            service.release(service.lease(1000))
        held = service.lease(20_000, device="cuda:0")
        eventually(lambda: snapshot_id(view), "a snapshot")
        scheduler.kill()
    waiting = service.request(20_000, device="cuda:0")
    service.release(held)
    kept = snapshot_id(view)
    stored: Any = view.client.hgetall(view.key("snapshot"))
    assert stored[b"digest"].decode() == replayed_digest(view, kept)
    # With what is before the snapshot gone, only the snapshot can tell of it.
    view.client.execute_command("XTRIM", view.key("events"), "MINID", "=", kept)
    with SchedulerProcess(server.url, config=often) as scheduler:
        assert scheduler.wait_leading() == 2
        assert service.answer(waiting).type == "LeaseGranted"
        service.request(1000, lease_id=held)  # known still: with other fields
        assert service.told(held, "EventRejected").data["reason"] == "duplicate"


def test_decisions_may_stand_behind_the_snapshot_that_knows_them(server: RealServer, view: RedisView) -> None:
    """What arrives while a batch is decided stands before that batch's decisions; a snapshot can fall in between."""
    with SchedulerProcess(server.url) as scheduler:
        scheduler.wait_leading()
        held = Service(view, "worker").lease(1000)
        scheduler.kill()
    [requested] = view.of_type("LeaseRequested")
    state = State()
    for entry_id, fields in view.raw():
        step(state, entry_id, fields)
        if entry_id == requested.id:
            break
    dumped = snapshot.dump(state)
    mapping: dict[Any, Any] = {
        "id": requested.id,
        "core": CORE_VERSION,
        "digest": snapshot.digest(dumped),
        "state": dumped,
    }
    view.client.hset(view.key("snapshot"), mapping=mapping)
    with SchedulerProcess(server.url) as scheduler:
        assert scheduler.wait_leading() == 2
        assert view.rows("leases").keys() == {held}


def test_what_is_decided_while_a_standby_reads_is_no_damage(server: RealServer, view: RedisView) -> None:
    """A standby that takes a slow leader for dead reads a log that grows behind the cursor that it was told."""
    service = Service(view, "worker")
    with SchedulerProcess(server.url) as scheduler:
        scheduler.wait_leading()
        service.lease(1000)
        cursor = view.scheduler()["cursor"]
        for _ in range(3):
            service.release(service.lease(1000))
        with contextlib.closing(connect(server.url)) as client:
            recovered = recover(LogReader(client, Keys()), cursor)
        assert recovered.cursor == cursor
        assert len(recovered.state.ledger.leases) == 1
        assert recovered.seq > recovered.state.seq


def test_devices_may_change_between_two_starts(server: RealServer, view: RedisView) -> None:
    service = Service(view, "worker")
    with SchedulerProcess(server.url, devices="cuda:0=24576,cuda:1=24576") as scheduler:
        scheduler.wait_leading()
        kept, lost = [service.lease(20_000, device=device) for device in ("cuda:0", "cuda:1")]
        assert scheduler.terminate() == 0
    with SchedulerProcess(server.url, devices="cuda:0=16000,cuda:2=24576") as scheduler:
        scheduler.wait_leading()
        ended = service.told(lost, "LeaseEnded").data
        assert ended["reason"] == "device_lost"
        assert view.rows("leases").keys() == {kept}  # what a device shrinks by takes nothing away from who holds it
        free = {key: row["free_mib"] for key, row in view.rows("devices").items()}
        assert free == {"node-a/cuda:0": -4_000, "node-a/cuda:2": 24_576}
        assert service.answer(service.request(1000)).data["device"] == "cuda:2"


def test_without_its_snapshot_the_log_is_enough(server: RealServer, view: RedisView, often: str) -> None:
    service = Service(view, "worker")
    with SchedulerProcess(server.url, config=often) as scheduler:
        scheduler.wait_leading()
        held = [service.lease(1000) for _ in range(12)]
        assert scheduler.terminate() == 0
    before = view.rows("leases")
    view.client.delete(view.key("snapshot"))
    with SchedulerProcess(server.url, config=often) as scheduler:
        scheduler.wait_leading()
        assert view.rows("leases") == before
        assert before.keys() == set(held)


def test_a_snapshot_of_an_older_core_that_cannot_be_read_is_passed_over(server: RealServer, view: RedisView) -> None:
    service = Service(view, "worker")
    with SchedulerProcess(server.url) as scheduler:
        scheduler.wait_leading()
        held = service.lease(1000)
        assert scheduler.terminate() == 0
    changed: dict[Any, Any] = {"core": "0", "state": "of a kind that nobody knows yet", "digest": "0"}
    view.client.hset(view.key("snapshot"), mapping=changed)
    with SchedulerProcess(server.url) as scheduler:
        scheduler.wait_leading()
        assert view.rows("leases").keys() == {held}


def test_a_snapshot_that_was_changed_is_passed_over_while_the_log_is_whole(server: RealServer, view: RedisView) -> None:
    service = Service(view, "worker")
    with SchedulerProcess(server.url) as scheduler:
        scheduler.wait_leading()
        held = service.lease(1000)
        assert scheduler.terminate() == 0
    state: Any = view.client.hget(view.key("snapshot"), "state")
    view.client.hset(view.key("snapshot"), "state", state.replace(b'"fence":1', b'"fence":7'))
    with SchedulerProcess(server.url) as scheduler:
        scheduler.wait_for("the log is whole: it is read from its beginning")
        scheduler.wait_leading()
        assert set(view.rows("leases")) == {held}


def test_the_schedulers_hash_is_rebuilt_from_the_log(server: RealServer, view: RedisView) -> None:
    service = Service(view, "worker")
    with SchedulerProcess(server.url) as scheduler:
        scheduler.wait_leading()
        held = service.lease(20_000, device="cuda:0")
        # What looks like a decision, and is none, must not be taken for the last one.
        for data in ("no JSON", "7", '{"cause":7,"epoch":1,"seq":1}', '{"cause":"z","epoch":1,"seq":99}'):
            view.append_fields(["type", "LeaseGranted", "data", data])
        view.append("LeaseGranted", cause="99999999999999-0", epoch=1, seq=2)
        eventually(lambda: len(view.of_type("EventRejected")) == 5, "the forged ones to be rejected")
        scheduler.kill()
    incarnation = view.scheduler()["incarnation"]
    view.client.delete(view.key("scheduler"))
    waiting = service.request(20_000, device="cuda:0")
    service.release(held)
    with SchedulerProcess(server.url) as scheduler:
        assert scheduler.wait_leading() == 2
        assert service.answer(waiting).type == "LeaseGranted"
        assert view.scheduler()["incarnation"] == incarnation
        scheduler.terminate()
    view.client.delete(view.key("scheduler"))  # now with a snapshot that stands behind the last cause
    with SchedulerProcess(server.url) as scheduler:
        assert scheduler.wait_leading() == 3
        assert view.rows("leases").keys() == {waiting}


def test_what_the_first_leader_found_waiting_is_decided_once(server: RealServer, view: RedisView) -> None:
    view.append("LeaseReleased", lease_id="of-nobody", service="worker")
    with SchedulerProcess(server.url) as scheduler:
        scheduler.wait_leading()
        scheduler.kill()
    view.client.delete(view.key("scheduler"))
    with SchedulerProcess(server.url) as scheduler:
        assert scheduler.wait_leading() == 2
    assert len(view.of_type("EventRejected")) == 1


def test_the_schedulers_hash_may_go_while_it_leads(server: RealServer, view: RedisView) -> None:
    service = Service(view, "worker")
    with SchedulerProcess(server.url) as scheduler:
        scheduler.wait_leading()
        held = service.lease(1000)
        view.client.delete(view.key("scheduler"))
        scheduler.wait_for("leading epoch=2")
        service.release(held)
        service.told(held, "LeaseEnded")


def test_a_changed_decision_is_refused(server: RealServer, unchecked: RedisView) -> None:
    view = unchecked
    with SchedulerProcess(server.url) as scheduler:
        scheduler.wait_leading()
        Service(view, "worker").lease(1000, device="cuda:0")
        scheduler.kill()
    [granted] = view.of_type("LeaseGranted")
    rewrite(view, {granted.id: granted.data | {"device": "cuda:1", "devices": ["cuda:1"]}})
    line = refused(server)
    assert granted.id in line
    assert "gpuboss replay" in line


def test_a_decision_that_was_taken_out_is_missed(server: RealServer, unchecked: RedisView) -> None:
    view = unchecked
    service = Service(view, "worker")
    with SchedulerProcess(server.url) as scheduler:
        scheduler.wait_leading()
        for _ in range(2):
            service.release(service.lease(1000))
        eventually(lambda: len(view.of_type("LeaseEnded")) == 2, "both to end")
        granted = view.of_type("LeaseGranted")[0]
        # Until a beat says that the log was read beyond it, it counts as lost.
        eventually(lambda: parse_id(view.scheduler()["read_through"]) > parse_id(granted.id), "a beat")
        scheduler.kill()
    view.client.xdel(view.key("events"), granted.id)
    assert "differs" in refused(server)


def test_the_server_dies_and_comes_back_under_load(own_server: RealServer) -> None:
    with own_server, SchedulerProcess(own_server.url) as scheduler:
        scheduler.wait_leading()
        with Traffic(own_server, seed=7) as traffic:
            for kills in range(1, 3):
                traffic.await_more(30)
                own_server.kill()
                own_server.start()
                scheduler.wait_for(f"leading epoch={kills + 1}")
        assert traffic.lost == []
        with own_server.client() as client:
            view = RedisView(client)
            assert faults_of(view) == []
            assert view.rows("leases") == {}
        assert scheduler.terminate() == 0
