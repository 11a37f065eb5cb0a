"""A process of services with resident models: many users at once, who come, go, and are cut short at any moment.

    python -m tests.real.resident_worker URL NAME HISTORY [--residents R] [--users U] [--vram-mib M] [--seed S]

Ends when its standard input does. Each line of the file HISTORY is one `tests.verdict.history.Note`: `granted` where a
model begins to be on a card, `over` where it is off. In the end it prints what its users lived through, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TextIO

from gpuboss import Device, GPUBoss, GPUBossError, LeaseLost, Resident
from tests.verdict.history import Note

LOAD_S = 0.03
UNLOAD_S = 0.01
HOLD_S = 0.05
PATIENCE_S = 1.0  # of the most patient user
PAUSE_S = 0.3


class Model:
    """What one load put on a card."""

    def __init__(self, name: str, device: str, vram_mib: int) -> None:
        self.name = name
        self.device = device
        self.vram_mib = vram_mib
        self.is_loaded = True


class Loader:
    """Loads and unloads the models of one resident in threads, and notes when they are on which card."""

    def __init__(self, name: str, notes: TextIO) -> None:
        self._name = name
        self._notes = notes
        self.loads = 0

    def load(self, device: Device) -> Model:
        self.loads += 1
        model = Model(f"{self._name}/{self.loads}", f"{device.lease.node}/{device.lease.device}", device.lease.vram_mib)
        self._note(Note(time.monotonic(), "granted", model.name, (model.device,), model.vram_mib))
        time.sleep(LOAD_S)
        return model

    def unload(self, model: Model) -> None:
        assert model.is_loaded
        model.is_loaded = False
        time.sleep(UNLOAD_S)
        self._note(Note(time.monotonic(), "over", model.name))

    def _note(self, note: Note) -> None:
        self._notes.write(json.dumps(note) + "\n")


class User:
    """Uses one of the models, again and again; now and then it is cancelled, wherever it is by then."""

    def __init__(self, residents: list[Resident[Model]], chance: random.Random, lived: Counter[str]) -> None:
        self._residents = residents
        self._chance = chance
        self._lived = lived

    async def live(self, stopping: asyncio.Event) -> None:
        """Until told to stop."""
        while not stopping.is_set():
            try:
                async with asyncio.timeout(self._chance.uniform(0, PATIENCE_S)):
                    async with self._chance.choice(self._residents).use() as model:
                        await self._work_with(model)
                self._lived["uses"] += 1
            except TimeoutError:
                self._lived["cancelled"] += 1
            except LeaseLost:
                self._lived["lost"] += 1
            except GPUBossError:
                self._lived["refused"] += 1
            await asyncio.sleep(self._chance.uniform(0, PAUSE_S))

    async def _work_with(self, model: Model) -> None:
        try:
            await asyncio.sleep(self._chance.uniform(0, HOLD_S))
        finally:
            if not model.is_loaded:
                sys.exit(f"{model.name} was unloaded while it was used")


async def work(arguments: argparse.Namespace, notes: TextIO) -> None:
    """Some models, and their users, until standard input ends."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stopping.set)
    lived: Counter[str] = Counter()
    loaders = [Loader(f"{arguments.name}.{number}", notes) for number in range(arguments.residents)]
    async with GPUBoss(arguments.url, arguments.name) as boss:
        residents = [
            boss.resident(load=each.load, unload=each.unload, vram_mib=arguments.vram_mib, priority=arguments.priority)
            for each in loaders
        ]
        async with asyncio.TaskGroup() as tasks:
            for number in range(arguments.users):
                chance = random.Random(f"{arguments.seed}/{arguments.name}/{number}")
                tasks.create_task(User(residents, chance, lived).live(stopping))
    print(json.dumps({**lived, "loads": sum(each.loads for each in loaders)}), flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tests.real.resident_worker", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("name")
    parser.add_argument("history")
    parser.add_argument("--residents", type=int, default=2)
    parser.add_argument("--users", type=int, default=25)
    parser.add_argument("--vram-mib", type=int, default=10_000)
    parser.add_argument("--priority", default="normal")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with Path(arguments.history).open("a", buffering=1) as notes:
        asyncio.run(work(arguments, notes))


if __name__ == "__main__":
    main()
