"""What a decision costs at size: a million requests of mixed shapes wait for the devices of a large farm.

The core alone, in this process: `machine.step` over entries in memory, without Redis and without a commit. Every
figure is the CPU time of a whole step: decoding, decision and grant pass, by what the entry is. The rules that it is
made of (best fit, gang, reservation) are timed by themselves at the end, on the state as it is then.
"""

from __future__ import annotations

import gc
import itertools
import random
import resource
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from gpuboss.core import eviction, granting
from gpuboss.core.machine import step
from gpuboss.core.policy import DEFAULT_POLICY
from gpuboss.core.reservations import reserve
from gpuboss.core.state import State, Turn
from gpuboss.core.waitlist import Waiting, shape_of
from gpuboss.events import (
    ClockTicked,
    DeviceObserved,
    Event,
    LeaseReleased,
    LeaseRenewed,
    LeaseRequested,
    PolicySet,
    SchedulerElected,
)
from gpuboss.fields import WAITING_MAX, Priority
from scripts.bench import percentile, progress

SEED = 11
START_MS = 1_700_000_000_000
CARD_MIB = 81_920
GPUS_OF_NODE = 8
MODELS_MIB = tuple(range(2_048, 81_920, 2_048))  # what most ask for; the rest asks for any size whatever
TARGETS_US = {"submit": 100, "refill": 500, "best fit": 20, "gang": 1_000, "reservation": 5_000, "plan": 5_000}
TARGET_BYTES = 1_024


class Farm:
    """The core and a log that is forgotten as it is written: who holds and who waits is in the state."""

    def __init__(self, devices: int, seed: int = SEED) -> None:
        self.state = State()
        self.random = random.Random(seed)
        self.now_ms = START_MS
        self._number = itertools.count(1)
        self._asked = itertools.count(1)
        policy: PolicySet = msgspec.structs.replace(DEFAULT_POLICY, lock_delay_ms=0, max_waiting=WAITING_MAX)
        self.happens(SchedulerElected("bench", "0", 1, "log-1"), epoch=1)
        self.happens(policy)
        for number in range(devices):
            self.happens(self.observed(number))

    def observed(self, number: int, foreign_mib: int = 0) -> DeviceObserved:
        """One device as it is seen."""
        node, index = divmod(number, GPUS_OF_NODE)
        uuid = f"GPU-{node}-{index}"
        return DeviceObserved(
            f"node{node:04}", f"cuda:{index}", uuid, "card", CARD_MIB, foreign_mib=foreign_mib, simulated=True
        )

    def says(self, event: Event, **stamp: int) -> tuple[Turn, float]:
        """Somebody writes an event. Returns what it led to, and how long that took (us)."""
        data = msgspec.json.encode(msgspec.to_builtins(event) | stamp if stamp else event)
        return self._take(
            f"{self.now_ms}-{next(self._number)}", [b"type", type(event).__name__.encode(), b"data", data]
        )

    def happens(self, fact: Event, epoch: int | None = None) -> tuple[Turn, float]:
        """The scheduler writes a fact."""
        state = self.state
        return self.says(fact, epoch=state.epoch if epoch is None else epoch, seq=state.seq + 1)

    def _take(self, entry_id: str, fields: list[bytes]) -> tuple[Turn, float]:
        began = time.thread_time_ns()
        turn = step(self.state, entry_id, fields)
        return turn, (time.thread_time_ns() - began) / 1000

    def request(self) -> LeaseRequested:
        """One of the mix: sizes that many ask for and odd ones, classes, pins, gangs, exclusives, and nearly as many
        lengths of life as there are requests that have one."""
        draw, number = self.random, next(self._asked)
        vram_mib = draw.choice(MODELS_MIB) if draw.random() < 0.7 else draw.randint(1_024, CARD_MIB)
        gpus = draw.randint(2, GPUS_OF_NODE) if draw.random() < 0.06 else 1
        device = node = None
        pinned = draw.random()
        if pinned < 0.03 and gpus == 1:
            device = f"cuda:{draw.randrange(GPUS_OF_NODE)}"
        elif pinned < 0.05 and gpus == 1:
            device = draw.choice(list(self.state.ledger.devices.values())).observed.uuid
        elif pinned < 0.08:
            node = draw.choice(list(self.state.ledger.devices.values())).observed.node
        session = draw.randrange(10_000)
        priorities: tuple[Priority, ...] = ("low", "normal", "high")
        return LeaseRequested(
            f"lease-{number:012}",
            f"service-{session % 50:02}",
            vram_mib,
            draw.choices(priorities, (3, 6, 1))[0],
            device=device,
            node=node,
            gpus=gpus,
            exclusive=draw.random() < 0.03,
            ttl_ms=draw.randint(60_000, 7_200_000) if draw.random() < 0.7 else None,
            wait_ms=draw.randint(3_600_000, 86_400_000) if draw.random() < 0.5 else None,
            session=f"session-{session:08}",
        )

    def fill(self, waiting: int) -> Iterator[float]:
        """Ask until so many wait, at a thousand a second; yields what each that was queued took (us)."""
        while len(self.state.waitlist.by_id) < waiting:
            self.now_ms += 1
            request = self.request()
            _, took_us = self.says(request)
            if request.lease_id in self.state.waitlist.by_id:
                yield took_us


class Kind(NamedTuple):
    """What of one kind of decision took how long (us)."""

    name: str
    took_us: list[float]
    target: str | None = None


def fill(farm: Farm, waiting: int) -> list[float]:
    """Ask until so many wait. Returns what each took (us)."""
    took_us: list[float] = []
    for each in farm.fill(waiting):
        took_us.append(each)
        if len(took_us) % 1000 == 0:
            progress(f"{len(took_us):,} of {waiting:,} wait")
    return took_us


def held(farm: Farm) -> list[str]:
    """Who holds, in the order of the grants."""
    return list(farm.state.ledger.leases)


def refills(farm: Farm, rounds: int) -> list[Kind]:
    """A lease ends, and its device is filled again, with whom there is room for; of a gang all its devices are."""
    alone, gangs, each = (
        Kind("a lease ends, its device is filled", [], "refill"),
        Kind("a gang's lease ends, all are filled", []),
        Kind("the same, for each of its devices", [], "refill"),
    )
    for _ in range(rounds):
        farm.now_ms += 100
        lease = farm.state.ledger.leases[farm.random.choice(held(farm))]
        _, us = farm.says(LeaseReleased(lease.request.lease_id, lease.request.service))
        if lease.request.gpus == 1:
            alone.took_us.append(us)
        else:
            gangs.took_us.append(us)
            each.took_us.append(us / lease.request.gpus)
    return [alone, gangs, each]


def submits(farm: Farm, rounds: int) -> list[float]:
    """One more asks, and waits."""
    waiting = len(farm.state.waitlist.by_id)
    return list(farm.fill(waiting + rounds))


def cancels(farm: Farm, rounds: int) -> list[float]:
    """One who waits takes its request back."""
    chosen = farm.random.sample(list(farm.state.waitlist.by_id.values()), rounds)
    took_us = []
    for waiting in chosen:
        if waiting.gone:
            continue
        took_us.append(farm.says(LeaseReleased(waiting.request.lease_id, waiting.request.service))[1])
    return took_us


def renewals(farm: Farm, rounds: int) -> list[float]:
    """A holder wants to go on."""
    took_us = []
    for _ in range(rounds):
        lease = farm.state.ledger.leases[farm.random.choice(held(farm))]
        took_us.append(farm.says(LeaseRenewed(lease.request.lease_id, lease.request.service, 600_000))[1])
    return took_us


def ticks(farm: Farm, rounds: int) -> list[float]:
    """The next deadline is due: a lease ends by its TTL, a wait by its own end."""
    took_us = []
    for _ in range(rounds):
        timer = farm.state.next_timer()
        if timer is None:
            break
        farm.now_ms = max(farm.now_ms + 1, timer.deadline_ms)
        took_us.append(farm.happens(ClockTicked(farm.now_ms))[1])
    return took_us


def observations(farm: Farm, rounds: int) -> list[float]:
    """Somebody outside takes memory of a device, or gives it back."""
    devices = len(farm.state.ledger.devices)
    return [
        farm.happens(farm.observed(farm.random.randrange(devices), farm.random.choice((0, 1_024))))[1]
        for _ in range(rounds)
    ]


def newcomer(farm: Farm) -> Waiting:
    """A request of the mix that does not wait yet."""
    request = farm.request()
    return Waiting(0, 0, request, shape_of(request, request.priority, {}), 0, None, 0)


def rules(farm: Farm, rounds: int) -> list[Kind]:
    """The rules by themselves, for requests of the mix that do not wait yet."""
    best_fit, gang, reservation = (
        Kind("best fit (the rule alone)", [], "best fit"),
        Kind("gang (the rule alone)", [], "gang"),
        Kind("reservation (the rule alone)", [], "reservation"),
    )
    state = farm.state
    while len(gang.took_us) < rounds:
        waiting = newcomer(farm)
        began = time.thread_time_ns()
        granting.place_now(state, waiting.shape)
        placed = time.thread_time_ns()
        reserve(waiting, state.rooms, state.outlook.under(state.policy), state.reservations)
        ended = time.thread_time_ns()
        (best_fit if waiting.shape.gpus == 1 else gang).took_us.append((placed - began) / 1000)
        reservation.took_us.append((ended - placed) / 1000)
    return [best_fit, gang, reservation]


def plans(farm: Farm, rounds: int) -> Kind:
    """What to ask back for those of the mix who find nothing free, where any lease of a lower class may go at once."""
    state = farm.state
    any_time = msgspec.structs.replace(DEFAULT_POLICY.preempt_after_ms, normal=0, high=0)
    state.policy = msgspec.structs.replace(state.policy, preemption="lower", preempt_after_ms=any_time, min_run_ms=0)
    took_us: list[float] = []
    while len(took_us) < rounds:
        waiting = newcomer(farm)
        if waiting.shape.priority == "low" or granting.place_now(state, waiting.shape) is not None:
            continue
        began = time.thread_time_ns()
        eviction.find(state, waiting)
        took_us.append((time.thread_time_ns() - began) / 1000)
    return Kind("plan (the rule alone)", took_us, "plan")


def lookup_ns() -> float:
    """What a lookup in a dict costs here and now: by which figures of different machines and hours can be compared."""
    known, began = {1: 1}, time.thread_time_ns()
    for _ in range(100_000):
        known.get(1)
    return (time.thread_time_ns() - began) / 100_000


def memory_bytes() -> int:
    """What this process has resident."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def show(kinds: Iterable[Kind]) -> list[str]:
    """One line a kind. Returns what misses its target."""
    missed = []
    print(f"{'us':40}{'count':>9}{'p50':>10}{'p99':>10}{'max':>10}   p99 to reach")
    for name, took_us, target in kinds:
        if not took_us:
            print(f"{name:40}{0:>9}", flush=True)
            continue
        p50, p99, most = percentile(took_us, 50), percentile(took_us, 99), max(took_us)
        asked = "" if target is None else f"<= {TARGETS_US[target]:,}"
        if target is not None and p99 > TARGETS_US[target]:
            missed.append(f"{name}: p99 {p99:,.0f} us, asked {asked}")
        print(f"{name:40}{len(took_us):>9,}{p50:>10,.1f}{p99:>10,.1f}{most:>10,.0f}   {asked}", flush=True)
    return missed


def measure_size(waiting: int, devices: int, rounds: int) -> list[str]:
    """All figures. Returns what misses its target."""
    gc.set_threshold(100_000, 50, 1000)  # as the scheduler does
    farm = Farm(devices)
    print(f"a lookup in a dict, in a loop: {lookup_ns():.0f} ns (about 40 where nothing else runs)")
    print(f"{waiting:,} waiting, {devices:,} devices of {CARD_MIB:,} MiB on nodes of {GPUS_OF_NODE}, seed {SEED}")
    fill(farm, 1)  # the devices are full now
    before = memory_bytes()
    while_filling = fill(farm, waiting)
    gc.collect()
    each_bytes = (memory_bytes() - before) / waiting
    gc.freeze()
    progress("measuring")
    missed = show(measured(farm, while_filling, rounds))
    print(f"{'a waiting request':40}{each_bytes:>9,.0f} bytes resident   <= {TARGET_BYTES:,}")
    if each_bytes > TARGET_BYTES:
        missed.append(f"a waiting request: {each_bytes:,.0f} bytes, asked <= {TARGET_BYTES:,}")
    return missed


def measured(farm: Farm, while_filling: list[Any], rounds: int) -> Iterator[Kind]:
    """Each kind of decision, one after the other."""
    yield Kind("submit, while it fills", while_filling, "submit")
    yield Kind("submit, full", submits(farm, rounds), "submit")
    yield from refills(farm, rounds)
    yield Kind("a waiting request is taken back", cancels(farm, rounds))
    yield Kind("a renewal", renewals(farm, rounds))
    yield Kind("a device is observed again", observations(farm, rounds))
    ticks(farm, 1)  # what was due before, all at once
    yield Kind("a tick that ends leases or waits", ticks(farm, rounds))
    yield from rules(farm, rounds // 10)
    yield plans(farm, rounds // 10)
