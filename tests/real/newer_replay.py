"""`python -m tests.real.newer_replay`: the command line of the later version in `newer_scheduler`."""

from __future__ import annotations

from tests.real import newer_scheduler

if __name__ == "__main__":
    assert newer_scheduler.CORE == 2
    from gpuboss.cli import main

    main()
