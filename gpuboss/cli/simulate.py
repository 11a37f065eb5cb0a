"""`gpuboss simulate`: what the scheduler would decide about a trace of requests, in virtual time."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from gpuboss.cli.options import DEVICES, POLICY, Json, Plot, checked_devices, examples

if TYPE_CHECKING:
    from gpuboss.config import PolicyConfig
    from gpuboss.simulation.schedule import Job, Schedule

EXAMPLES = examples(
    'gpuboss simulate trace.csv --devices "cuda:0=24576,cuda:1=24576"',
    'gpuboss simulate trace.csv --devices "cuda:0=80GB" --policy policy.yaml --out grants.csv',
    'gpuboss simulate - --devices "cuda:0=24GB" --json | jq .wait_ms.per_class.high.p99',
    'gpuboss replay --what-if --devices "cuda:0=80GB"    # the same with the requests of the log',
)

Trace = Annotated[str, typer.Argument(metavar="TRACE.csv", help="The requests as CSV, - for stdin; columns see above.")]
Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        metavar="FILE.csv",
        help="Write lease_id,granted_at_ms,ended_at_ms,devices,reason for each request, in the trace's order.",
    ),
]


def simulate(
    trace: Trace,
    devices: Annotated[str, DEVICES],
    policy: Annotated[str | None, POLICY] = None,
    out: Out = None,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Run the scheduler over a trace of requests, in virtual time.

    The very rules, without Redis and without a clock. Columns by header, in any order: lease_id, submit_ms, vram_mib
    (per device), hold_ms (released that long after the grant), and optionally service, priority, ttl_ms, wait_ms,
    gpus, device, exclusive. Times are whole ms. At one ms, expiries come first, then submissions in the trace's order,
    then releases in the order of their grants; the same trace gives the same schedule.

    Waits are of granted requests, from submission to grant: the mean rounded down, median and p99 by nearest rank.
    Bounded slowdown is (wait + held) / held, held at least 10 s, never below 1. Utilisation is the share of the
    devices' MiB ms, from the first submission to the end, that was leased. Size is the MiB on all devices together.
    With --json: requests, granted, denied and ended by reason, unanswered, held, wait_ms {all, per_class, per_size}
    of {requests, mean, median, p99, longest}, mean_bounded_slowdown, utilisation, began_at_ms, until_ms.
    """
    from gpuboss.cli.files import open_twice
    from gpuboss.cli.output import print_json, print_text, say, writing
    from gpuboss.cli.plot import checked_plot, draw
    from gpuboss.cli.schedule_report import report
    from gpuboss.config import PolicyConfig, load_policy
    from gpuboss.simulation.figures import figures_of
    from gpuboss.simulation.trace import read_trace, write_outcomes

    sizes, picture = checked_devices(devices), checked_plot(plot)
    rules = PolicyConfig() if policy is None else load_policy(policy)
    with ExitStack() as stack:
        lines, _ = open_twice(trace, stack)
        jobs = read_trace(lines(), trace, lambda names: say(f"ignored columns of {trace}: {', '.join(names)}"))
        file = None if out is None else stack.enter_context(_writable(out))
        schedule = _simulated(jobs, sizes, rules)
        if file is not None:
            with writing(), file:
                write_outcomes(file, jobs, schedule.outcomes)
    if picture is not None:
        draw(picture, {"simulated": schedule})
    if json:
        print_json(figures_of(schedule))
    else:
        print_text(report(schedule))


def _simulated(jobs: list[Job], devices: list[tuple[int, int]], rules: PolicyConfig) -> Schedule:
    from gpuboss.cli.progress import shown, without_collector
    from gpuboss.simulation.farm import farm
    from gpuboss.simulation.virtual_time import run

    facts = farm(devices, rules, min((job.submit_ms for job in jobs), default=0))
    with without_collector():
        return run(jobs, facts, watched=lambda order: shown(order, len(jobs), "simulating"))


def _writable(path: str) -> TextIO:
    """The file to write to. Raises `typer.BadParameter`, before anything is simulated in vain."""
    if path == "-":
        raise typer.BadParameter("expected a file: stdout has the report", param_hint="--out")
    try:
        return Path(path).open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise typer.BadParameter(f"cannot write {path}: {error.strerror or error}", param_hint="--out") from None
