"""Two schedules of the same requests for people: would it have helped, and whom?"""

from __future__ import annotations

from collections.abc import Iterator

from gpuboss.cli.output import table
from gpuboss.cli.schedule_report import in_words, reasons, share, slowdown, waits_per_size
from gpuboss.cli.wording import count, duration, size
from gpuboss.simulation.figures import Figures, Waits
from gpuboss.simulation.schedule import Schedule
from gpuboss.simulation.what_if import Comparison, ServiceChange
from gpuboss.terminal import escaped

SERVICES_SHOWN = 5
REQUESTS_SHOWN = 5


def report(recorded: Schedule, what_if: Schedule, comparison: Comparison) -> str:
    """The answer first, then whom it helps, then the waits by class and size."""
    parts = [
        "\n".join(map(escaped, _answer(comparison))),
        _overall(comparison.recorded, comparison.what_if),
        _services(comparison.services),
        _waits(recorded, what_if, comparison),
    ]
    if comparison.helped_most:
        parts.append(_requests(comparison))
    return "\n\n".join(parts)


def _answer(comparison: Comparison) -> Iterator[str]:
    before, after = comparison.recorded.wait_ms.all, comparison.what_if.wait_ms.all
    yield (
        f"mean wait of those granted {in_words(before.mean)} -> {in_words(after.mean)}, "
        f"longest {in_words(before.longest)} -> {in_words(after.longest)}"
    )
    yield (
        f"of {count(comparison.recorded.requests, 'request')}, {comparison.sooner:,} are granted sooner and "
        f"{comparison.later:,} later; {comparison.newly_granted:,} are granted that were not, "
        f"{comparison.no_longer_granted:,} no more"
    )
    helped = [change for change in comparison.services if change.saved_ms > 0]
    if helped:
        names = ", ".join(f"{change.service} (waits {duration(change.saved_ms)} less in all)" for change in helped[:3])
        yield f"helped most: {names}"
    else:
        yield "no service waits less in all"
    if comparison.assumed_holds:
        yield (
            f"{count(comparison.assumed_holds, 'lease')} of requests that were never granted: "
            "assumed to be held as long as the median of their service's"
        )


def _overall(before: Figures, after: Figures) -> str:
    def row(name: str, one: str, other: str) -> list[str]:
        return [name, one, other]

    rows = [
        row("granted", f"{before.granted:,}", f"{after.granted:,}"),
        row("denied", reasons(before.denied) or "0", reasons(after.denied) or "0"),
        row("waiting at the end", f"{before.unanswered:,}", f"{after.unanswered:,}"),
        row("utilisation", share(before.utilisation), share(after.utilisation)),
        row("mean bounded slowdown", slowdown(before.mean_bounded_slowdown), slowdown(after.mean_bounded_slowdown)),
    ]
    return table(("", ">RECORDED", ">WHAT IF"), rows)


def _services(services: list[ServiceChange]) -> str:
    rows = [
        [change.service, duration(change.saved_ms), *_side_by_side(change.recorded, change.what_if)]
        for change in services[:SERVICES_SHOWN]
    ]
    shown = table(("SERVICE", ">SAVED IN ALL", *_HEADINGS), rows)
    left = len(services) - SERVICES_SHOWN
    return f"{shown}\n... and {left:,} more, which --json shows" if left > 0 else shown


def _waits(recorded: Schedule, what_if: Schedule, comparison: Comparison) -> str:
    before, after = comparison.recorded.wait_ms, comparison.what_if.wait_ms
    sizes_before, sizes_after = waits_per_size(recorded), waits_per_size(what_if)
    pairs = [("all", before.all, after.all)]
    pairs += [(name, waits, after.per_class[name]) for name, waits in before.per_class.items()]
    pairs += [(name, waits, sizes_after[name]) for name, waits in sizes_before.items()]
    return table(("WAITED", *_HEADINGS), ([name, *_side_by_side(one, other)] for name, one, other in pairs))


def _requests(comparison: Comparison) -> str:
    rows = [
        [
            each.lease_id,
            each.service,
            size(each.size_mib),
            each.priority,
            *map(duration, (each.recorded_wait_ms, each.what_if_wait_ms, each.saved_ms)),
        ]
        for each in comparison.helped_most[:REQUESTS_SHOWN]
    ]
    return table(("REQUEST", "SERVICE", ">SIZE", "PRIORITY", ">RECORDED", ">WHAT IF", ">SAVED"), rows)


_HEADINGS = (">REQUESTS", ">MEAN", ">-> WHAT IF", ">P99", ">-> WHAT IF", ">LONGEST", ">-> WHAT IF")


def _side_by_side(before: Waits, after: Waits) -> list[str]:
    granted = (
        f"{before.requests:,}" if before.requests == after.requests else f"{before.requests:,} -> {after.requests:,}"
    )
    times = ((before.mean, after.mean), (before.p99, after.p99), (before.longest, after.longest))
    return [granted, *(in_words(ms) for pair in times for ms in pair)]
