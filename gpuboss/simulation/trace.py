"""A trace of requests as CSV: read with its mistakes named, and what became of each written beside it."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

from gpuboss.config.values import choice, read_boolean, read_device, read_name, shown, whole_number
from gpuboss.errors import ConfigError, GPUBossError
from gpuboss.events import LeaseRequested
from gpuboss.fields import GPUS_MAX, MS_MAX, VRAM_MIB_MAX
from gpuboss.simulation.schedule import Job, Outcome

SERVICE = "trace"  # who asks where the trace does not say
OUT_COLUMNS = ("lease_id", "granted_at_ms", "ended_at_ms", "devices", "reason")
REQUIRED = ("lease_id", "submit_ms", "vram_mib", "hold_ms")
_LEASE_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")


class BadTrace(GPUBossError):
    """A trace that cannot be simulated; the message says in which line, what is there, and what was expected."""


def _lease_id(value: object) -> str:
    if not isinstance(value, str) or not _LEASE_ID.fullmatch(value):
        raise ConfigError(f"{shown(value)} is no lease_id; expected 8 to 64 of A-Z a-z 0-9 _ -, such as job-00001")
    return value


COLUMNS: dict[str, Callable[[object], Any]] = {
    "lease_id": _lease_id,
    "submit_ms": whole_number(0, MS_MAX),
    "vram_mib": whole_number(1, VRAM_MIB_MAX),
    "hold_ms": whole_number(0, MS_MAX),
    "service": read_name,
    "priority": choice("low", "normal", "high"),
    "ttl_ms": whole_number(1, MS_MAX),
    "wait_ms": whole_number(1, MS_MAX),
    "gpus": whole_number(1, GPUS_MAX),
    "device": read_device,
    "exclusive": read_boolean,
}


def read_trace(
    lines: Iterable[bytes], name: str, ignored: Callable[[list[str]], None] = lambda names: None
) -> list[Job]:
    """The jobs of a trace, in its order. `name` is the file's, for messages; `ignored` is told of columns that mean
    nothing here. An empty cell is one that is not given; empty lines are skipped. Raises `BadTrace`."""
    reader = csv.reader(_text(lines, name), strict=True)
    jobs: list[Job] = []
    seen: dict[str, int] = {}
    try:
        header = [cell.strip() for cell in next(reader, [])]
        _check_header(header, name)
        if strange := [column for column in header if column not in COLUMNS]:
            ignored(strange)
        for row in reader:
            if any(cell.strip() for cell in row):
                jobs.append(_job(header, row, f"{name}:{reader.line_num}"))
                _refuse_twice(jobs[-1].request.lease_id, seen, name, reader.line_num)
    except csv.Error as error:
        raise BadTrace(f"{name}:{reader.line_num}: no CSV: {error}; expected cells with commas between them") from None
    return jobs


def write_outcomes(file: TextIO, jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
    """What became of each job, as CSV in their order. Several devices have spaces between them; what there is none of
    stays empty, such as the grant of a request that was denied."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(OUT_COLUMNS)
    for job, outcome in zip(jobs, outcomes, strict=True):
        times = (outcome.granted_at_ms, outcome.ended_at_ms)
        writer.writerow((job.request.lease_id, *times, " ".join(outcome.devices), outcome.reason))


def _text(lines: Iterable[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise BadTrace(f"{name}:{number}: not UTF-8; save the trace as UTF-8") from None


def _check_header(header: list[str], name: str) -> None:
    known = f"expected a header with {', '.join(REQUIRED)}, and maybe {', '.join(list(COLUMNS)[len(REQUIRED) :])}"
    if missing := [column for column in REQUIRED if column not in header]:
        there = f"has {', '.join(map(shown, header))}" if any(header) else "is empty"
        raise BadTrace(f"{name}:1: the header {there}, but not {', '.join(missing)}; {known}")
    if twice := [column for column in header if column in COLUMNS and header.count(column) > 1]:
        raise BadTrace(f"{name}:1: the header has {twice[0]} twice; {known}")


def _job(header: list[str], row: list[str], where: str) -> Job:
    if len(row) != len(header):
        raise BadTrace(f"{where}: {len(row)} cells; expected {len(header)}, as many as the header has")
    given: dict[str, Any] = {}
    for column, cell in zip(header, row, strict=True):
        read = COLUMNS.get(column)
        text = cell.strip()
        if read is None or (not text and column not in REQUIRED):
            continue
        try:
            given[column] = read(text)
        except ConfigError as error:
            raise BadTrace(f"{where}: {column}: {error}") from None
    submit_ms, hold_ms = given.pop("submit_ms"), given.pop("hold_ms")
    return Job(LeaseRequested(**{"service": SERVICE, **given}), submit_ms, hold_ms)


def _refuse_twice(lease_id: str, seen: dict[str, int], name: str, line: int) -> None:
    first = seen.setdefault(lease_id, line)
    if first != line:
        raise BadTrace(f"{name}:{line}: lease_id {lease_id} is there twice, first on line {first}; expected one each")
