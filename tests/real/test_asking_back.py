"""Leases are asked back on a real server: who is asked is told, and the deadline comes from the leader's clock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.one_server import served_by
from tests.real.redis_view import RedisView, Service
from tests.real.schedulers import SchedulerProcess
from tests.real.servers import RealServer

server_process = served_by(-1)
GRACE_MS = 400


@pytest.fixture
def scheduler(server: RealServer, tmp_path: Path) -> Iterator[SchedulerProcess]:
    config = tmp_path / "config.yaml"
    config.write_text(f"scheduler: {{policy: {{grace_ms: {GRACE_MS}}}}}\n")
    with SchedulerProcess(server.url, config=str(config)) as process:
        process.wait_leading()
        yield process


def idle(view: RedisView, service: Service, vram_mib: int) -> str:
    """An idle lease."""
    lease_id = service.lease(vram_mib, reclaimable=True, device="cuda:0")
    view.append("LeaseIdled", lease_id=lease_id, service="warm", reload_ms=900)
    assert service.told(lease_id, "LeaseStateChanged").data["state"] == "idle"
    return lease_id


def test_who_is_idle_is_asked_and_who_waits_gets_the_room(view: RedisView, scheduler: SchedulerProcess) -> None:
    warm, asking = Service(view, "warm"), Service(view, "asking")
    kept = idle(view, warm, 20_000)
    wanted = asking.request(8_192, device="cuda:0")
    asked = warm.told(kept, "YieldRequested").data
    assert asked["for"] == wanted
    assert asked["deadline_ms"] == asked["now_ms"] + GRACE_MS
    warm.release(kept)
    ended = warm.told(kept, "LeaseEnded").data
    assert (ended["reason"], ended["freed"]) == ("yielded", True)
    assert asking.answer(wanted).type == "LeaseGranted"


def test_who_does_not_answer_loses_it_at_the_deadline(view: RedisView, scheduler: SchedulerProcess) -> None:
    warm, asking = Service(view, "warm"), Service(view, "asking")
    kept = idle(view, warm, 20_000)
    wanted = asking.request(8_192, device="cuda:0")
    asked = warm.told(kept, "YieldRequested").data
    view.append("LeaseResumed", lease_id=kept, service="warm")
    assert warm.told(kept, "EventRejected").data["reason"] == "yielding"
    ended = warm.told(kept, "LeaseEnded").data
    assert ended["reason"] == "revoked"
    assert ended["now_ms"] >= asked["deadline_ms"]
    assert asking.answer(wanted).type == "LeaseGranted"


def test_a_plan_survives_the_scheduler(view: RedisView, scheduler: SchedulerProcess) -> None:
    warm, asking = Service(view, "warm"), Service(view, "asking")
    kept = idle(view, warm, 20_000)
    wanted = asking.request(8_192, device="cuda:0")
    warm.told(kept, "YieldRequested")
    scheduler.kill()
    other = asking.request(4_577, device="cuda:0", priority="high")
    warm.release(kept)
    scheduler.start().wait_leading()
    assert asking.answer(wanted).type == "LeaseGranted"
    assert asking.answer(other).type == "LeaseGranted"
    [once] = view.of_type("YieldRequested")
    assert once.data["for"] == wanted
