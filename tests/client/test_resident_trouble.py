"""A resident model where something fails, and where its users are cancelled or it is closed: nothing is left behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import anyio
import pytest

from gpuboss import Device, GPUBoss, GPUBossError, Lease, LeaseLost, LeaseTimeout, Resident
from gpuboss.client.pace import Alarm
from gpuboss.client.users import Users
from tests.client.by_hand import until
from tests.client.platforms import Platform
from tests.client.residents import Card, Model, states, the_lease, until_idle, use, use_until_ended


@pytest.fixture
async def boss(platform: Platform) -> AsyncIterator[GPUBoss]:
    async with GPUBoss(platform.url, "painter") as boss:
        yield boss


# ---------------------------------------------------------------- what goes wrong


async def test_a_load_that_fails_is_told_to_all_who_wait_and_leaves_nothing_behind(
    platform: Platform, resident: Resident[Model], card: Card
) -> None:
    told: list[BaseException] = []
    card.may_load.clear()
    card.trouble = MemoryError("out of memory")

    async def use_in_vain() -> None:
        try:
            async with resident.use():
                pytest.fail("there is no model")
        except MemoryError as error:
            told.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(use_in_vain)
        await until("the load", lambda: card.loads == 1)
        card.may_load.set()
    assert [str(error) for error in told] == ["out of memory"] * 3
    await until("the release", lambda: not platform.leases())
    assert card.unloads == 0
    card.trouble = None
    async with resident.use():
        assert card.loads == 2


async def test_a_lease_that_is_not_granted_is_told_to_all_who_wait(
    boss: GPUBoss, platform: Platform, card: Card
) -> None:
    resident = boss.resident(load=card.load, unload=card.unload, vram_gb=24, device="cuda:0", wait_timeout=0.1)
    async with boss.lease(vram_gb=24, device="cuda:0"):
        for _ in range(2):
            with pytest.raises(LeaseTimeout):
                async with resident.use():
                    pytest.fail("there is no room")
    async with resident.use() as model:
        assert model.device == "cuda:0"


async def test_a_load_that_cancels_itself_is_told(resident: Resident[Model], card: Card) -> None:
    card.trouble = asyncio.CancelledError()  # type: ignore[assignment]
    with pytest.raises(GPUBossError, match="cancelled"):
        async with resident.use():
            pytest.fail("there is no model")
    card.trouble = None
    async with resident.use():
        assert card.loads == 2


async def test_an_unload_that_fails_is_logged_and_the_lease_given_back(
    platform: Platform, resident: Resident[Model], card: Card, caplog: pytest.LogCaptureFixture
) -> None:
    async with resident.use():
        card.trouble = ValueError("no such model")
    await resident.aclose()
    assert "not unloaded as it should" in caplog.text
    assert "no such model" in caplog.text
    await until("the release", lambda: not platform.leases())


async def test_a_model_that_no_thread_could_unload_is_not_used_again(
    platform: Platform, boss: GPUBoss, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start_no_thread(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    async def load(device: Device) -> Model:
        return Model(device)

    def unload(model: Model) -> None:
        pytest.fail("there is no thread to do it")

    resident = boss.resident(load=load, unload=unload, vram_gb=8)
    async with resident.use() as model:
        first = the_lease(platform)
    with monkeypatch.context() as full:
        full.setattr("anyio.to_thread.run_sync", start_no_thread)
        platform.revoke(first, grace_ms=60_000)
        await until("the release", lambda: not platform.leases())
        async with resident.use() as other:
            assert other is not model
        await resident.aclose()


async def test_a_lease_that_is_lost_while_it_loads_stops_the_load_and_is_told(
    platform: Platform, resident: Resident[Model], card: Card
) -> None:
    card.may_load.clear()
    using = asyncio.create_task(use(resident))
    await until("the load", lambda: card.loads == 1)
    platform.revoke(the_lease(platform))
    with pytest.raises(LeaseLost, match="revoked"):
        await using
    assert card.models == []


async def test_asked_back_while_it_loads_the_load_stops_and_the_next_lease_is_waited_for(
    platform: Platform, resident: Resident[Model], card: Card
) -> None:
    card.may_load.clear()
    using = asyncio.create_task(use(resident))
    await until("the load", lambda: card.loads == 1)
    first = the_lease(platform)
    platform.revoke(first, grace_ms=60_000)
    await until("the next load", lambda: card.loads == 2)
    assert the_lease(platform) != first
    card.may_load.set()
    await using


# ---------------------------------------------------------------- cancelled, closed


async def test_whoever_is_cancelled_while_it_waits_for_a_lease_leaves_no_request(
    boss: GPUBoss, platform: Platform, card: Card
) -> None:
    resident = boss.resident(load=card.load, unload=card.unload, vram_gb=24, device="cuda:0")
    async with boss.lease(vram_gb=24, device="cuda:0"):
        users = [asyncio.create_task(use(resident)) for _ in range(3)]
        await until("the request", lambda: len(platform.queue()) == 1)
        users[0].cancel()
        await anyio.sleep(0.1)
        assert len(platform.queue()) == 1, "others wait for it"
        for user in users:
            user.cancel()
        await asyncio.wait(users)
        await until("the request to be gone", lambda: not platform.queue())
    assert card.loads == 0


async def test_whoever_is_cancelled_while_it_loads_leaves_a_model_that_is_idle(
    platform: Platform, resident: Resident[Model], card: Card
) -> None:
    card.may_load.clear()
    user = asyncio.create_task(use(resident))
    await until("the load", lambda: card.loads == 1)
    user.cancel()
    await asyncio.wait([user])
    card.may_load.set()
    await until_idle(platform)
    async with resident.use():
        assert card.loads == 1


async def test_whoever_is_cancelled_just_when_the_model_is_there_does_not_keep_it(
    platform: Platform, resident: Resident[Model], card: Card
) -> None:
    users = resident._keeper.users
    user = asyncio.create_task(use(resident))
    admit = users.admit

    def admit_and_cancel(model: Model) -> None:
        admit(model)
        user.cancel()

    users.admit = admit_and_cancel  # type: ignore[method-assign]
    await asyncio.wait([user])
    assert user.cancelled()
    await until_idle(platform)


async def test_a_lease_that_comes_when_nobody_waits_any_more_is_given_back_unused(
    platform: Platform, resident: Resident[Model], card: Card
) -> None:
    user = asyncio.create_task(use(resident))
    acquire = resident._keeper._acquire

    async def acquire_too_late() -> Lease:
        lease = await acquire()
        user.cancel()
        await until("the user to be gone", lambda: not resident._keeper.users.waiting)
        return lease

    async def acquire_whatever_happens() -> Lease:
        acquiring = asyncio.create_task(acquire_too_late())
        while not acquiring.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([acquiring])
        return acquiring.result()

    resident._keeper._acquire = acquire_whatever_happens
    await asyncio.wait([user])
    await until("the release", lambda: platform.log("LeaseEnded"))
    await until("the release", lambda: not platform.leases())
    assert card.loads == 0


async def test_a_bug_in_the_keeper_is_told_to_whoever_waits_and_comes(
    resident: Resident[Model], caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    resident._keeper._serve_on_a_lease = fail  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(GPUBossError, match="because of a bug: ZeroDivisionError"):
            await use(resident)
    assert "kept no more" in caplog.text


async def test_closing_is_not_cut_short(platform: Platform, resident: Resident[Model], card: Card) -> None:
    await use(resident)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await resident.aclose()
    assert card.models == []
    await until("the release", lambda: not platform.leases())


async def test_whoever_was_cancelled_and_has_not_left_yet_is_told_nothing() -> None:
    users: Users[Model] = Users(Alarm())
    coming = asyncio.create_task(users.come())
    await until("the user", lambda: users.waiting)
    coming.cancel()
    users.refuse(LeaseLost("lease-01", "revoked"))
    await asyncio.wait([coming])
    assert coming.cancelled()


async def test_closing_cancels_the_users_unloads_and_releases(
    platform: Platform, resident: Resident[Model], card: Card
) -> None:
    using = asyncio.create_task(use_until_ended(resident))
    await until("the model", lambda: card.models)
    await resident.aclose()
    assert card.models == []
    with pytest.raises(GPUBossError, match="is closed"):
        await using
    with pytest.raises(GPUBossError, match="is closed"):
        async with resident.use():
            pytest.fail("it is closed")
    await until("the release", lambda: not platform.leases())


async def test_closing_goes_on_where_somebody_does_not_leave(
    platform: Platform,
    resident: Resident[Model],
    card: Card,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("gpuboss.client.keeper.LEAVE_S", 0.05)
    with pytest.raises(GPUBossError, match="is closed"):
        async with resident.use():
            await resident.aclose()  # from within: it would wait for itself
            assert card.models == []
    assert "although 1 still use it" in caplog.text


async def test_a_closed_client_unloads_what_is_resident(platform: Platform, card: Card) -> None:
    async with GPUBoss(platform.url, "painter") as boss:
        resident = boss.resident(load=card.load, unload=card.unload, vram_gb=8)
        async with resident.use():
            pass
        await until_idle(platform)
        unload = card.unload

        async def unload_while_it_is_ours(model: Model) -> None:
            assert states(platform) != []
            await unload(model)

        resident._keeper._unload = unload_while_it_is_ours
    assert card.models == []
    await until("the release", lambda: not platform.leases())


async def test_closing_while_it_loads_stops_the_load(platform: Platform, resident: Resident[Model], card: Card) -> None:
    card.may_load.clear()
    user = asyncio.create_task(use(resident))
    await until("the load", lambda: card.loads == 1)
    with anyio.fail_after(5):
        await resident.aclose()
    with pytest.raises(GPUBossError, match="is closed"):
        await user
    assert card.models == []


async def test_a_client_remembers_no_resident_that_was_closed(boss: GPUBoss, card: Card) -> None:
    for _ in range(3):
        async with boss.resident(load=card.load, unload=card.unload, vram_gb=8):
            pass
    assert len(boss._residents) == 1
