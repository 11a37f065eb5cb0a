"""One seed's world: everything that happens in it happens here, one step after the other, and again the same."""

from __future__ import annotations

import gc
import hashlib
import logging
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from greenlet import getcurrent

from tests.sim import event_loop, world_now
from tests.sim.bindings import Bindings
from tests.sim.cards import UNLOAD_US, Cards
from tests.sim.faults import KINDS, Faults
from tests.sim.guards import Guards
from tests.sim.judge import Judge
from tests.sim.network import NO_FAULTS, Connection, Network
from tests.sim.processes import Process, in_silence
from tests.sim.schedulers import NODE, SchedulerHost
from tests.sim.server_host import ServerHost
from tests.sim.services import ServiceHost
from tests.sim.settings import DELETION, Settings, draw_settings, with_deletions, with_sharing
from tests.sim.timeline import Timeline

STEPS_MAX = 200_000  # a world that takes more goes round in circles
TAKEOVER_US = 2_000_000
SETTLED_US = 3_000_000  # longer than the leader takes to look at what it shows
LOOK_EVERY_US = 250_000  # whether all is over
HEALTHY_S = 30.0  # how long a healed world may take beyond what its time-outs explain


class World:
    """A seed. `problems` is what was found; nothing, one hopes."""

    def __init__(
        self,
        seed: int,
        guards: Guards | None = None,
        tell: Callable[[str], None] | None = None,
        *,
        is_short: bool = False,
    ) -> None:
        """`tell` is given each line of the trace. `is_short`: faults last for a third of the time."""
        self.seed = seed
        self.random = random.Random(seed)
        self.guards = guards or Guards()
        kinds = tuple(kind for kind in KINDS if kind != DELETION)
        self.settings: Settings = with_deletions(draw_settings(self.random, kinds), seed)
        if self.guards.is_sharing:
            self.settings = with_sharing(self.settings, seed)
        self.settings = self.guards.scenario(self.settings)
        if is_short:
            self.settings = self.settings._replace(stir_us=self.settings.stir_us // 3)
        self.timeline = Timeline(STEPS_MAX)
        self.problems: list[str] = []
        self.counts: dict[str, int] = {}
        self.told: dict[str, int] = {}  # errors that services were told, by name
        self.asked = 0
        self.loaded = 0
        self.asked_back = 0  # leases, as far as their holders heard of it
        self.takeovers_us: list[int] = []  # from a leader's death until another leads, where nothing else happened
        self._leader_died_us: int | None = None
        self.is_calm = False
        self.born: list[Process] = []
        self.hub = getcurrent()
        self.current: Process | None = None
        self._tell = tell
        self._trace = hashlib.sha256()
        self._healed_us = 0
        self._is_over = False
        self._was_led = False
        self.network = Network(self)
        self.host = self.network.server = ServerHost(self)
        self.judge = Judge(self)
        self.cards = Cards(self, {f"{NODE}/cuda:{n}": mib for n, mib in enumerate(self.settings.devices_mib)})
        self.faults = Faults(self)
        self.schedulers: list[SchedulerHost] = []
        self.services: list[ServiceHost] = []

    # ------------------------------------------------------------ what others ask of it

    @property
    def digest(self) -> str:
        """Of all that happened."""
        return self._trace.hexdigest()

    @property
    def hosts(self) -> list[SchedulerHost | ServiceHost]:
        """All machines but the server's."""
        return [*self.schedulers, *self.services]

    def note_asked_back(self) -> None:
        """Somebody was asked for a lease."""
        self.asked_back += 1

    def processes(self) -> list[Process]:
        """Those that live."""
        found = [host.process for host in self.hosts if host.is_up]
        return [process for process in found if process is not None]

    def count(self, kind: str) -> None:
        """A fault was injected."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self._leader_died_us = None
        self.trace(f"--- {kind}")

    def blame(self, problem: str) -> None:
        """The promise is broken; there is no need to go on."""
        self.trace(f"!!! {problem}")
        self.problems.append(problem)
        self.timeline.end()

    def crashed(self, process: Process, error: BaseException) -> None:
        """Production code raised what nobody catches."""
        self.blame(f"{process.name} crashed: {error!r}")
        if self._tell is not None:
            import traceback

            self._tell("".join(traceback.format_exception(error)))

    def said(self, process: Process, text: str) -> None:
        """A scheduler said something."""
        self.trace(f"{process.name} says: {text}")
        if text.startswith("leading epoch=1 ") and self._was_led:
            self.judge.begins_from_nothing()
        self._was_led = self._was_led or text.startswith("leading ")
        if text.startswith("leading ") and self._leader_died_us is not None:
            took_us, self._leader_died_us = self.timeline.now_us - self._leader_died_us, None
            self.takeovers_us.append(took_us)
            if took_us > TAKEOVER_US:
                self.blame(f"L3: a standby took {took_us // 1000} ms to lead")

    def note(self, connection: Connection, words: list[bytes]) -> None:
        """A command is about to be carried out."""
        self._trace.update(b"%d %d %b" % (self.timeline.now_us, connection.number, b" ".join(words)))
        if self._tell is not None:
            shown = b" ".join(word[:120] for word in words if len(word) < 400).decode("utf-8", "replace")
            self.trace(f"{connection.process.name}: {shown[:300]}")

    def trace(self, line: str) -> None:
        """One line for whoever watches."""
        if self._tell is not None:
            self._tell(f"{self.timeline.now_us / 1e6:11.6f} {line}")

    def read_hash(self, key: bytes) -> dict[bytes, bytes]:
        """What a hash of the server holds."""
        flat: Any = self.host.server.execute([b"HGETALL", key])
        return dict(zip(flat[::2], flat[1::2], strict=True)) if isinstance(flat, list) else {}

    # ------------------------------------------------------------ what faults do

    def kill(self, process: Process) -> None:
        """Kill a process; its machine starts another one after a while."""
        led = any(host.process is process and host.leads for host in self.schedulers)
        process.kill()
        for host in self.hosts:
            if host.process is process:
                self.restart_later(host)
        if led and self._is_heir_ready():
            self.timeline.after(0, self._leader_died)  # behind the count of what killed it

    def _leader_died(self) -> None:
        self._leader_died_us = self.timeline.now_us

    def _is_heir_ready(self) -> bool:
        standing_by = [host for host in self.schedulers if host.is_up and host.status.role == "standing by"]
        ready = [host.process for host in standing_by if host.process is not None]
        is_well = self.host.is_up and not self.host.is_stalled and self.settings.network.is_quick
        return is_well and any(process.state == "runs" and not process.partitioned for process in ready)

    def restart_later(self, host: SchedulerHost | ServiceHost) -> None:
        """Start its process again, once it is gone."""

        def restart() -> None:
            if host.is_up:
                self.timeline.after(1_000_000, restart)
            elif not self.is_calm or isinstance(host, SchedulerHost):
                host.start()

        self.timeline.after(int(self.random.uniform(0.1, 8.0) * 1_000_000), restart)

    def stop(self, process: Process, for_us: int) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        process.stop()
        self.timeline.after(for_us, lambda: self.go_on(process))

    def go_on(self, process: Process) -> None:
        """SIGCONT."""
        if self.cards.is_excused(process):
            turns_us = 0 if process.loop is None else process.loop.busy_until_us
            process.excused_until_us = max(self.timeline.now_us, turns_us) + UNLOAD_US
            self.cards.excuse(process)
        process.go_on()

    def server_down(self, what: Callable[[], object], *, loses: bool = False) -> bool:
        """The server is gone for a while; meanwhile `what` becomes of its data."""
        if not self.host.is_up:
            return False
        self._leader_died_us = None  # a replica that takes over was counted when it began to lag
        self.host.go_down()
        what()
        if loses:
            self.log_changed()
        self.timeline.after(int(self.random.choice((0.05, 1.0, 5.0)) * self.random.random() * 1e6), self.host.come_up)
        return True

    def log_changed(self, deleted_id: str | None = None) -> None:
        """Entries of the log may be gone. `deleted_id`: this one is, and has to be missed."""
        self.judge.begin_anew(deleted_id)

    # ------------------------------------------------------------ its course

    def run(self) -> World:
        """From beginning to end."""
        with self._opened():
            self._live()
        return self

    @contextmanager
    def _opened(self) -> Iterator[None]:
        bindings = Bindings()
        world_now.enter(self)
        event_loop.begin()
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(lambda generator: None, lambda generator: None)
        log, was_collecting = logging.getLogger("gpuboss.client"), gc.isenabled()
        log.addFilter(_silent)
        gc.freeze()  # what was there before is not looked at again for each world
        gc.disable()  # what is dead is taken apart at one moment, and not whenever it is collected
        try:
            bindings.bind()
            self.guards.switch_off(bindings)
            yield
        finally:
            self._bury()
            bindings.undo()
            log.removeFilter(_silent)
            sys.set_asyncgen_hooks(*hooks)
            world_now.leave()
            gc.unfreeze()
            if was_collecting:
                gc.enable()

    def _live(self) -> None:
        settings = self.settings
        self.host.server.appendfsync = "always" if settings.is_strict else "everysec"
        self.schedulers += [SchedulerHost(self, number) for number in range(settings.schedulers)]
        self.services += [
            ServiceHost(self, number, service, instance) for number, (service, instance) in enumerate(settings.services)
        ]
        for host in self.hosts:
            self.timeline.after(int(self.random.random() * 500_000), host.start)
        self.timeline.after(1_500_000, self._stir)
        self._run_until(1_500_000 + settings.stir_us, lambda: False)
        self._heal()
        # Holders may have to be waited for one after the other: each is silent, and then its memory lingers.
        patience_us = 4 * (settings.session_ttl_ms + settings.lock_delay_ms) * 1000 + int(HEALTHY_S * 1e6)
        self._run_until(self.timeline.now_us + patience_us, self._is_quiet)
        if not self.problems:
            self._check_ended()

    def _stir(self) -> None:
        self.network.faults = self.settings.network
        self.faults.begin()

    def _heal(self) -> None:
        """Whatever is broken works again, and nobody asks for more."""
        self.trace("--- healing")
        self.faults.end()
        self.is_calm = True
        self._healed_us = self.timeline.now_us
        self.network.faults = NO_FAULTS
        self.host.go_on()
        self.host.come_up()
        self.network.break_half_open()
        for process in self.processes():
            if process.partitioned:
                self.network.heal(process)
            self.go_on(process)
        if not any(host.is_up for host in self.schedulers):
            self.schedulers[0].start()

    def _run_until(self, until_us: int, done: Callable[[], bool]) -> None:
        """`done` is asked now and then."""
        timeline, looked_us = self.timeline, 0
        while timeline.now_us < until_us and timeline.run_past(min(looked_us + LOOK_EVERY_US, until_us - 1)):
            if timeline.now_us - looked_us > LOOK_EVERY_US:
                looked_us = timeline.now_us
                if done():
                    return
        if timeline.steps == timeline.steps_max:
            self.blame(f"still not at rest after {STEPS_MAX} steps")

    def _is_quiet(self) -> bool:
        """Whether everything is over that was begun, also what somebody has just begun at the console, and was already
        when it was asked last: whoever began to lead since may not have decided on what it found."""
        rows = self.read_hash(b"gpuboss:leases"), self.read_hash(b"gpuboss:queue")
        was_over = self._is_over
        self._is_over = (
            not any(host.is_up and not host.is_done for host in self.services)
            and not any(rows)
            and any(host.leads for host in self.schedulers)
        )
        return was_over and self._is_over and self.timeline.now_us - self._healed_us >= SETTLED_US

    def _check_ended(self) -> None:
        for host in self.services:
            if host.is_up and not host.is_done and not self.judge.is_answer_lost:
                self.blame(f"L1: a task of {host.name} still waits for an answer, or to be closed")
        if not any(host.leads for host in self.schedulers):
            self.blame("L3: nobody leads")
        self.judge.finish()

    def _bury(self) -> None:
        """Take everything apart, so that nothing of it runs when it is collected."""
        self.timeline.forget()
        for process in self.processes():
            process.kill()
        self.timeline.forget()
        with in_silence():
            for process in self.born:
                process.bury()
            gc.collect()


class _Silent(logging.Filter):
    """What the client logs is expected in a world full of faults; a bug of it is not."""

    def filter(self, record: logging.LogRecord) -> bool:
        world = world_now.world_now()
        if record.exc_info is not None and world.current is not None:
            world.blame(f"the client logs: {record.getMessage()}: {record.exc_info[1]!r}")
        return False


_silent = _Silent()
