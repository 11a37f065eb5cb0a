"""A process of services at work with the client of the product: they ask, hold and give back, and note what they see.

    python -m tests.real.worker URL NAME HISTORY [--namespace N] [--clients C] [--seed S] [--most-mib M]

Ends when its standard input does: it asks nothing more, and waits until all that it asked is answered. Each line of
the file HISTORY is one `tests.verdict.history.Note`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import TextIO

from gpuboss import GPUBoss, GPUBossError, Lease
from tests.verdict.history import Note, What

PATIENCE_S = 40.0  # how long a request may be without an answer once nothing more is asked
HOLD_S = 0.4
PAUSE_S = 0.05  # after an error, so that an outage is no busy loop


class Client:
    """One client: one request after the other."""

    def __init__(self, boss: GPUBoss, name: str, chance: random.Random, most_mib: int, notes: TextIO) -> None:
        self._boss = boss
        self._name = name
        self._chance = chance
        self._most_mib = most_mib
        self._notes = notes
        self._number = 0

    async def serve(self, stopping: asyncio.Event) -> None:
        """Until told to stop."""
        while not stopping.is_set():
            self._number += 1
            request = f"{self._name}/{self._number}"
            vram_mib = self._chance.randrange(1_000, self._most_mib)
            self._note(time.monotonic(), "asked", request)
            try:
                lease = await self._boss.acquire(vram_mib=vram_mib, gpus=2 if self._chance.random() < 0.2 else 1)
            except GPUBossError:
                self._note(time.monotonic(), "refused", request)
                await asyncio.sleep(PAUSE_S)
                continue
            await self._hold(request, lease)

    async def _hold(self, request: str, lease: Lease) -> None:
        granted_s = time.monotonic()
        self._note(granted_s, "granted", request, [f"{lease.node}/{each}" for each in lease.devices], lease)
        is_over = False

        def over() -> None:
            nonlocal is_over
            if not is_over:  # a process that was paused notices late, and has relied on nothing meanwhile
                is_over = True
                self._note(max(granted_s, min(time.monotonic(), self._trusted_until_s())), "over", request)

        lease.when_lost(over)
        try:
            await asyncio.wait_for(lease.wait_lost(), self._chance.uniform(0, HOLD_S))
        except TimeoutError:
            over()
            await self._boss.release(lease)

    def _trusted_until_s(self) -> float:
        return self._boss._open_session().desk.trust.until_s()

    def _note(
        self, at_s: float, what: What, request: str, devices: list[str] | None = None, lease: Lease | None = None
    ) -> None:
        note = Note(at_s, what, request, tuple(devices or ()), lease.vram_mib if lease is not None else 0)
        self._notes.write(json.dumps(note) + "\n")


async def work(arguments: argparse.Namespace, notes: TextIO) -> None:
    """Some clients, until standard input ends and all is answered."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stopping.set)
    async with asyncio.TaskGroup() as tasks:
        for number in range(arguments.clients):
            tasks.create_task(_serve(arguments, f"{arguments.name}.{number}", notes, stopping))


async def _serve(arguments: argparse.Namespace, name: str, notes: TextIO, stopping: asyncio.Event) -> None:
    chance = random.Random(f"{arguments.seed}/{name}")
    async with GPUBoss(arguments.url, arguments.name, namespace=arguments.namespace) as boss:
        serving = asyncio.create_task(Client(boss, name, chance, arguments.most_mib, notes).serve(stopping))
        await stopping.wait()
        await asyncio.wait([serving], timeout=PATIENCE_S)
        if not serving.done():
            serving.cancel()
            await asyncio.wait([serving])
        elif (error := serving.exception()) is not None:
            raise error


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tests.real.worker", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("name")
    parser.add_argument("history")
    parser.add_argument("--namespace", default="gpuboss")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-mib", type=int, default=20_000)
    arguments = parser.parse_args()
    with Path(arguments.history).open("a", buffering=1) as notes:
        asyncio.run(work(arguments, notes))


if __name__ == "__main__":
    main()
