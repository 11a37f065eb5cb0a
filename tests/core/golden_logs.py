"""The logs under tests/golden: six stories, recorded once, whose decisions must come out the same for ever.

A change of the core that decides otherwise makes `test_golden` fail. If it is meant, raise `CORE_VERSION` and record
them anew, in the same commit: `scripts/golden`, which is `python -m tests.core.golden_logs`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from gpuboss.core import snapshot
from gpuboss.core.machine import CORE_VERSION
from gpuboss.events import ClockTicked, LeaseReleased, LeaseRequested, LeaseRevoked, SchedulerElected
from gpuboss.fields import PreemptAfter
from gpuboss.jsonl import to_line
from gpuboss.log import Entry
from tests.core import hostile
from tests.core.scenario import (
    Scenario,
    device_lost,
    idled,
    jumped,
    padded,
    policy,
    reclaimed,
    renewed,
    resumed,
    session_lost,
)

FOLDER = Path(__file__).parents[1] / "golden"
DIGESTS = FOLDER / "digests.json"


def basic() -> Scenario:
    """Ask, wait, hold, renew, keep idle, give back; asked twice, cancelled, timed out, impossible, not the owner."""
    log = Scenario(24_576)
    log.request("first", 8_192, session="imajin-1", model="sdxl", pid=4_711)
    log.request("second", 12_288, ttl_ms=60_000, reclaimable=True)
    log.says(idled("second", reload_ms=1_500))
    log.says(resumed("second"))
    log.request("third", 8_192, service="ollama", instance="left")
    log.request("fourth", 16_384, wait_ms=500)
    log.request("fifth", 4_096, wait_ms=10_000)
    log.request("huge", 99_999)
    log.request("first", 8_192, session="imajin-1", model="sdxl", pid=4_712)
    log.request("first", 8_193, session="imajin-1")
    log.now_ms += 250
    log.says(renewed("second", 120_000))
    log.says(idled("second", reload_ms=1_500))
    log.says(resumed("second"))
    log.says(idled("first"))
    log.release("first", service="ollama")
    log.release("fifth")
    log.tick(after_ms=250)
    log.release("first")
    log.release("first")
    log.request("first", 8_192, session="imajin-1")
    log.tick(after_ms=120_000)
    log.release("third", service="ollama")
    log.release("nobody")
    return log


def priorities() -> Scenario:
    """Three classes on two cards; who waited long enough; what is kept free; a policy that changes on the way."""
    log = Scenario(24_576, 24_576)
    log.request("holds-0", 20_000, device="cuda:0")
    log.request("holds-1", 24_576, device="cuda:1")
    log.request("old-low", 16_384, priority="low")
    log.now_ms += 20 * 60_000
    log.request("normal", 16_384)
    log.now_ms += 20 * 60_000
    log.request("high", 16_384, priority="high")
    log.request("small-high", 4_096, priority="high")
    log.request("small-low", 4_096, priority="low")
    log.happens(policy(high=0, normal=0))
    log.request("late-high", 16_384, priority="high")
    log.release("holds-0")
    log.release("holds-1")
    log.request("alone", 1, exclusive=True)
    for name in ("high", "normal", "small-high", "old-low", "small-low", "late-high", "alone"):
        log.now_ms += 1_000
        log.release(name)
    return log


def faults() -> Scenario:
    """Dead sessions, lost and shrinking devices, revocations, a jump of the clock, a new leader, hostile entries."""
    log = Scenario(24_576, 24_576, lock_delay_ms=60_000)
    log.request("holder", 20_000, session="dies-1")
    log.request("waiter", 20_000, session="dies-1", device="cuda:0")
    log.request("heir", 20_000, device="cuda:0")
    log.happens(session_lost("dies-1"))
    log.request("too-late", 1, session="dies-1")
    log.tick(after_ms=60_000)
    log.happens(reclaimed("holder"))
    for name in ("vram_mib -5", "33 levels", "a grant far ahead", "a reply key smuggled in", "fields 9"):
        log.append(*hostile.ALL[name][0])
        log.settle()
    log.request("expires", 1_000, ttl_ms=5_000, device="cuda:1")
    log.now_ms += 3_600_000
    log.happens(jumped(log.now_ms, 3_600_000))
    log.tick(after_ms=4_000)
    log.revoke("heir", grace_ms=2_000)
    log.tick(after_ms=2_000)
    log.write(LeaseRequested(padded("tail-1"), "imajin", 24_576))
    log.write(LeaseReleased(padded("expires"), "imajin"))
    log.happens(SchedulerElected("second", "0.1.0", CORE_VERSION, "log-1"))
    log.happens(LeaseRevoked(padded("heir"), "its row was deleted", "operator"))
    log.device(0, 12_288, foreign_mib=1_000)
    log.request("small", 8_192, device="cuda:0")
    log.happens(device_lost(1))
    log.happens(device_lost(0))
    log.request("patient", 8_192)
    log.device(1, 24_576, simulated=False)
    log.take_snapshot()
    log.settle()
    return log


def gangs() -> Scenario:
    """Several devices of one node at once, exclusively, pinned by UUID, with one of them lost."""
    log = Scenario(24_576, 24_576, 24_576)
    log.device(0, 24_576, "beta", name="real", simulated=False)
    log.device(1, 24_576, "beta", name="real", simulated=False)
    log.request("pair", 8_192, gpus=2)
    log.request("trio", 20_000, gpus=3)
    log.request("quartet", 1, gpus=4)
    log.request("alone", 1, gpus=2, exclusive=True, node="beta")
    log.request("pinned", 4_096, device="GPU-beta-1")
    log.request("filler", 16_000)
    log.release("pair")
    log.release("trio")
    log.request("again", 24_000, gpus=2, node="beta")
    log.release("alone")
    log.release("pinned")
    log.happens(device_lost(0, "beta"))
    log.request("wants-2", 1, gpus=2, node="beta")
    log.happens(reclaimed("again"))
    log.request("last", 24_576, node="beta")
    return log


def reservations() -> Scenario:
    """Promises made, kept, moved and taken back; who passes and who may not; renewals that would void one; a drain."""
    log = Scenario(24_576, 24_576)
    log.happens(replace(policy(), reservations=2, starve_ms=5_000))
    log.request("holds-0", 20_000, device="cuda:0", ttl_ms=10_000)
    log.request("holds-1", 20_000, device="cuda:1", ttl_ms=20_000)
    log.request("large", 22_000)
    log.request("passes", 2_000, ttl_ms=9_000)
    log.request("too-long", 4_000, device="cuda:0", ttl_ms=10_001)
    log.request("left-over", 2_576, device="cuda:0")
    log.says(renewed("holds-0", 10_001))
    log.says(renewed("holds-1", 15_000))
    log.request("first", 22_000, priority="high", device="cuda:0")
    log.happens(ClockTicked(log.now_ms, inputs_follow=True))
    log.now_ms += 10_000
    log.happens(ClockTicked(log.now_ms, inputs_follow=True))
    log.release("holds-1")
    log.happens(replace(policy(), backfill_order="short", starve_ms=5_000))
    log.request("gang", 24_576, gpus=2)
    log.request("long", 1_000, ttl_ms=500)
    log.request("short", 1_000, ttl_ms=400)
    log.tick(after_ms=5_000)
    log.request("late", 1, ttl_ms=1)
    for name in ("first", "large", "passes", "left-over", "too-long"):
        log.release(name)
    log.device(1, 24_576, foreign_mib=1_000)
    return log


def asked_back() -> Scenario:
    """Idle leases on two cards asked back for one, a gang and one who wants to be alone; held ones of lower classes for
    higher ones; who is gone meanwhile, who resumes too late, who does not give back."""
    log = Scenario(24_576, 24_576, lock_delay_ms=5_000)
    lower = PreemptAfter(normal=2_000, high=0)
    log.happens(replace(policy(5_000), preemption="lower", preempt_after_ms=lower, min_run_ms=1_000, grace_ms=3_000))
    for name, vram_mib in (("warm-0", 8_192), ("warm-1", 12_288), ("warm-2", 16_384), ("warm-3", 4_096)):
        log.request(name, vram_mib, reclaimable=True)
        log.says(idled(name, reload_ms=500))
    log.request("high", 8_192, priority="high", reclaimable=True)
    log.says(resumed("warm-0"))
    log.says(resumed("warm-3"))
    log.release("warm-0")
    log.request("gang", 16_384, gpus=2, priority="high")
    log.request("small", 1_024, priority="low")
    log.tick(after_ms=1_000)
    log.says(idled("warm-2"))
    log.says(idled("high"))
    log.release("warm-1")
    log.release("gang")
    log.request("alone", 1_024, exclusive=True, priority="high")
    log.request("safe", 4_096, priority="low", preemptible=False)
    log.request("low", 8_192, priority="low")
    log.tick(after_ms=3_000)
    log.tick(after_ms=5_000)
    for name in ("warm-2", "warm-3", "high"):
        log.happens(reclaimed(name))
    log.request("normal", 16_384)
    log.tick(after_ms=2_000)
    log.happens(device_lost(1))
    log.happens(replace(policy(), preemption="off"))
    log.release("alone")
    log.tick(after_ms=3_000)
    return log


TOLD = (basic, priorities, faults, gangs, reservations, asked_back)
STORIES: dict[str, Callable[[], Scenario]] = {story.__name__: story for story in TOLD}


def record() -> None:
    """Write them all."""
    digests = {}
    for name, story in STORIES.items():
        log = story()
        lines = [to_line(Entry(*entry)) + b"\n" for entry in log.entries]
        (FOLDER / f"{name}.jsonl").write_bytes(b"".join(lines))
        digests[name] = snapshot.digest(snapshot.dump(log.state))
    DIGESTS.write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
    print(f"recorded {', '.join(STORIES)} in {FOLDER}")
