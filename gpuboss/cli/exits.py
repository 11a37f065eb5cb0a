"""How the command line ends: which error has which exit code, said in one place."""

from __future__ import annotations

from gpuboss.errors import ConfigError, GPUBossError, LeaseDenied, LeaseTimeout, SchedulerUnavailable

OK = 0
NO = 1  # the answer is no: verification differs, there is no such lease
USAGE = 2
CONFIG = 3
UNREACHABLE = 69  # Redis, or a scheduler
NO_LEASE_IN_TIME = 75
DENIED = 77
INTERRUPTED = 128 + 2
OUTPUT_CLOSED = 128 + 13


class AnswerIsNo(GPUBossError):
    """What was asked about is not there, or not so; the message says what there is instead."""


class OutputClosed(GPUBossError):
    """Whoever read the output has gone, as `head` does: nothing is left to do, and nothing to say."""


class OutputFailed(GPUBossError):
    """What was to be printed could not be written; the message says why."""


def code_of(error: GPUBossError) -> int:
    """The exit code for an error that was foreseen."""
    from gpuboss.jsonl import BadLine
    from gpuboss.simulation.trace import BadTrace

    codes: dict[type[GPUBossError], int] = {
        OutputClosed: OUTPUT_CLOSED,
        ConfigError: CONFIG,
        SchedulerUnavailable: UNREACHABLE,
        LeaseTimeout: NO_LEASE_IN_TIME,
        LeaseDenied: DENIED,
        BadLine: USAGE,
        BadTrace: USAGE,
    }
    return next((codes[kind] for kind in type(error).__mro__ if kind in codes), NO)
