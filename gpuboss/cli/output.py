"""What the command line prints: data on stdout, talk on stderr, and nothing raw that somebody else wrote."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from gpuboss.cli.exits import OutputClosed, OutputFailed

RIGHT = ">"  # in front of a column's heading: its cells are numbers


@contextmanager
def writing() -> Iterator[None]:
    """Turn a reader that went away into `OutputClosed`, and a full disk or no stdout into `OutputFailed`."""
    if sys.stdout is None:  # the process was started without one
        raise OutputFailed("cannot write the output: stdout is closed")
    try:
        yield
    except BrokenPipeError:
        raise OutputClosed() from None
    except OSError as error:
        raise OutputFailed(f"cannot write the output: {error.strerror or error}") from None


def print_text(text: str) -> None:
    """Print lines for people. What comes from outside must have gone through `terminal.escaped`."""
    with writing():
        sys.stdout.write(text + "\n")


def print_bytes(data: bytes) -> None:
    """Print bytes as they are, such as lines of JSON."""
    with writing():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def print_json(document: object) -> None:
    """Print a document for programs: indented, in UTF-8, safe on a terminal."""
    import msgspec

    from gpuboss.terminal import escaped_json

    text = msgspec.json.format(msgspec.json.encode(document).decode(), indent=2)
    print_bytes(f"{escaped_json(text)}\n".encode())


def say(text: str) -> None:
    """Tell the person at the terminal something that is not the data they asked for."""
    from gpuboss.terminal import escaped

    if sys.stderr is None:  # print() would take stdout instead, where only data belongs
        return
    with suppress(OSError):  # nobody listens any more, and there is nowhere else to say so
        print(f"gpuboss: {escaped(text)}", file=sys.stderr, flush=True)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows below headings, aligned. Cells are escaped; a heading that begins with `>` is for numbers."""
    from gpuboss.terminal import escaped

    names = [heading.removeprefix(RIGHT) for heading in headings]
    lines = [names, *([escaped(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    aligned = []
    for line in lines:
        cells = [
            cell.rjust(width) if heading.startswith(RIGHT) else cell.ljust(width)
            for cell, width, heading in zip(line, widths, headings, strict=True)
        ]
        aligned.append("  ".join(cells).rstrip())
    return "\n".join(aligned)
