"""What the policies do, side by side: strict FIFO, best effort, EASY, and EASY with idle leases, all on the real core.

A wait lasts from when a model is wanted until it can be used: a lease is granted, and the model loaded. Waits are given
in whole s, rounded down: mean / median / p99 / longest. `in use` is the share of the devices' VRAM, from the first
submission to the end of the last use, in which models were used; `loading` that in which they were being loaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from gpuboss.cli.output import RIGHT, print_json, print_text, table
from gpuboss.cli.progress import shown, without_collector
from gpuboss.cli.wording import size
from gpuboss.config import PolicyConfig
from gpuboss.simulation.farm import farm
from gpuboss.simulation.figures import PRIORITIES, Waits, waits_of
from gpuboss.simulation.uses import Manner, Model, Use, Used, use_models
from scripts.easy import Published, read_file
from scripts.workload import DAYS, DEVICES_MIB, SEED, workload

WARM_MS = 180_000  # for how long a model stays loaded that nobody uses, unless it is asked back
DAYS_MAX = 365
HALF, MORE = "up to half of it", "more than half of it"


class Policy(NamedTuple):
    """A way to share devices: the rules of the core, and how services ask it."""

    name: str
    rules: PolicyConfig
    manner: Manner


STRICT_FIFO = Policy("strict FIFO", PolicyConfig(), Manner(in_turn=True))
BEST_EFFORT = Policy("best effort", PolicyConfig(reservations=0), Manner())
EASY = Policy("EASY", PolicyConfig(), Manner())
IDLE_LEASES = Policy("EASY, idle leases", PolicyConfig(), Manner(warm_ms=WARM_MS))
POLICIES = (STRICT_FIFO, BEST_EFFORT, EASY, IDLE_LEASES)
HEADINGS = ("wait in s: mean / median / p99 / longest", "uses", *(policy.name for policy in POLICIES))


class Load(NamedTuple):
    """What is wanted of which devices (index, MiB), under which policies. `groups_of` names the groups, out of `groups`
    in their order, that a use counts in."""

    name: str
    devices: Sequence[tuple[int, int]]
    uses: Sequence[Use]
    groups: Sequence[str]
    groups_of: Callable[[Use], tuple[str, ...]]
    policies: Sequence[Policy]


class Result(Struct, frozen=True):
    """What a policy made of a load: waits in ms by group, shares in thousandths."""

    wait_ms: dict[str, Waits]
    in_use_permille: int
    loading_permille: int
    loads: int


def made_up(days: int, seed: int) -> Load:
    """The workload that was made up for this."""
    uses = workload(days, seed)
    sizes = [size(mib) for mib in sorted({use.model.vram_mib for use in uses})]

    def groups_of(use: Use) -> tuple[str, ...]:
        return "all", use.priority, size(use.model.vram_mib)

    groups = ["all", *PRIORITIES, *sizes]
    return Load(f"made up, days: {days}, seed: {seed}", DEVICES_MIB, uses, groups, groups_of, POLICIES)


def recorded(name: str, published: Published) -> Load:
    """A log of a machine: its processors are one device, and its jobs have nothing to load."""
    models = {job.size_mib: Model("trace", "job", job.size_mib) for job in published.jobs}
    uses = [
        Use(models[job.size_mib], job.submit_ms, job.hold_ms or 0, job.request.ttl_ms or 0) for job in published.jobs
    ]

    def groups_of(use: Use) -> tuple[str, ...]:
        return "all", MORE if 2 * use.model.vram_mib > published.device_mib else HALF

    return Load(name, ((0, published.device_mib),), uses, ("all", HALF, MORE), groups_of, POLICIES[:-1])


def result_of(load: Load, policy: Policy) -> Result:
    """What a policy makes of a load. Raises ValueError where a use is denied: then there is nothing to compare."""
    facts = farm(load.devices, policy.rules, min(use.submit_ms for use in load.uses))

    def watched(order: Iterator[int]) -> Iterator[int]:
        return shown(order, len(load.uses), f"{load.name}: {policy.name}")

    with without_collector():
        return measured(load, use_models(load.uses, facts, policy.manner, watched=watched))


def measured(load: Load, used: Sequence[Used]) -> Result:
    """The figures of what became of the uses. Raises ValueError where one was denied."""
    waits_ms: dict[str, list[int]] = {}
    in_use = loading = loads = until_ms = 0
    for use, became in zip(load.uses, used, strict=True):
        model = use.model
        if became.usable_at_ms is None or became.ended_at_ms is None:
            raise ValueError(f"{load.name}: the use of {model.vram_mib} MiB at {use.submit_ms} ms was denied")
        for group in load.groups_of(use):
            waits_ms.setdefault(group, []).append(became.usable_at_ms - use.submit_ms)
        in_use += model.vram_mib * (became.ended_at_ms - became.usable_at_ms)
        loading += model.vram_mib * model.load_ms * became.loaded
        loads += became.loaded
        until_ms = max(until_ms, became.ended_at_ms)
    could = sum(mib for _, mib in load.devices) * (until_ms - min(use.submit_ms for use in load.uses))
    waits = {group: waits_of(waits_ms[group]) for group in load.groups if group in waits_ms}
    return Result(waits, 1000 * in_use // could, 1000 * loading // could, loads)


def rows_of(load: Load, results: Sequence[Result]) -> list[list[str]]:
    """A load's part of the table: its name, the waits of its groups, and what was done meanwhile."""
    first = results[0]
    rows = [[load.name, f"{len(load.uses):,}"]]
    rows += [
        [group, f"{waits.requests:,}", *(_in_s(result.wait_ms[group]) for result in results)]
        for group, waits in first.wait_ms.items()
    ]
    rows.append(["in use", "", *(_share(result.in_use_permille) for result in results)])
    if first.loading_permille:
        rows.append(["loading", "", *(_share(result.loading_permille) for result in results)])
        rows.append(["models loaded", "", *(f"{result.loads:,}" for result in results)])
    return [row + [""] * (len(HEADINGS) - len(row)) for row in rows]


def _in_s(waits: Waits) -> str:
    times = (waits.mean, waits.median, waits.p99, waits.longest)
    return " / ".join("-" if ms is None else f"{ms // 1000:,}" for ms in times)


def _share(permille: int) -> str:
    return f"{permille // 10}.{permille % 10} %"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The table as docs/policy.md shows it. The first cell of a line without figures is a title."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)]]
    lines += [[f"**{row[0]}**", *row[1:]] if not any(row[2:]) else row for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(arguments: Iterable[str]) -> int:
    """Returns the exit code: 2 for a file that is no such log."""
    given = _parser().parse_args(list(arguments))
    loads = [made_up(given.days, given.seed)]
    if given.file is not None:
        try:
            loads.append(recorded(given.file.name.partition(".")[0], read_file(given.file)))
        except (OSError, ValueError, EOFError) as error:
            print(f"{given.file}: {error}", file=sys.stderr)
            return 2
    results = [[result_of(load, policy) for policy in load.policies] for load in loads]
    if given.json:
        print_json({load.name: _by_policy(load, made) for load, made in zip(loads, results, strict=True)})
        return 0
    rows = [row for load, made in zip(loads, results, strict=True) for row in rows_of(load, made)]
    if given.markdown:
        print_text(markdown(HEADINGS, rows))
    else:
        print_text(table([HEADINGS[0], *(RIGHT + heading for heading in HEADINGS[1:])], rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/policies", description=__doc__)
    parser.add_argument(
        "file", metavar="FILE.swf.gz", type=Path, nargs="?", help="also a log, as scripts/easy reads it"
    )
    parser.add_argument("--days", type=_days, default=DAYS, help=f"of the workload that is made up ({DAYS})")
    parser.add_argument("--seed", type=int, default=SEED, help=f"from which it is made up ({SEED})")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs, in ms and thousandths")
    form.add_argument("--markdown", action="store_true", help="as docs/policy.md shows it")
    return parser


def _days(given: str) -> int:
    if not given.isdecimal() or not 1 <= int(given) <= DAYS_MAX:
        raise argparse.ArgumentTypeError(f"{given!r} days; expected 1 to {DAYS_MAX}")
    return int(given)


def _by_policy(load: Load, results: Sequence[Result]) -> dict[str, Result]:
    return {policy.name: result for policy, result in zip(load.policies, results, strict=True)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
