"""Our starts beside those of a published EASY schedule: with one device, one class and a TTL on every lease, the rules
are EASY backfilling, and every job of the log must start at the very second at which it does there."""

from __future__ import annotations

import argparse
import gzip
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from gpuboss.config import PolicyConfig
from gpuboss.events import LeaseRequested
from gpuboss.fields import HeadStart
from gpuboss.simulation.farm import farm
from gpuboss.simulation.schedule import Job
from gpuboss.simulation.virtual_time import RIGHT_TIES, Ties, run

RULES = {
    "expiry-last": Ties(expiries_first=False),
    "releases-by-id": Ties(by_grant=False),
    "releases-first": Ties(submissions_first=False),
}
NO_HEAD_STARTS = HeadStart(low=0, normal=0, high=0)
POLICY = PolicyConfig(head_start_ms=NO_HEAD_STARTS, margin_mib=0, reservations=1)
DIFFERENCES_SHOWN = 5
_PROCESSORS = re.compile(r"^;\s*MaxProcs:\s*(\d+)", re.MULTILINE)


class Published(NamedTuple):
    """A published schedule: a device of so many MiB (processors there), the jobs, and when each starts, in ms."""

    device_mib: int
    jobs: list[Job]
    starts_ms: list[int]


def read(text: str) -> Published:
    """A log in the archive's format (fields 1 to 5 and 9: id, submission, wait, run time, processors, requested time).
    The jobs come in the order of their ids, as they were submitted: a simulator writes them as they end. Raises
    ValueError, which says what is not as expected."""
    processors = _PROCESSORS.search(text)
    if processors is None:
        raise ValueError("no header `; MaxProcs: N`; expected a log of the Parallel Workloads Archive")
    found: list[tuple[int, Job, int]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith(";"):
            continue
        try:
            fields = line.split()
            name, submit_s, wait_s, run_s, size = (int(field) for field in fields[:5])
            requested_s = int(fields[8])
        except (ValueError, IndexError):
            raise ValueError(f"line {number}: {line[:60]!r}; expected at least nine whole numbers") from None
        request = LeaseRequested(f"job-{name:08}", "trace", size, ttl_ms=requested_s * 1000)
        found.append((name, Job(request, submit_s * 1000, run_s * 1000), (submit_s + wait_s) * 1000))
    found.sort(key=lambda each: each[0])
    return Published(int(processors[1]), [job for _, job, _ in found], [start_ms for _, _, start_ms in found])


def read_file(path: Path) -> Published:
    """The log in a file, packed or not. Raises OSError, ValueError or EOFError."""
    packed = path.read_bytes()
    return read((gzip.decompress(packed) if path.suffix == ".gz" else packed).decode("utf-8"))


def differences(published: Published, ties: Ties) -> list[str]:
    """One line for each job that starts at another time than it was published."""
    jobs = published.jobs
    facts = farm([(0, published.device_mib)], POLICY, min((job.submit_ms for job in jobs), default=0))
    outcomes = run(jobs, facts, ties=ties).outcomes
    return [
        f"{job.request.lease_id}: starts at {outcome.granted_at_ms} ms, published {start_ms} ms"
        for job, outcome, start_ms in zip(jobs, outcomes, published.starts_ms, strict=True)
        if outcome.granted_at_ms != start_ms
    ]


def main(arguments: Iterable[str]) -> int:
    """Compare, and say how many starts are equal. Returns the exit code: 0 if all are."""
    parser = argparse.ArgumentParser(prog="scripts/easy", description=__doc__)
    parser.add_argument("file", metavar="FILE.swf.gz", type=Path)
    parser.add_argument("--wrong", metavar="RULE", choices=RULES, help=f"break a tie wrongly: {', '.join(RULES)}")
    given = parser.parse_args(list(arguments))
    try:
        published = read_file(given.file)
    except (OSError, ValueError, EOFError) as error:
        print(f"{given.file}: {error}", file=sys.stderr)
        return 2
    began_s = time.monotonic()
    differ = differences(published, RULES.get(given.wrong, RIGHT_TIES))
    taken_s = time.monotonic() - began_s
    for line in differ[:DIFFERENCES_SHOWN]:
        print(line, file=sys.stderr)
    count = len(published.jobs)
    print(f"{count - len(differ):,} of {count:,} starts equal, {taken_s:.1f} s")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
