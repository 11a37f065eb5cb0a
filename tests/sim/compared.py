"""What servers hold and answer, without what may differ from one to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Ask = Callable[[list[bytes]], Any]  # one command, and its answer as it comes over a connection

# How the real one keeps a stream, and what the simulated one does not imitate.
INNER = (b"radix-tree-keys", b"radix-tree-nodes", b"idmp-duration", b"idmp-maxsize")

# Valkey and later Redis say these in other words.
OTHER_WORDS = {
    "NOSCRIPT No matching script.": "NOSCRIPT No matching script. Please use EVAL.",
    "ERR Command arguments must be strings or integers": (
        "ERR Lua redis lib command arguments must be strings or integers"
    ),
    "ERR Please specify at least one argument for this call": (
        "ERR Please specify at least one argument for this redis lib call"
    ),
    "ERR Unknown command called from script": "ERR Unknown Redis command called from script",
    "ERR This Valkey command is not allowed from script": "ERR This Redis command is not allowed from script",
    "ERR Wrong number of args calling command from script": (
        "ERR Wrong number of args calling Redis command from script"
    ),
    "ERR Unbalanced 'xread' list of streams: for each stream key an ID or '$' must be specified.": (
        "ERR Unbalanced XREAD list of streams: for each stream key an ID or '$' must be specified."
    ),
}


class Failure(NamedTuple):
    """An error as it comes over a connection."""

    text: str


def contents(ask: Ask) -> dict[bytes, Any]:
    """All that a server holds."""
    return {key: _held(ask, key) for key in sorted(ask([b"KEYS", b"*"]))}


def comparable(command: list[bytes], answer: Any) -> Any:
    """An answer without what may differ: the order of a hash and of keys, and how a stream is kept."""
    name = command[0].upper()
    if isinstance(answer, Failure):
        text = answer.text.partition(" script: ")[0]  # what follows says where in a script, in different forms
        return OTHER_WORDS.get(text, text)
    if not isinstance(answer, list):
        return answer
    if name in (b"HKEYS", b"HVALS", b"KEYS"):
        return sorted(answer)
    if name == b"SCAN":
        return sorted(answer[1])
    if name == b"TIME":
        return len(answer)
    if name in (b"HGETALL", b"XINFO"):
        return {field: value for field, value in zip(answer[::2], answer[1::2], strict=True) if field not in INNER}
    return answer


def _held(ask: Ask, key: bytes) -> Any:
    kind = ask([b"TYPE", key])
    gone_at_ms = ask([b"PEXPIRETIME", key])
    if kind == b"stream":
        return (
            kind,
            gone_at_ms,
            ask([b"XRANGE", key, b"-", b"+"]),
            comparable([b"XINFO"], ask([b"XINFO", b"STREAM", key])),
        )
    if kind == b"zset":
        ranked = ask([b"ZRANGE", key, b"0", b"-1", b"WITHSCORES"])
        # As numbers: the kinds of servers write a very large one with other digits.
        return kind, gone_at_ms, ranked[::2], [float(score) for score in ranked[1::2]]
    if kind == b"hash":
        return kind, gone_at_ms, comparable([b"HGETALL"], ask([b"HGETALL", key]))
    return kind, gone_at_ms, ask([b"GET", key])
