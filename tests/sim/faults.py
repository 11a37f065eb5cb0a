"""What goes wrong in a world: who is killed or cut off, what the server loses, what strangers do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.core.audited_log import SERVICE_TYPES
from tests.sim.processes import Process
from tests.sim.settings import DELETION
from tests.sim.streams import parse_id

if TYPE_CHECKING:
    from tests.sim.world import World

EVENTS, SCHEDULER, LEASES = b"gpuboss:events", b"gpuboss:scheduler", b"gpuboss:leases"
HOUR_US = 3_600 * 1_000_000


class Faults:
    """Strikes as the seed's settings say, until the world is to heal."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = world.random
        self._is_over = False

    def begin(self) -> None:
        """From now on."""
        for kind in self._world.settings.faults_s:
            self._plan(kind)

    def end(self) -> None:
        """No more of it; what is broken is left to `World.heal`."""
        self._is_over = True

    def at_failpoint(self, process: Process, name: str) -> None:
        """A scheduler is at one of its steps: it may die here, or stand still."""
        world = self._world
        if self._is_over or not world.settings.failpoints or self._chance.random() >= world.settings.failpoints:
            return
        if self._chance.random() < 0.6:
            world.count("scheduler killed at a step")
            world.kill(process)
        else:
            world.count("scheduler stopped at a step")
            world.stop(process, int(self._chance.uniform(0.5, 20.0) * 1_000_000))

    def later(self, delay_us: int, what: Callable[[], object]) -> None:
        """Do this, unless it is over by then."""
        self._world.timeline.after(delay_us, lambda: self._is_over or what())

    def _plan(self, kind: str) -> None:
        mean_s = self._world.settings.faults_s[kind]
        delay_us = int(self._chance.expovariate(1 / mean_s) * 1_000_000)
        self._world.timeline.after(delay_us, lambda: self._strike(kind))

    def _strike(self, kind: str) -> None:
        if not self._is_over:
            if KINDS[kind](self._world):
                self._world.count(kind)
            self._plan(kind)


# -------------------------------------------------------------------- processes


def _kill_scheduler(world: World) -> bool:
    up = [host for host in world.schedulers if host.is_up]
    leading = [host for host in up if host.leads]
    if not up:
        return False
    host = world.random.choice(leading or up)
    assert host.process is not None
    world.kill(host.process)
    return True


def _terminate_scheduler(world: World) -> bool:
    leading = [host for host in world.schedulers if host.leads]
    if not leading:
        return False
    host = world.random.choice(leading)
    host.terminate()
    assert host.process is not None
    world.restart_later(host)
    return True


def _stop_scheduler(world: World) -> bool:
    return _stop(world, [host.process for host in world.schedulers if host.leads])


def _stop_service(world: World) -> bool:
    return _stop(world, [host.process for host in world.services if host.is_up])


def _stop(world: World, candidates: list[Process | None]) -> bool:
    processes = [process for process in candidates if process is not None]
    if not processes:
        return False
    longest_s = world.random.choice((1.0, 5.0, 20.0, 60.0))
    world.stop(world.random.choice(processes), int(world.random.uniform(0.05, longest_s) * 1_000_000))
    return True


def _kill_service(world: World) -> bool:
    up = [host for host in world.services if host.is_up]
    if not up:
        return False
    process = world.random.choice(up).process
    assert process is not None
    world.kill(process)
    return True


def _terminate_service(world: World) -> bool:
    up = [host for host in world.services if host.is_up]
    if not up:
        return False
    host = world.random.choice(up)
    host.terminate()
    world.restart_later(host)
    return True


def _cut_off(world: World) -> bool:
    """One process reaches nobody for a while."""
    processes = [process for process in world.processes() if not process.partitioned]
    if not processes:
        return False
    process = world.random.choice(processes)
    process.partitioned = True
    longest_s = world.random.choice((1.0, 8.0, 40.0))
    delay_us = int(world.random.uniform(0.1, longest_s) * 1_000_000)
    world.timeline.after(delay_us, lambda: world.network.heal(process))
    return True


# -------------------------------------------------------------------- the server


def _kill_server(world: World) -> bool:
    return world.server_down(world.host.server.kill)


def _lose_power(world: World) -> bool:
    back_us = int(world.random.uniform(0.0, 2.0) * 1_000_000)

    def lose() -> None:
        lost = world.host.server.lose_power(back_us)
        if lost and world.settings.is_strict:
            world.blame(f"durability: {lost} commands were answered under `strict`, and are gone")

    return world.server_down(lose, loses=True)


def _lose_all(world: World) -> bool:
    return world.server_down(world.host.server.lose_all, loses=True)


def _flush(world: World) -> bool:
    if not world.host.is_up:
        return False
    world.host.ask(b"FLUSHALL")
    world.log_changed()
    return True


def _fail_over(world: World) -> bool:
    """A replica that lags takes over."""
    if not world.host.is_up:
        return False
    checkpoint = world.host.server.checkpoint()
    lag_us = int(world.random.choice((0.01, 0.3, 3.0)) * world.random.random() * 1_000_000)
    world.timeline.after(lag_us, lambda: world.server_down(lambda: world.host.server.fail_over(checkpoint), loses=True))
    return True


def _stall_server(world: World) -> bool:
    if not world.host.is_up:
        return False
    world.host.stall()
    longest_s = world.random.choice((0.5, 5.0, 60.0))
    world.timeline.after(int(world.random.uniform(0.05, longest_s) * 1_000_000), world.host.go_on)
    return True


def _jump_clock(world: World) -> bool:
    """The server's wall clock is set: by a little, as NTP does, or by up to an hour."""
    most_us = world.random.choice((1_000_000, HOUR_US, HOUR_US))
    by_us = world.random.choice((-1, 1)) * int(most_us * world.random.random())
    world.host.jump(by_us)
    if by_us > 5_000_000:
        world.judge.clock_jumped()
    return True


# -------------------------------------------------------------------- operators and strangers


def _empty_log(world: World) -> bool:
    """Somebody deletes the log, or all entries of it, while somebody leads: where nobody runs who knows the log, what
    is written into it afterwards looks like a log of its own."""
    if not world.host.is_up or not any(host.leads for host in world.schedulers):
        return False
    world.host.ask(*world.random.choice(((b"XTRIM", EVENTS, b"MAXLEN", b"0"), (b"DEL", EVENTS))))
    world.log_changed()
    return True


def _delete_entry(world: World, looks: int = 100) -> bool:
    """Somebody deletes what a service has said and no scheduler has read. That is seldom there for long."""
    entries: Any = world.host.server.execute([b"XREVRANGE", EVENTS, b"+", b"-", b"COUNT", b"10"])
    told = world.host.told_through
    unread = [
        entry_id
        for entry_id, fields in entries
        if parse_id(entry_id) > told
        and fields[1].decode("latin-1") in SERVICE_TYPES
        and fields[3] not in world.judge.injected
    ]
    if unread and world.host.is_up:
        entry_id = world.random.choice(unread)
        world.host.ask(b"XDEL", EVENTS, entry_id)
        world.log_changed(entry_id.decode())
        world.count(DELETION)
    elif looks:
        world.faults.later(3_000, lambda: _delete_entry(world, looks - 1))
    return False


def _delete_rows(world: World) -> bool:
    """A force release, of one lease or of all. Nobody vouches for memory that is still there: see `Cards`."""
    if not world.host.is_up:
        return False
    rows = world.read_hash(LEASES)
    held = [lease_id for lease_id, row in rows.items() if json.loads(row)["state"] != "reclaiming"]
    if not held:
        return False
    if len(held) == len(rows) and world.random.random() < 0.3:
        world.host.ask(b"DEL", LEASES)
    else:
        world.host.ask(b"HDEL", LEASES, world.random.choice(held))
    return True


def _revoke(world: World) -> bool:
    if not world.host.is_up:
        return False
    open_ids = [*world.read_hash(LEASES), *world.read_hash(b"gpuboss:queue")]
    held = [
        lease_id
        for lease_id in open_ids
        if json.loads(world.read_hash(LEASES).get(lease_id, b'{"state":""}'))["state"] != "reclaiming"
    ]
    if not held:
        return False
    grace_ms = world.random.choice((0, 0, 500, 3_000))
    data = {"lease_id": world.random.choice(held).decode(), "reason": "test", "by": "operator", "grace_ms": grace_ms}
    _append(world, b"LeaseRevoked", json.dumps(data).encode())
    return True


def _repeat(world: World) -> bool:
    """An entry of a service comes once more: a proxy, or a client that never heard that it was taken."""
    entries: Any = world.host.server.execute([b"XREVRANGE", EVENTS, b"+", b"-", b"COUNT", b"40"])
    if not world.host.is_up or not isinstance(entries, list):
        return False
    said = [fields for _, fields in entries if fields[1] in (b"LeaseRequested", b"LeaseReleased", b"LeaseReasserted")]
    if not said:
        return False
    fields = world.random.choice(said)
    world.host.ask(b"XADD", EVENTS, b"*", *fields)
    return True


HOSTILE = (
    (b"LeaseRequested", b"{"),
    (b"LeaseRequested", b'{"lease_id":"hostile-0001","service":"service-0","vram_mib":-5}'),
    (b"LeaseRequested", b'{"lease_id":"hostile-0002","service":"service-0","vram_mib":99999}'),
    (b"LeaseReleased", b'{"lease_id":"hostile-0003","service":"service-0"}'),
    (b"Nonsense", b"{}"),
    (
        b"LeaseGranted",
        b'{"cause":"1-1","lease_id":"hostile-0004","service":"service-0","node":"node",'
        b'"device":"cuda:0","devices":["cuda:0"],"uuids":["x"],"vram_mib":1,"granted_at_ms":1,"expires_at_ms":null,'
        b'"waited_ms":0,"fence":1}',
    ),
    (b"SessionLost", b'{"service":"service-0","session":"00000000","epoch":1,"seq":1}'),
    (b"VramReclaimed", b'{"lease_id":"hostile-0005","how":"nvml"}'),
    (b"\xff\xfe", b"\x00" * 64),
)


def _say_nonsense(world: World) -> bool:
    if not world.host.is_up:
        return False
    _append(world, *world.random.choice(HOSTILE))
    return True


def _write_as_deposed(world: World) -> bool:
    """Somebody who does not lead writes as if it did: the scripts must refuse."""
    epoch = world.read_hash(SCHEDULER).get(b"epoch") if world.host.is_up else None
    if epoch is None:
        return False
    from gpuboss_scheduler import reign

    fact = b'{"now_ms":1,"epoch":1,"seq":1}'
    old = b"%d" % (int(epoch) - 1)
    words = old, b"0", b"1", b"", b"ClockTicked", fact
    world.host.ask(b"EVAL", reign._append.text.encode(), b"2", SCHEDULER, EVENTS, *words)
    return True


def _append(world: World, kind: bytes, data: bytes) -> None:
    if kind != b"LeaseRevoked":
        world.judge.injected.add(data)
    world.host.ask(b"XADD", EVENTS, b"*", b"type", kind, b"data", data)


KINDS: dict[str, Callable[[Any], bool]] = {
    "scheduler killed": _kill_scheduler,
    "scheduler told to end": _terminate_scheduler,
    "scheduler stopped": _stop_scheduler,
    "service killed": _kill_service,
    "service told to end": _terminate_service,
    "service stopped": _stop_service,
    "process cut off": _cut_off,
    "server killed": _kill_server,
    "power lost": _lose_power,
    "everything lost": _lose_all,
    "flushed": _flush,
    "failed over": _fail_over,
    "server stalled": _stall_server,
    "clock jumped": _jump_clock,
    "log emptied": _empty_log,
    "rows deleted": _delete_rows,
    DELETION: _delete_entry,
    "revoked": _revoke,
    "entry repeated": _repeat,
    "nonsense said": _say_nonsense,
    "written as deposed": _write_as_deposed,
}
