"""What a fault happens to: schedulers and services at work on one server, and the judgement over what they leave."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from types import TracebackType

from tests.real.chaos.outcome import Outcome
from tests.real.log_check import faults_of
from tests.real.redis_view import RedisView
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer
from tests.real.workers import Worker
from tests.verdict.history import Note, double_promises, lost_answers
from tests.verdict.log import granted_twice

SESSION_TTL_S = 2.0
CARD_MIB = 24_576
CAPACITY_MIB = {f"node-a/cuda:{number}": CARD_MIB for number in (0, 1)}


class Stage:
    """A namespace of its own on `server`, reached by all at `url`, with a short session TTL and no lock delay."""

    def __init__(
        self,
        server: RealServer,
        seed: int,
        *,
        url: str | None = None,
        namespace: str = "gpuboss",
        workers: int = 2,
        session_ttl_s: float = SESSION_TTL_S,
        scheduler: str = "gpuboss_scheduler",
    ) -> None:
        self.server = server
        self.namespace = namespace
        self.url = url or server.url
        self.session_ttl_s = session_ttl_s
        self.workers: list[Worker] = []
        self.schedulers: list[SchedulerProcess] = []
        self._seed = seed
        self._workers = workers
        self._scheduler = scheduler
        self._stack = contextlib.ExitStack()
        self._folder = Path()

    def __enter__(self) -> Stage:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self.start_scheduler().wait_leading()
        for number in range(self._workers):
            self.start_worker(f"worker-{number}")
        self.await_grant(time.monotonic())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start_scheduler(self, url: str | None = None) -> SchedulerProcess:
        """One more scheduler; the first one leads, the others stand by."""
        scheduler = SchedulerProcess(
            url or self.url,
            namespace=self.namespace,
            session_ttl=f"{round(self.session_ttl_s * 1000)}ms",
            lock_delay="0",
            module=self._scheduler,
        )
        self.schedulers.append(self._stack.enter_context(scheduler))
        return scheduler

    def start_worker(self, name: str, url: str | None = None) -> Worker:
        """One more process of services; they note what they see."""
        worker = Worker(url or self.url, name, self._folder, namespace=self.namespace, seed=self._seed)
        self._stack.callback(worker.end)
        self.workers.append(worker)
        eventually(worker.is_at_work, f"{name} to ask for something")
        return worker

    def leader(self) -> SchedulerProcess | None:
        """Who leads, if anybody does."""
        with self.server.client() as client:
            named = RedisView(client, self.namespace).scheduler().get("leader", "").split(":")
        return next((each for each in self.schedulers if each.pid is not None and str(each.pid) in named), None)

    def await_leader(self, *, not_: SchedulerProcess | None = None) -> SchedulerProcess:
        """Wait until somebody leads, and somebody else than `not_`."""
        found: list[SchedulerProcess] = []

        def leads() -> bool:
            leader = self.leader()
            found[:] = [leader] if leader is not None and leader is not not_ else []
            return bool(found)

        eventually(leads, f"a leader; {self._said()}")
        return found[0]

    def history(self) -> list[Note]:
        """What all services noted so far."""
        return [note for worker in self.workers for note in worker.notes()]

    def await_grant(self, after_s: float, worker: Worker | None = None) -> int:
        """Wait for the first grant, to one worker or to any, after a moment of the monotonic clock; returns how long it
        took from there (ms)."""
        late: list[float] = []

        def granted() -> bool:
            notes = self.history() if worker is None else worker.notes()
            late[:] = [note.at_s for note in notes if note.what == "granted" and note.at_s > after_s]
            return bool(late)

        eventually(granted, f"a grant; {self._said()}")
        return round((min(late) - after_s) * 1000)

    def await_grants(self, number: int) -> None:
        """Wait for so many grants from now on."""
        for _ in range(number):
            self.await_grant(time.monotonic())

    def judge(self, faults: int, took_ms: list[int]) -> Outcome:
        """End the services, and see what is left."""
        for worker in self.workers:
            worker.stop()
        complaints = [complaint for worker in self.workers for complaint in worker.wait()]
        history = self.history()
        with self.server.client() as client:
            view = RedisView(client, self.namespace)
            with contextlib.suppress(AssertionError):
                eventually(lambda: not view.rows("leases") and not view.rows("queue"), "all rows to go")
            left = {name: view.rows(name) for name in ("leases", "queue")}
            complaints += [f"rows of {name} are left that are over: {rows}" for name, rows in left.items() if rows]
            in_log = faults_of(view) + granted_twice(view.entries())
        doubled = double_promises(history, CAPACITY_MIB) + in_log
        lost = lost_answers(history) + complaints
        return Outcome(faults, took_ms, len([note for note in history if note.what == "asked"]), doubled, lost)

    def _said(self) -> str:
        return f"the schedulers say: {[each.stderr[-500:] for each in self.schedulers]}"
