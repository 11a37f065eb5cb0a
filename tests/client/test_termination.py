"""SIGTERM: what a service has leased is given back before it dies, unless it handles the signal itself."""

import signal
import time
from collections.abc import Iterator

import anyio
import pytest

from gpuboss import GPUBoss
from gpuboss.client import termination
from tests.client.by_hand import HandScheduler
from tests.client.processes import Service
from tests.real.one_server import served_by
from tests.real.servers import RealServer, wait_for

server_process = served_by(-1)
# Holds a lease and waits for another, in the way that `body` says; prints a line when it holds, then a line a second.
ASYNC = """
    import asyncio, os, signal, sys, time
    from gpuboss import GPUBoss

    async def main():
        async with GPUBoss(sys.argv[1], "painter") as boss:
            await boss.acquire(vram_gb=8)
            waiting = asyncio.create_task(boss.acquire(vram_gb=4))
            await asyncio.sleep(0.05)
            print("holds", flush=True)
            {body}

    asyncio.run(main())
"""
BLOCKING = """
    import sys, threading, time
    from gpuboss.blocking import GPUBoss

    with GPUBoss(sys.argv[1], "painter") as boss:
        boss.acquire(vram_gb=8)
        threading.Thread(target=boss.acquire, kwargs=dict(vram_gb=4), daemon=True).start()
        time.sleep(0.05)
        print("holds", flush=True)
        {body}
"""
WAYS = {
    "a waiting loop": ASYNC.format(body="await asyncio.sleep(60)"),
    "a loop that computes": ASYNC.format(body="time.sleep(60)"),
    "blocking": BLOCKING.format(body="time.sleep(60)"),
    "blocking, in acquire": BLOCKING.format(body="boss.acquire(vram_gb=2)"),
}


def holding(service: Service, hand: HandScheduler, requests: int = 2) -> list[str]:
    """Grant its first request; the ids of all, once so many are in the log."""
    wait_for("a request", lambda: hand.log("LeaseRequested") or service.has_ended())
    assert not service.has_ended(), service.line()
    hand.grant(hand.log("LeaseRequested")[0])
    assert service.line() == "holds"
    wait_for("all requests", lambda: len(hand.log("LeaseRequested")) == requests)
    return [event["lease_id"] for event in hand.log("LeaseRequested")]


def released(hand: HandScheduler) -> list[str]:
    return [event["lease_id"] for event in hand.log("LeaseReleased")]


@pytest.mark.parametrize("way", WAYS)
def test_a_terminated_service_gives_everything_back_and_dies_of_the_signal(
    server: RealServer, hand: HandScheduler, way: str
) -> None:
    with Service(WAYS[way], server.url) as service:
        lease_ids = holding(service, hand, requests=3 if way.endswith("acquire") else 2)
        service.signal(signal.SIGTERM)
        assert service.wait() == -signal.SIGTERM
    assert sorted(released(hand)) == sorted(lease_ids)
    assert hand.redis.zcard(hand.keys.sessions) == 0


def test_a_service_dies_in_time_when_redis_does_not_answer(server: RealServer, hand: HandScheduler) -> None:
    with Service(WAYS["a waiting loop"], server.url) as service:
        holding(service, hand)
        server.pause()
        begun_s = time.monotonic()
        service.signal(signal.SIGTERM)
        assert service.wait() == -signal.SIGTERM
        assert time.monotonic() - begun_s < termination.GOODBYE_S + 2


def test_a_second_sigterm_kills_at_once(server: RealServer, hand: HandScheduler) -> None:
    with Service(WAYS["a waiting loop"], server.url) as service:
        holding(service, hand)
        server.pause()
        service.signal(signal.SIGTERM)
        status = f"/proc/{service.process.pid}/status"
        wait_for("the default handler", lambda: not catches(status))
        begun_s = time.monotonic()
        service.signal(signal.SIGTERM)
        assert service.wait() == -signal.SIGTERM
        assert time.monotonic() - begun_s < 0.5


def catches(status: str) -> bool:
    """Whether a process, by its status in /proc, has a handler for SIGTERM."""
    with open(status, encoding="utf-8") as lines:
        [caught] = [line.split()[1] for line in lines if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


OWN_HANDLER = """
            def own(*_):
                print("own handler", flush=True)
                os._exit(7)
            {install}
            print("set", flush=True)
            await asyncio.sleep(60)
"""


@pytest.mark.parametrize(
    "install", ["signal.signal(signal.SIGTERM, own)", "asyncio.get_running_loop().add_signal_handler(15, own)"]
)
def test_a_handler_that_the_service_sets_later_stays(server: RealServer, hand: HandScheduler, install: str) -> None:
    with Service(ASYNC.format(body=OWN_HANDLER.format(install=install).strip()), server.url) as service:
        holding(service, hand)
        assert service.line() == "set"
        service.signal(signal.SIGTERM)
        assert service.line() == "own handler"
        assert service.wait() == 7
    assert released(hand) == []


FORKS = """
            ready, child_is = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(child_is, b"ready")
                time.sleep(10)
            os.read(ready, 5)
            os.kill(child, signal.SIGTERM)
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            await asyncio.sleep(60)
"""


def test_a_forked_child_dies_of_it_without_giving_back_what_is_its_parents(
    server: RealServer, hand: HandScheduler
) -> None:
    with Service(ASYNC.format(body=FORKS.strip()), server.url) as service:
        holding(service, hand)
        assert service.line() == str(-signal.SIGTERM)
        assert released(hand) == []


# ---------------------------------------------------------------- in this process


@pytest.fixture
def default_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("default_handler")
async def test_our_handler_is_there_while_a_client_is_open(server: RealServer, hand: HandScheduler) -> None:
    async with GPUBoss(server.url, "painter"):
        ours = signal.getsignal(signal.SIGTERM)
        assert callable(ours)
        async with GPUBoss(server.url, "painter"):
            assert signal.getsignal(signal.SIGTERM) is ours
        assert signal.getsignal(signal.SIGTERM) is ours
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("default_handler")
@pytest.mark.parametrize("others", [signal.SIG_IGN, lambda *_: None])
async def test_a_handler_that_is_there_already_is_never_replaced(
    server: RealServer, hand: HandScheduler, others: signal.Handlers
) -> None:
    signal.signal(signal.SIGTERM, others)
    async with GPUBoss(server.url, "painter"):
        assert signal.getsignal(signal.SIGTERM) is others
    assert signal.getsignal(signal.SIGTERM) is others


@pytest.mark.usefixtures("default_handler")
async def test_a_handler_that_replaced_ours_is_left_alone(server: RealServer, hand: HandScheduler) -> None:
    async with GPUBoss(server.url, "painter"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


@pytest.mark.usefixtures("default_handler")
async def test_in_another_thread_a_client_opens_without_a_handler(server: RealServer, hand: HandScheduler) -> None:
    async def use() -> None:
        async with GPUBoss(server.url, "painter"):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    await anyio.to_thread.run_sync(lambda: anyio.run(use))
