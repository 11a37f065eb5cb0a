"""Schedulers of the simulated world: the real one, each in a process of its own, with a disk that outlives it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from gpuboss.config import Config, load_config
from gpuboss.simulation.devices import observe
from gpuboss_scheduler.known_log import Known, KnownLog
from gpuboss_scheduler.rules import Rules
from gpuboss_scheduler.scheduler import Scheduler
from gpuboss_scheduler.status import Status
from tests.sim.processes import Process

if TYPE_CHECKING:
    from tests.sim.world import World

URL = "redis://simulated:6379"
NODE = "node"


class Disk(KnownLog):
    """A memory file: what a scheduler knew of the log is there when the next one starts on the same machine."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: Known | None = None

    def note(self, known: Known) -> bool:
        """As `KnownLog` has it, and on disk at once."""
        is_new = super().note(known)
        self.noted = self._known
        return is_new

    def after_restart(self) -> Disk:
        """What the next process finds."""
        disk = Disk()
        disk.noted = disk._known = self.noted
        return disk


class SchedulerHost:
    """One machine on which a scheduler runs, again and again."""

    def __init__(self, world: World, number: int) -> None:
        self.name = f"scheduler-{number}"
        self.process: Process | None = None
        self.status = Status()
        self._world = world
        self._disk = Disk()
        self._lives = 0
        self._stopping = False

    @property
    def is_up(self) -> bool:
        """Whether its process lives."""
        return self.process is not None and not self.process.is_dead

    @property
    def leads(self) -> bool:
        """Whether it believes to lead."""
        return self.is_up and self.status.role == "leading"

    def start(self) -> None:
        """Start a scheduler."""
        self._lives += 1
        self._stopping = False
        self._disk = self._disk.after_restart()
        process = self.process = Process(self._world, f"{self.name}.{self._lives}")
        world = self._world

        def run() -> None:
            self.status = Status()
            config = _config(world)
            devices = observe(config.scheduler.devices or (), NODE, None)
            rules = Rules(config.scheduler, NODE, devices)
            Scheduler(config, rules, process.name, self.status, lambda: self._stopping, self._disk).run()
            process.kill()

        process.start_thread(run)

    def terminate(self) -> None:
        """SIGTERM."""
        self._stopping = True


def _config(world: World) -> Config:
    settings = world.settings
    config = load_config(
        environ={},
        arguments={
            "gpu.redis_url": URL,
            "scheduler.devices": ",".join(f"cuda:{n}={mib}" for n, mib in enumerate(settings.devices_mib)),
            "scheduler.session_ttl": f"{settings.session_ttl_ms}ms",
            "scheduler.lock_delay": f"{world.guards.lock_delay_ms(settings)}ms",
        },
    )
    return replace(
        config,
        scheduler=replace(config.scheduler, snapshot_every=settings.snapshot_every, policy=settings.policy),
    )
