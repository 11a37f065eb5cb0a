"""The life of a scheduler: reach Redis, stand by, recover from the log, lead, and hand over."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import gpuboss
from gpuboss.config import Config, redact_url
from gpuboss.connection import connect
from gpuboss.core.ledger import device_key
from gpuboss.core.machine import entry_ms
from gpuboss.core.state import State
from gpuboss.events import DeviceLost, DeviceObserved, Event, PolicySet
from gpuboss.keys import Keys
from gpuboss.log import LogReader
from gpuboss_scheduler.chores import Chores
from gpuboss_scheduler.clock import LogClock
from gpuboss_scheduler.commit import Shown, commit_script
from gpuboss_scheduler.election import LOOK_S, Claim, Watch, claim, look
from gpuboss_scheduler.failpoints import failpoint
from gpuboss_scheduler.leader import Leader
from gpuboss_scheduler.projections import write_all
from gpuboss_scheduler.recovery import Recovered, recover
from gpuboss_scheduler.reign import Reign
from gpuboss_scheduler.scripts import Deposed
from gpuboss_scheduler.server_checks import durability_of
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
        node: str,
        devices: Sequence[DeviceObserved],
        name: str,
        status: Status,
        stopping: Callable[[], bool],
    ) -> None:
        self._url = config.gpu.redis_url
        self._keys = Keys(config.gpu.namespace)
        self._config = config.scheduler
        self._node = node
        self._devices = devices
        self._name = name
        self._status = status
        self._stopping_asked = stopping
        self._standing_by = False
        self._trust = Trust(config.scheduler.session_ttl_ms)

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
        """Wait until nobody leads, and claim. None if told to stop."""
        watch = Watch()
        while not self._stopping():
            seen = look(client, self._keys)
            self._trust.answered()
            ours = seen.leader == self._name  # it was us, before the connection broke
            if ours or watch.vacant(seen):
                recovered = recover(LogReader(client, self._keys), seen.cursor)
                failpoint("recovered")
                won = claim(
                    client,
                    self._keys,
                    seen,
                    epoch=recovered.epoch,
                    seq=recovered.seq,
                    cursor=recovered.cursor,
                    incarnation=recovered.state.incarnation,
                    about=self._about(durability),
                )
                if won is not None:
                    failpoint("claimed")
                    return won, recovered
            if not self._standing_by:
                self._standing_by = True
                say("standing by")
            self._status.role, self._status.problem = "standing by", ""
            time.sleep(LOOK_S)
        return None

    def _reign(self, client: redis.Redis, won: Claim, recovered: Recovered) -> None:
        reign, state = won.reign, recovered.state
        wire = Wire(self._url, commit_script)
        try:
            clock = LogClock(entry_ms(won.elected_id))
            snapshots = Snapshots(reign, state, self._config.snapshot_every)
            chores = Chores(reign, state, clock, self._trust, snapshots)
            shown = Shown(state, self._keys, self._config.replies_max)
            leader = Leader(wire, reign, state, shown, recovered.cursor, clock, chores)
            with reign.kept_alive():
                through = self._write_facts(reign, recovered) or won.elected_id
                failpoint("facts-appended")
                write_all(reign, state)
                leader.catch_up(through)
            clock.at_least(state.now_ms)
            say(f"leading epoch={reign.epoch} cursor={state.last_id}")
            self._standing_by = False
            self._status.role, self._status.problem = "leading", ""
            leader.lead(self._stopping)
            snapshots.write()
            reign.resign()
        except Deposed as deposed:
            say(f"another scheduler leads ({deposed})")
        finally:
            wire.close()

    def _write_facts(self, reign: Reign, recovered: Recovered) -> str | None:
        """What a new leader finds, before it decides anything: the rules, the devices, and who is dead."""
        state = recovered.state
        facts: list[Event] = []
        policy = self._policy()
        if policy != state.policy or not state.policy_recorded:
            facts.append(policy)
        facts += _device_facts(state, self._node, self._devices)
        last_id = reign.append(facts) if facts else None
        members = [*state.sessions, *recovered.tail_sessions]
        if self._trust.holds() and lose_silent_sessions(reign, members, policy.session_ttl_ms):
            last_id = LogReader(reign.client, self._keys).last_id()
        return last_id

    def _policy(self) -> PolicySet:
        policy = self._config.policy
        return PolicySet(
            head_start_ms=policy.head_start_ms,
            margin_mib=policy.margin_mib,
            session_ttl_ms=self._config.session_ttl_ms,
            lock_delay_ms=self._config.lock_delay_ms,
        )

    def _about(self, durability: str) -> dict[str, str | int]:
        return {
            "leader": self._name,
            "version": gpuboss.__version__,
            "durability": durability,
            "session_ttl_ms": self._config.session_ttl_ms,
        }


def _device_facts(state: State, node: str, devices: Sequence[DeviceObserved]) -> list[Event]:
    """What the log does not know of this node's devices yet."""
    known = {key: device.observed for key, device in state.ledger.devices.items()}
    here = {device_key(device.node, device.device): device for device in devices}
    gone = [
        DeviceLost(node=node, device=observed.device)
        for key, observed in known.items()
        if observed.node == node and key not in here
    ]
    return [*gone, *(device for key, device in here.items() if known.get(key) != device)]
