"""The life of a scheduler: reach Redis, stand by, recover from the log, lead, and hand over."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

import gpuboss
from gpuboss.config import Config, RetentionConfig, SchedulerConfig, redact_url
from gpuboss.connection import connect
from gpuboss.core.machine import CORE_VERSION, entry_ms
from gpuboss.core.state import State
from gpuboss.core.stream_ids import is_id, is_later, parse_id
from gpuboss.keys import Keys
from gpuboss.log import LogReader, NewerLog
from gpuboss_scheduler.chores import Chores
from gpuboss_scheduler.clock import LogClock
from gpuboss_scheduler.commit import Shown, commit_script
from gpuboss_scheduler.devices import nvml
from gpuboss_scheduler.devices.settling import Settling
from gpuboss_scheduler.election import LOOK_S, Claim, Seen, Watch, claim, look
from gpuboss_scheduler.failpoints import failpoint
from gpuboss_scheduler.known_log import Known, KnownLog
from gpuboss_scheduler.leader import Leader
from gpuboss_scheduler.projections import write_all
from gpuboss_scheduler.recovery import Overtaken, Recovered, SnapshotAhead, recover
from gpuboss_scheduler.reign import LEADERSHIP_MS, Reign
from gpuboss_scheduler.retention import Retention
from gpuboss_scheduler.rules import Rules
from gpuboss_scheduler.scripts import Deposed
from gpuboss_scheduler.segments import SegmentWriter
from gpuboss_scheduler.server_checks import durability_of, renew_aof, run_id_of
from gpuboss_scheduler.sessions import Trust, lose_silent_sessions
from gpuboss_scheduler.snapshots import Snapshots
from gpuboss_scheduler.status import Status
from gpuboss_scheduler.talk import say
from gpuboss_scheduler.wire import Wire

if TYPE_CHECKING:
    import redis

RETRY_S = 0.5


class Scheduler:
    """One candidate for leadership. `name` is unique to the process."""

    def __init__(
        self,
        config: Config,
        rules: Rules,
        name: str,
        status: Status,
        stopping: Callable[[], bool],
        known_log: KnownLog,
    ) -> None:
        self._url = config.gpu.redis_url
        self._keys = Keys(config.gpu.namespace)
        self._config = config.scheduler
        self._rules = rules
        self._checked = False  # whether the rules are such as the devices can bear
        self._name = name
        self._status = status
        self._stopping_asked = stopping
        self._known_log = known_log
        self._standing_by = False
        self._newer: tuple[tuple[Seen, str | None], NewerLog] | None = None  # a log that cannot be led, and why
        self._trust = Trust(config.scheduler.session_ttl_ms)
        self._settling = None if config.scheduler.devices is not None else Settling(nvml.used_mib)

    def run(self) -> None:
        """Until told to stop. Redis may go away and come back; raises `ConfigError` and `LogDamaged`."""
        import redis

        reached = True
        while not self._stopping():
            try:
                self._run_connected()
            except redis.RedisError as error:
                # Refusals too: the server is full, or cannot write its disk, or was made a replica. It may pass.
                what = "refuses" if isinstance(error, redis.ResponseError) else "does not answer"
                if reached:
                    say(f"Redis at {redact_url(self._url)} {what} ({error}); trying again")
                reached = False
                self._status.role, self._status.problem = "starting", f"Redis {what}: {error}"
                time.sleep(RETRY_S)
            else:
                reached = True
        self._status.role = "stopped"

    def _run_connected(self) -> None:
        client = connect(self._url)
        try:
            durability = durability_of(client)
            if durability == "none":
                say("durability: none, the server keeps no AOF: a restart of the server loses the log and all leases")
            if not self._checked:
                self._rules.check(client, self._keys)
                self._checked = True
            while not self._stopping():
                won = self._stand_by(client, durability)
                if won is not None:
                    self._reign(client, *won)
        finally:
            client.close()

    def _stopping(self) -> bool:
        self._status.turn()
        return self._stopping_asked()

    def _stand_by(self, client: redis.Redis, durability: str) -> tuple[Claim, Recovered] | None:
        """Wait until nobody leads, or until somebody does who does not know that entries of the log are gone, and
        claim. None if told to stop."""
        watch, log = Watch(), LogReader(client, self._keys)
        was_away = self._trust.silent_s() > LEADERSHIP_MS / 1000  # somebody else may have led meanwhile
        while not self._stopping():
            seen, server_ms = look(client, self._keys)
            self._trust.answered(server_ms)
            self._rules.reread(client, self._keys)
            ours = seen.leader == self._name and not was_away  # it was us, before the connection broke
            problem, won = "", None
            if _is_newer(seen.core):
                problem = str(NewerLog(int(seen.core)))
            elif (
                ours or _missed(self._known_log, seen, log) is not None or watch.vacant(seen, lambda: run_id_of(client))
            ):
                try:
                    won = self._try_to_lead(client, durability, seen)
                except NewerLog as newer:
                    problem = str(newer)
                except Overtaken:
                    continue
                if won is not None:
                    return won
            self._wait(problem)
        return None

    def _try_to_lead(self, client: redis.Redis, durability: str, seen: Seen) -> tuple[Claim, Recovered] | None:
        """Recover from the log, and claim. None if somebody else was faster."""
        log = LogReader(client, self._keys)
        if self._newer is not None and self._newer[0] == (seen, log.first_id()):
            raise self._newer[1]  # it need not be read again to know
        missed = _missed(self._known_log, seen, log) or _deleted_unread(seen, log)

        def is_stale() -> bool:
            return look(client, self._keys)[0] != seen

        try:
            try:
                recovered = recover(log, seen.cursor, is_lost=missed is not None, is_stale=is_stale)
            except SnapshotAhead as ahead:
                missed = ahead.known
                recovered = recover(log, seen.cursor, is_lost=True, is_stale=is_stale)
        except NewerLog as newer:
            self._newer = (seen, log.first_id()), newer
            raise
        failpoint("recovered")
        run_id = run_id_of(client)
        if seen.run_id not in ("", run_id) and durability != "none":
            renew_aof(client)
        facts = self._rules.facts(recovered.state)
        about = _about(self._name, durability, run_id, self._config.session_ttl_ms)
        won = claim(client, self._keys, seen, recovered, missed, facts, about)
        if won is None:
            return None
        failpoint("claimed")
        if missed is not None:
            say(f"entries of the log are gone: it ended at {missed.last_id}; a new incarnation begins")
            self._trust.lost()
        if recovered.is_of_other_rules:
            say(f"core {recovered.state.core} decided this log so far; from here on core {CORE_VERSION} does")
        return won, recovered

    def _wait(self, problem: str) -> None:
        """Stand by until the next look. `problem`: why this one could not lead if it had to; said once."""
        if not self._standing_by:
            self._standing_by = True
            say("standing by")
        if problem and problem != self._status.problem:
            say(f"cannot lead: {problem}")
        self._status.role, self._status.problem = "standing by", problem
        time.sleep(LOOK_S)

    def _reign(self, client: redis.Redis, won: Claim, recovered: Recovered) -> None:
        reign, state = won.reign, recovered.state
        wire = Wire(self._url, commit_script)
        try:
            # A jump of the server's clock that the log does not know of shows as soon as its tail is read.
            jumped_ms = self._trust.jumped_since_ms(max(state.now_ms, recovered.jump_told_ms))
            clock = LogClock(entry_ms(won.elected_id) - jumped_ms)
            snapshots = Snapshots(reign, state, self._config.snapshot_every)
            chores = Chores(reign, state, clock, self._trust, snapshots, self._seen, self._rules.follow)
            chores.lease_facts.settling = self._settling
            chores.retention = _retention(self._config, reign, state, clock, chores, self._status)
            reign.fence = state.fence
            shown = Shown(state, self._keys, self._config.replies_max)
            leader = Leader(wire, reign, state, shown, recovered.cursor, clock, chores)
            with reign.kept_alive():
                through = _lose_sessions(reign, recovered, self._config.session_ttl_ms, self._trust) or won.last_id
                failpoint("facts-appended")
                write_all(reign, state)
                if recovered.is_of_other_rules and LogReader(client, self._keys).holds(state.last_id):
                    snapshots.write()  # the last that other rules led to, before ours decide
                leader.catch_up(through)
            clock.at_least(state.now_ms)
            say(f"leading epoch={reign.epoch} cursor={state.last_id}")
            self._standing_by = False
            self._status.role = "leading"
            self._seen(state)
            leader.lead(self._stopping)
            snapshots.write_last()
            reign.resign()
        except Deposed as deposed:
            say(f"another scheduler leads ({deposed})")
        finally:
            self._status.trouble = ""
            self._note(state)  # what came since the last beat is the first to be lost
            wire.close()

    def _note(self, state: State) -> None:
        if state.incarnation:  # else nothing of the log was read yet
            self._known_log.note(Known(state.incarnation, state.epoch, state.last_id, state.fence))

    def _seen(self, state: State) -> None:
        """The log holds all that the state is made of."""
        self._note(state)
        until_ms = state.recovering_until_ms
        self._status.problem = ""
        if until_ms is not None:
            left_s = max(0, until_ms - state.now_ms) // 1000
            self._status.problem = f"recovering: entries of the log were lost, nothing is granted for {left_s} s"


def _lose_sessions(reign: Reign, recovered: Recovered, session_ttl_ms: int, trust: Trust) -> str | None:
    """Before anything is decided: who of those that matter is dead. Returns the id of the last fact about them."""
    members = [*recovered.state.sessions, *recovered.tail_sessions]
    if trust.holds() and lose_silent_sessions(reign, members, session_ttl_ms, trust):
        return LogReader(reign.client, reign.keys).last_id()
    return None


def _about(name: str, durability: str, run_id: str, session_ttl_ms: int) -> dict[str, str | int]:
    """What the hash shows of a leader."""
    return {
        "leader": name,
        "version": gpuboss.__version__,
        "durability": durability,
        "run_id": run_id,
        "session_ttl_ms": session_ttl_ms,
    }


def _is_newer(core: str) -> bool:
    """Whether the hash says that a newer core leads or led."""
    return core.isdecimal() and int(core) > CORE_VERSION


def _retention(
    config: SchedulerConfig, reign: Reign, state: State, clock: LogClock, chores: Chores, status: Status
) -> Retention | None:
    """What takes entries out of the log during a reign, if any are to go."""

    def tell(trouble: str) -> None:
        if trouble != reign.trouble:
            say(f"{trouble}; trying again" if trouble else "the log is trimmed again")
        status.trouble = reign.trouble = trouble

    if config.retention == RetentionConfig():
        return None
    writer = None if config.archive is None else SegmentWriter(Path(config.archive), reign.epoch)
    return Retention(reign, state, clock, chores.snapshots, config.retention, writer, chores.beat, tell)


def _missed(known_log: KnownLog, seen: Seen, log: LogReader) -> Known | None:
    """What is known of the log that is seen, from before or from the hash, if entries of it are gone."""
    epoch = int(seen.epoch) if seen.epoch.isdecimal() else 0
    missed = known_log.missed(seen.incarnation, epoch, log)
    known = _known(seen)
    if missed is None and known is not None and known_log.note(known):
        return known_log.missed(seen.incarnation, epoch, log)
    return missed


def _deleted_unread(seen: Seen, log: LogReader) -> Known | None:
    """What is known of the log, if somebody deleted an entry of it before a leader had read it, as far as can be known:
    what was read since the last leader looked counts as well."""
    known = _known(seen)
    if known is None or not is_id(seen.read_through) or not is_later(log.gone().deleted_through, seen.read_through):
        return None
    return replace(known, last_id=log.last_id() or known.last_id)


def _known(seen: Seen) -> Known | None:
    """What the hash says of the log; None where it, which anybody can write, does not. The entry that was decided last
    and the one that the leader knew last have to be there both: the later may have been written into an emptied log."""
    if not (is_id(seen.cursor) and seen.epoch.isdecimal() and seen.incarnation):
        return None
    fence = int(seen.fence) if seen.fence.isdecimal() else 0
    before_id, last_id = sorted([seen.cursor, seen.last_id if is_id(seen.last_id) else "0-0"], key=parse_id)
    return Known(seen.incarnation, int(seen.epoch), last_id, fence, "" if before_id in ("0-0", last_id) else before_id)
