"""The blocking twin, on a real scheduler: threads, interrupts, and what a thread is told of a lost lease."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import gpuboss
from gpuboss import (
    ConfigError,
    GPUBossError,
    LeaseDenied,
    LeaseImpossible,
    LeaseLost,
    LeaseTimeout,
    SchedulerUnavailable,
)
from gpuboss.blocking import GPUBoss, Lease, Resident
from tests.client.platforms import Platform
from tests.real.servers import wait_for


@pytest.fixture
def boss(platform: Platform) -> Iterator[GPUBoss]:
    with GPUBoss(platform.url, "blocker") as boss:
        yield boss


def test_a_block_holds_a_lease(boss: GPUBoss, platform: Platform) -> None:
    with boss.lease(vram_gb=8, priority="high") as device:
        assert device == "cuda:0"
        assert platform.leases()[device.lease.lease_id]["vram_mib"] == 8192
    wait_for("the release", lambda: not platform.leases())


def test_an_exception_in_the_block_gives_it_back(boss: GPUBoss, platform: Platform) -> None:
    with pytest.raises(ZeroDivisionError), boss.lease(vram_gb=8):
        _ = 1 / 0
    wait_for("the release", lambda: not platform.leases())


def test_by_hand(boss: GPUBoss, platform: Platform) -> None:
    lease = boss.acquire(vram_gb=8, ttl=60)
    before_ms = lease.expires_at_ms
    assert before_ms is not None
    boss.renew(lease, ttl=600)
    assert lease.expires_at_ms is not None
    assert lease.expires_at_ms > before_ms + 500_000
    boss.release(lease)
    boss.release(lease)
    wait_for("the release", lambda: not platform.leases())
    assert len([event for event in platform.log("LeaseReleased") if event["lease_id"] == lease.lease_id]) == 1


def test_the_errors_are_the_same(boss: GPUBoss) -> None:
    with pytest.raises(LeaseImpossible, match="24576"):
        boss.acquire(vram_gb=80)
    with pytest.raises(ConfigError, match="exactly one of"):
        boss.acquire()
    with pytest.raises(ConfigError, match="is no lease"):
        boss.release("no")
    with boss.lease(vram_gb=24, device="cuda:0"), pytest.raises(LeaseTimeout):
        boss.acquire(vram_gb=1, device="cuda:0", wait_timeout=0.05)


def test_a_lost_lease_is_told_at_the_end_of_the_block(boss: GPUBoss, platform: Platform) -> None:
    with pytest.raises(LeaseLost) as error, boss.lease(vram_gb=8) as device:
        platform.revoke(device.lease.lease_id)
        wait_for("the loss", lambda: device.lease.is_lost)
    assert (error.value.lease_id, error.value.reason) == (device.lease.lease_id, "revoked")
    with pytest.raises(LeaseLost):
        boss.renew(device.lease, ttl=60)


def test_the_blocks_own_exception_is_not_hidden_by_the_loss(boss: GPUBoss, platform: Platform) -> None:
    with pytest.raises(ZeroDivisionError), boss.lease(vram_gb=8) as device:
        platform.revoke(device.lease.lease_id)
        wait_for("the loss", lambda: device.lease.is_lost)
        _ = 1 / 0


def test_a_lease_is_idled_resumed_and_waited_for(boss: GPUBoss, platform: Platform) -> None:
    lease = boss.acquire(vram_gb=8, reclaimable=True)
    lease.idle(reload_ms=500)
    assert (lease.is_idle, platform.leases()[lease.lease_id]["state"]) == (True, "idle")
    lease.resume()
    assert (lease.is_idle, platform.leases()[lease.lease_id]["state"]) == (False, "held")
    with pytest.raises(TimeoutError):
        lease.wait_asked_back(timeout=0.01)
    platform.revoke(lease.lease_id, grace_ms=300)
    assert lease.wait_asked_back(timeout=10) == lease.deadline
    with pytest.raises(LeaseDenied, match="yielding"):
        lease.idle()
    assert lease.wait_lost(timeout=10) == "revoked"


def test_a_thread_that_waits_for_what_does_not_come_is_told_when_the_client_is_closed(platform: Platform) -> None:
    with ThreadPoolExecutor(1) as thread:
        with GPUBoss(platform.url, "blocker") as boss:
            lease = boss.acquire(vram_gb=8)
            waiting = thread.submit(lease.wait_asked_back)
            wait_for("the wait", lambda: boss._calls)
        with pytest.raises(GPUBossError, match="closed"):
            waiting.result(5)


# ---------------------------------------------------------------- resident models


class Model:
    """What is on a card."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.is_loaded = True

    def unload(self) -> None:
        self.is_loaded = False


def test_a_resident_model_is_kept_and_loaded_again_after_it_was_asked_back(boss: GPUBoss, platform: Platform) -> None:
    with boss.resident(load=Model, unload=Model.unload, vram_gb=8) as resident:
        assert resident.lease is None
        with resident.use() as model:
            assert (model.device, model.is_loaded) == ("cuda:0", True)
            assert resident.lease is not None
            lease_id = resident.lease.lease_id
        wait_for("the lease to be idle", lambda: platform.leases()[lease_id]["state"] == "idle")
        with resident.use() as again:
            assert again is model
        platform.revoke(lease_id, grace_ms=60_000)
        wait_for("the release", lambda: not platform.leases())
        assert not model.is_loaded
        with resident.use() as other:
            assert (other is not model, other.is_loaded) == (True, True)
    assert not other.is_loaded
    wait_for("the release", lambda: not platform.leases())
    resident.close()


def test_threads_share_a_resident_model(boss: GPUBoss) -> None:
    resident = boss.resident(load=Model, unload=Model.unload, vram_gb=8)

    def use(number: int) -> Model:
        with resident.use() as model:
            assert model.is_loaded
            return model

    with ThreadPoolExecutor(10) as threads:
        assert len(set(threads.map(use, range(50)))) == 1


def test_a_model_is_not_unloaded_under_a_thread_that_uses_it(boss: GPUBoss, platform: Platform) -> None:
    resident = boss.resident(load=Model, unload=Model.unload, vram_gb=8)
    with pytest.raises(LeaseLost, match="revoked"), resident.use() as model:
        lease = resident.lease
        assert lease is not None
        platform.revoke(lease.lease_id)
        lease.wait_lost(timeout=10)
        assert lease.is_lost
        assert model.is_loaded
    wait_for("the unloading", lambda: not model.is_loaded)


def test_an_interrupted_use_leaves_nothing_behind(
    boss: GPUBoss, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = boss.resident(load=Model, unload=Model.unload, vram_gb=8)
    interrupt_after(monkeypatch, boss)
    with pytest.raises(KeyboardInterrupt), resident.use():
        pytest.fail("it was interrupted before")
    wait_for("the lease to be idle", lambda: [row["state"] for row in platform.leases().values()] == ["idle"])


def test_a_client_that_closes_does_not_wait_for_ever_for_a_thread(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuboss.client.keeper.LEAVE_S", 0.05)
    used, may_leave = threading.Event(), threading.Event()

    def use() -> None:
        with resident.use():
            used.set()
            assert may_leave.wait(10)

    with ThreadPoolExecutor(1) as thread:
        with GPUBoss(platform.url, "blocker") as boss:
            resident = boss.resident(load=Model, unload=Model.unload, vram_gb=8)
            using = thread.submit(use)
            assert used.wait(10)
        may_leave.set()
        with pytest.raises(GPUBossError, match="closed"):
            using.result(5)


# ---------------------------------------------------------------- threads


def test_any_number_of_threads_share_one_client(boss: GPUBoss) -> None:
    def use(number: int) -> str:
        with boss.lease(vram_gb=4) as device:
            return device.lease.lease_id

    with ThreadPoolExecutor(20) as threads:
        assert len(set(threads.map(use, range(60)))) == 60


@pytest.mark.parametrize("when", ["waiting", "granted"])
def test_an_interrupted_wait_leaves_nothing_behind(
    platform: Platform, boss: GPUBoss, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if when == "granted":
        interrupt_after(monkeypatch, boss)
        with pytest.raises(KeyboardInterrupt):
            boss.acquire(vram_gb=8)
    else:
        with boss.lease(vram_gb=24, device="cuda:0"):  # so that another has to wait
            threading.Thread(target=interrupt_main, args=(platform,)).start()
            with pytest.raises(KeyboardInterrupt):
                boss.acquire(vram_gb=8, device="cuda:0")
            platform.wait_for_queue(0)
    platform.wait_until_nothing_is_left()
    with boss.lease(vram_gb=24):
        pass  # the client itself goes on


def interrupt_main(platform: Platform) -> None:
    """What Ctrl-C does, once the main thread waits for its lease."""
    platform.wait_for_queue(1)
    time.sleep(0.3)  # on a busy machine it may not have come to that yet: the loop's thread was faster
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, boss: GPUBoss) -> None:
    """Have the next wait for the loop's thread interrupted just when its result is there."""
    portal = boss._portal
    assert portal is not None
    start: Callable[..., Any] = portal.start_task_soon

    def started(*arguments: Any) -> Any:
        monkeypatch.undo()
        future = start(*arguments)
        future.result(10)
        results = iter([KeyboardInterrupt()])
        genuine = future.result

        def result() -> Any:
            for error in results:
                raise error
            return genuine()

        future.result = result
        return future

    monkeypatch.setattr(portal, "start_task_soon", started)


def test_a_client_is_closed_with_its_block(platform: Platform) -> None:
    boss = GPUBoss(platform.url, "blocker")
    with pytest.raises(GPUBossError, match="not open; expected `with"):
        boss.acquire(vram_gb=8)
    with boss:
        lease = boss.acquire(vram_gb=8)
        with pytest.raises(GPUBossError, match="open already"), boss:
            pass
    platform.wait_until_nothing_is_left()
    boss.release(lease)
    with pytest.raises(GPUBossError, match="not open"):
        boss.acquire(vram_gb=8)
    assert not [thread for thread in threading.enumerate() if thread.name == "gpuboss"]
    with boss, boss.lease(vram_gb=8):
        pass


def test_a_thread_that_waits_is_told_when_the_client_is_closed(platform: Platform) -> None:
    with ThreadPoolExecutor(1) as thread, GPUBoss(platform.url, "blocker") as boss:
        boss.acquire(vram_gb=24, device="cuda:0")
        waiting = thread.submit(lambda: boss.acquire(vram_gb=24, device="cuda:0"))
        platform.wait_for_queue(1)
        boss.__exit__(None, None, None)
        with pytest.raises(GPUBossError, match="closed"):
            waiting.result(5)


def test_no_redis_no_client(tmp_path: Path) -> None:
    with pytest.raises(SchedulerUnavailable), GPUBoss(f"unix://{tmp_path}/none.sock", "blocker", connect_timeout=0.1):
        pytest.fail("there is nothing to talk to")
    assert not [thread for thread in threading.enumerate() if thread.name == "gpuboss"]


def test_a_configuration_is_read_as_by_the_other(platform: Platform, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"gpu: {{redis_url: '{platform.url}'}}\nmodels: {{anime: {{vram_gb: 8}}}}\n")
    with GPUBoss.from_config(config, service="blocker") as boss, boss.lease(model="anime") as device:
        assert device.lease.vram_mib == 8192


def test_the_sigterm_handler_is_set_from_the_thread_that_opens_it(platform: Platform) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with GPUBoss(platform.url, "blocker"):
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL


def test_the_twins_have_the_same_methods() -> None:
    def public(cls: type) -> set[str]:
        return {name for name in vars(cls) if not name.startswith("_")}

    assert public(GPUBoss) == public(gpuboss.GPUBoss)
    assert public(Resident) - {"close"} == public(gpuboss.Resident) - {"aclose", "enter", "leave", "is_closed"}


@pytest.mark.parametrize("name", [name for name in Lease.__annotations__ if name != "visible_devices"])
def test_a_lease_has_what_the_others_has(boss: GPUBoss, name: str) -> None:
    lease = boss.acquire(vram_gb=1)
    assert getattr(lease, name) == vars(lease._lease)[name]


def test_leases_are_compared_and_shown_as_the_others(boss: GPUBoss) -> None:
    with boss.lease(vram_gb=1) as device:
        lease = device.lease
        assert isinstance(lease, Lease)
        assert {lease: 1}[Lease(lease._lease, lease._call)] == 1
        assert (str(lease), repr(lease)) == (lease.lease_id, repr(lease._lease))
        assert lease != boss.acquire(vram_gb=1)
        assert lease.visible_devices() == ("cuda:0",)
