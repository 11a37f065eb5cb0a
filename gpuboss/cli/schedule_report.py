"""Schedules for people: one in tables, or two side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpuboss.cli.output import table
from gpuboss.cli.wording import count, duration, size
from gpuboss.simulation.figures import Figures, Waits, figures_of, waits_by
from gpuboss.simulation.schedule import Schedule

SIZES_MAX = 10  # more than these are shown in groups of like ones


def report(schedule: Schedule) -> str:
    """One schedule: what became of the requests, and how long they waited."""
    figures = figures_of(schedule)
    rows = [("all", figures.wait_ms.all), *figures.wait_ms.per_class.items(), *waits_per_size(schedule).items()]
    headings = ("WAITED", ">REQUESTS", ">MEAN", ">MEDIAN", ">P99", ">LONGEST")
    waits = table(headings, ([name, f"{of.requests:,}", *map(in_words, times(of))] for name, of in rows))
    return "\n".join([*_sentences(figures), "", waits])


def waits_per_size(schedule: Schedule) -> dict[str, Waits]:
    """The waits of each size by its name, ascending. Where there are many sizes, those up to the next power of two
    make one group."""
    if len({job.size_mib for job in schedule.jobs}) <= SIZES_MAX:
        exact = waits_by(schedule, lambda job: job.size_mib)
        return {size(mib): waits for mib, waits in sorted(exact.items())}
    grouped = waits_by(schedule, lambda job: 1 << (job.size_mib - 1).bit_length())
    return {f"<= {size(mib)}": waits for mib, waits in sorted(grouped.items())}


def times(waits: Waits) -> Sequence[int | None]:
    """The four times of some waits, in the order of the tables."""
    return waits.mean, waits.median, waits.p99, waits.longest


def in_words(ms: int | None) -> str:
    """A duration, or a dash where there is none."""
    return "-" if ms is None else duration(ms)


def share(part: float | None) -> str:
    """A share in percent."""
    return "-" if part is None else f"{part:.1%}"


def slowdown(mean: float | None) -> str:
    """A mean bounded slowdown."""
    return "-" if mean is None else f"{mean:,.2f}"


def reasons(counts: Mapping[str, int]) -> str:
    """`2 timeout, 1 impossible`."""
    return ", ".join(f"{number:,} {reason}" for reason, number in counts.items())


def _sentences(figures: Figures) -> list[str]:
    asked = f"{count(figures.requests, 'request')}, {figures.granted:,} granted"
    if figures.denied:
        asked += f", {sum(figures.denied.values()):,} denied ({reasons(figures.denied)})"
    if figures.unanswered:
        asked += f", {figures.unanswered:,} still waiting at the end"
    lines = [asked]
    if figures.ended:
        lines.append(f"leases ended: {reasons(figures.ended)}")
    over = duration(figures.until_ms - figures.began_at_ms)
    lines.append(
        f"utilisation {share(figures.utilisation)} of the VRAM over {over}, "
        f"mean bounded slowdown {slowdown(figures.mean_bounded_slowdown)} (bound 10 s)"
    )
    return lines
