"""What faults of one kind left, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """`took_ms`: from each fault, or from when it was over, until service went on. `doubled` are promises of VRAM that
    was promised already, and other faults of the log; `lost` are requests without an answer, and whatever else stuck.
    """

    faults: int = 0
    took_ms: list[int] = field(default_factory=list)
    requests: int = 0
    doubled: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Count another one in."""
        self.faults += other.faults
        self.requests += other.requests
        self.took_ms += other.took_ms
        self.doubled += other.doubled
        self.lost += other.lost


TITLE = f"{'server':8}{'fault':26}{'faults':>7}{'requests':>10}{'p50':>10}{'max':>10}{'doubled':>9}{'lost':>6}"


def line_of(kind: str, fault: str, outcome: Outcome) -> str:
    """One line of the table under `TITLE`."""
    taken = sorted(outcome.took_ms)
    p50, most = (f"{taken[len(taken) // 2]} ms", f"{taken[-1]} ms") if taken else ("-", "-")
    wrong = f"{len(outcome.doubled):9}{len(outcome.lost):6}"
    return f"{kind:8}{fault:26}{outcome.faults:7}{outcome.requests:10}{p50:>10}{most:>10}{wrong}"
