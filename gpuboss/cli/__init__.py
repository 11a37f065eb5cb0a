"""The command line `gpuboss`: its verbs, one file each, and how every one of them ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `gpuboss` with these arguments, by default the process's own, and return its exit code."""
    from gpuboss.cli.exits import INTERRUPTED, OutputClosed, OutputFailed, code_of
    from gpuboss.cli.output import say, writing
    from gpuboss.errors import GPUBossError

    _prepare_streams()
    try:
        code = _run(arguments)
        if sys.stdout is not None:  # else nothing was written, for whatever tried to has failed
            with writing():
                sys.stdout.flush()
        return code
    except GPUBossError as error:
        if isinstance(error, OutputClosed | OutputFailed):
            _forget_output()
        if not isinstance(error, OutputClosed):
            say(str(error))
        return code_of(error)
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(arguments: Sequence[str] | None) -> int:
    from gpuboss.cli.exits import USAGE
    from gpuboss.cli.output import say
    from gpuboss.cli.verbs import application

    try:
        code = application()(args=arguments, prog_name="gpuboss", standalone_mode=False)
    except Exception as error:
        # What typer raises for a wrong command line has no public name, but these two in all of its versions.
        words, context = getattr(error, "format_message", None), getattr(error, "ctx", None)
        if words is None:
            raise
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        say(f"{words().rstrip('.')}{hint}")
        return USAGE
    return code if isinstance(code, int) else 0


def _prepare_streams() -> None:
    """No name of a service may make printing fail, whatever the locale is."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _forget_output() -> None:
    """Keep the interpreter from trying, once more, to write what cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
