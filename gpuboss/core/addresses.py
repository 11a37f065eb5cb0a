"""How services and their processes are named where answers and sessions are kept."""

from __future__ import annotations


def reply_address(service: str, instance: str | None) -> str:
    """Where a service is answered: `<service>` or `<service>:<instance>`. Names are validated and hold no colon."""
    return service if instance is None else f"{service}:{instance}"


def session_member(service: str, session: str) -> str:
    """How a session is named in the sorted set of sessions and in the core's index."""
    return f"{service}/{session}"
