"""How a lease ended that the core has forgotten: ids are remembered for a day, the log holds them for longer."""

from __future__ import annotations

import msgspec

from gpuboss.cli.account import Account, ended
from gpuboss.cli.reach import Place
from gpuboss.cli.tail import backwards
from gpuboss.core.door import is_decision, read_data, read_event, read_type
from gpuboss.core.stream_ids import parse_id
from gpuboss.events import EventRejected, LeaseDenied, LeaseEnded, LeaseGranted


def find_end(place: Place, lease_id: str) -> Account | None:
    """The last end that the log records for this id. Reads the log from its end; None if there is none."""
    needle = msgspec.json.encode(lease_id)
    forged: set[str] = set()
    end: tuple[LeaseEnded | LeaseDenied, int] | None = None
    for entry in backwards(place):
        type_name = read_type(entry.fields)
        if type_name is None or not is_decision(type_name) or entry.id in forged:
            continue
        data = read_data(entry.fields)
        if type_name != b"EventRejected" and needle not in data:
            continue
        event = read_event(entry.fields)
        if isinstance(event, EventRejected) and event.reason == "forged":
            forged.add(event.event_id)
        elif isinstance(event, LeaseEnded | LeaseDenied) and event.lease_id == lease_id and end is None:
            end = event, parse_id(entry.id)[0]
            if isinstance(event, LeaseDenied):
                break
        elif isinstance(event, LeaseGranted) and event.lease_id == lease_id and end is not None:
            return ended(event, *end)
    return None if end is None else ended(None, *end)
