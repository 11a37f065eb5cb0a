"""A Redis that takes no more: what is written to it all the same, and how it is told to people.

At its `maxmemory` a server refuses whatever could need memory, with `OOM`; when its disk is full, every write, with
`MISCONF`. A release refused would keep VRAM taken because memory is short, so all but requests go by a script that is
allowed beyond the limit. It grows the log by little, and bounded by what was granted before.
"""

from __future__ import annotations

# KEYS the log, ARGV type and data.
APPEND = """#!lua flags=allow-oom
return redis.call('XADD', KEYS[1], '*', 'type', ARGV[1], 'data', ARGV[2])
"""

_OUT_OF_MEMORY = ("OOM", "command not allowed when used memory > 'maxmemory'")  # redis-py takes the first word off


def takes_no_writes(refusal: str) -> str | None:
    """For a person: that Redis is full, of what, and what to do; None if that is not why it refused."""
    if refusal.startswith(_OUT_OF_MEMORY):
        return "its memory is full; raise its `maxmemory` (redis-cli config set maxmemory ...), or free some"
    if "MISCONF" in refusal:
        return f"it cannot write its disk ({refusal}); make room there, and it goes on by itself"
    return None
