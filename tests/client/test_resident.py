"""A resident model on a real scheduler: loaded when it is used, idle between uses, unloaded when it is asked back."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from gpuboss import ConfigError, Device, GPUBoss, GPUBossError, LeaseLost, Resident
from tests.client.by_hand import until, until_ended
from tests.client.platforms import Platform
from tests.client.residents import Card, Model, states, the_lease, until_idle, use, use_until_ended


@pytest.fixture
async def boss(platform: Platform) -> AsyncIterator[GPUBoss]:
    async with GPUBoss(platform.url, "painter") as boss:
        yield boss


async def test_a_model_is_loaded_by_its_first_use_and_kept_for_the_next(
    platform: Platform, resident: Resident[Model], card: Card
) -> None:
    assert (card.loads, resident.lease) == (0, None)
    async with resident.use() as model:
        assert model.device == "cuda:0"
        assert resident.lease is not None
        assert states(platform) == ["held"]
        row = platform.leases()[resident.lease.lease_id]
        assert row["vram_mib"] == 8192
    await until_idle(platform)
    async with resident.use() as again:
        assert again is model
        assert states(platform) == ["held"]
    await until_idle(platform)
    await resident.aclose()
    assert (card.loads, card.unloads, card.models) == (1, 1, [])
    await until("the release", lambda: not platform.leases())


async def test_what_loading_took_is_what_loading_again_would_cost(
    platform: Platform, boss: GPUBoss, card: Card
) -> None:
    async def load(device: Device) -> Model:
        await anyio.sleep(0.12)
        return await card.load(device)

    async with boss.resident(load=load, unload=card.unload, vram_gb=8) as resident:
        async with resident.use():
            pass
        await until_idle(platform)
    [idled] = [event for event in platform.log("LeaseIdled") if event["service"] == "painter"][-1:]
    assert 120 <= idled["reload_ms"] < 5_000


async def test_concurrent_users_share_one_load_and_one_lease(
    platform: Platform, resident: Resident[Model], card: Card
) -> None:
    seen: list[Model] = []

    async def look() -> None:
        async with resident.use() as model:
            seen.append(model)
            await until("all users", lambda: len(seen) == 20)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(look)
    assert (card.loads, len(set(seen))) == (1, 1)
    await until_idle(platform)


async def test_asked_back_while_it_is_idle_it_is_unloaded_and_loaded_again(
    platform: Platform, resident: Resident[Model], card: Card
) -> None:
    async with resident.use() as model:
        first = the_lease(platform)
    await until_idle(platform)
    platform.revoke(first, grace_ms=60_000)
    await until("the lease to be given back", lambda: not platform.leases())
    assert (card.unloads, card.models, resident.lease) == (1, [], None)
    assert [ended["reason"] for ended in platform.log("LeaseEnded")][-1] == "yielded"
    async with resident.use() as other:
        assert other is not model
        assert the_lease(platform) != first


async def test_asked_back_while_it_is_used_it_is_unloaded_after_the_use(
    platform: Platform, resident: Resident[Model], card: Card
) -> None:
    async with anyio.create_task_group() as tasks, resident.use() as model:
        first = the_lease(platform)
        platform.revoke(first, grace_ms=60_000)
        assert resident.lease is not None
        await resident.lease.wait_asked_back()

        async def come_late() -> None:
            async with resident.use() as other:
                assert other is not model
                assert the_lease(platform) != first

        tasks.start_soon(come_late)
        await anyio.sleep(0.1)
        assert (card.loads, card.models) == (1, [model])
    assert (card.loads, card.unloads) == (2, 1)


async def test_at_the_deadline_the_use_is_cancelled_and_told(
    platform: Platform, resident: Resident[Model], card: Card
) -> None:
    was_loaded = False
    with pytest.raises(LeaseLost, match="revoked"):
        async with resident.use() as model:
            platform.revoke(the_lease(platform), grace_ms=200)
            try:
                await until_ended()
            finally:
                was_loaded = card.models == [model]
    assert was_loaded
    await until("the unloading", lambda: not card.models)
    async with resident.use():
        assert card.loads == 2


async def test_a_use_that_does_not_notice_is_told_at_its_end_and_unloaded_only_then(
    platform: Platform, resident: Resident[Model], card: Card
) -> None:
    with pytest.raises(LeaseLost):
        async with resident.use() as model:
            with anyio.CancelScope(shield=True):
                assert resident.lease is not None
                lease = resident.lease
                platform.revoke(lease.lease_id)
                await lease.wait_lost()
                await anyio.sleep(0.1)
                assert card.models == [model]
    await until("the unloading", lambda: not card.models)


async def test_lost_while_it_is_idle_it_is_unloaded_and_loaded_again(
    platform: Platform, resident: Resident[Model], card: Card
) -> None:
    async with resident.use():
        pass
    await until_idle(platform)
    platform.revoke(the_lease(platform))
    await until("the unloading", lambda: not card.models)
    async with resident.use():
        assert card.loads == 2


async def test_a_lease_with_a_ttl_may_expire_while_it_is_idle(platform: Platform, boss: GPUBoss, card: Card) -> None:
    resident = boss.resident(load=card.load, unload=card.unload, vram_gb=8, ttl=0.3)
    async with resident.use():
        pass
    await until("the unloading", lambda: card.unloads == 1)
    async with resident.use():
        assert card.loads == 2


# ---------------------------------------------------------------- functions that are not async


async def test_what_is_not_async_runs_in_a_thread(boss: GPUBoss, platform: Platform) -> None:
    threads: list[threading.Thread] = []

    def load(device: Device) -> Model:
        threads.append(threading.current_thread())
        return Model(device)

    def unload(model: Model) -> None:
        threads.append(threading.current_thread())

    async with boss.resident(load=load, unload=unload, vram_gb=8) as resident, resident.use() as model:
        assert model.device == "cuda:0"
    assert len(threads) == 2
    assert threading.main_thread() not in threads


async def test_a_thread_that_loads_is_waited_for_and_what_it_loaded_unloaded(boss: GPUBoss, platform: Platform) -> None:
    begun, may_end, unloaded = threading.Event(), threading.Event(), threading.Event()

    def load(device: Device) -> Model:
        begun.set()
        assert may_end.wait(10)
        return Model(device)

    resident = boss.resident(load=load, unload=lambda model: unloaded.set(), vram_gb=8)
    using = asyncio.create_task(use(resident))
    await until("the load", begun.is_set)
    platform.revoke(the_lease(platform))
    await anyio.sleep(0.1)
    assert not unloaded.is_set()
    may_end.set()
    with pytest.raises(LeaseLost):
        await using
    await until("the unloading", unloaded.is_set)


async def test_it_needs_no_thread_of_the_service_to_unload(boss: GPUBoss) -> None:
    may_end = threading.Event()
    limiter = anyio.to_thread.current_default_thread_limiter()
    all_of_them, limiter.total_tokens = limiter.total_tokens, 1
    resident = boss.resident(load=lambda device: Model(device), unload=lambda model: may_end.set(), vram_gb=8)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, may_end.wait, 10)
            with anyio.fail_after(5):
                await use(resident)
                await resident.aclose()
    finally:
        limiter.total_tokens = all_of_them


@pytest.mark.parametrize("in_threads", [False, True])
async def test_to_unload_a_model_it_is_enough_to_drop_it(boss: GPUBoss, in_threads: bool) -> None:
    left: list[object] = []

    def load(device: Device) -> Model:
        return Model(device)

    def drop(model: Model) -> None:
        seen = weakref.ref(model)
        del model
        left.append(seen())

    async def load_here(device: Device) -> Model:
        return load(device)

    async def drop_here(model: Model) -> None:
        seen = weakref.ref(model)
        del model
        left.append(seen())

    if in_threads:
        resident = boss.resident(load=load, unload=drop, vram_gb=8)
    else:
        resident = boss.resident(load=load_here, unload=drop_here, vram_gb=8)
    gc.disable()
    try:
        await use(resident)
        ended = asyncio.create_task(use_until_ended(resident))
        await until("the use", lambda: resident._keeper.users.using)
        await resident.aclose()
        assert left == [None]
        assert isinstance(ended.exception(), GPUBossError), "nor does its traceback hold the model"
    finally:
        gc.enable()


# ---------------------------------------------------------------- arguments


async def test_wrong_arguments_are_told_at_once(boss: GPUBoss, card: Card) -> None:
    with pytest.raises(ConfigError, match="exactly one of"):
        boss.resident(load=card.load, unload=card.unload)
    with pytest.raises(ConfigError, match="reclaimable=False"):
        boss.resident(load=card.load, unload=card.unload, vram_gb=8, reclaimable=False)


async def test_a_device_that_the_process_cannot_see_is_told_and_given_back(
    platform: Platform, boss: GPUBoss, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    resident = boss.resident(load=card.load, unload=card.unload, vram_gb=8, device="cuda:0")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES='1'"):
        await use(resident)
    await until("the release", lambda: not platform.leases())


async def test_without_a_gpu_it_is_loaded_where_it_is_told(tmp_path: Path, card: Card) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("gpu: {enabled: false}")
    async with GPUBoss.from_config(config, service="painter") as boss:
        resident = boss.resident(load=card.load, unload=card.unload, vram_gb=8)
        for _ in range(2):
            async with resident.use() as model:
                assert model.device == "cpu"
            await anyio.sleep(0)
    assert (card.loads, card.unloads) == (1, 1)
