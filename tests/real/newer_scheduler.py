"""`python -m tests.real.newer_scheduler`: the scheduler as a later version might be, with the rules of core 2.

Under these a request goes where most is left, not least; so whoever took the decisions of one core for those of the
other would be found out.
"""

from __future__ import annotations

from typing import Any

from gpuboss.core import granting, machine
from gpuboss.core.placement import place
from gpuboss.core.rooms import Rooms

CORE = 2


def place_widely(shape: Any, devices: Any) -> Any:
    """The place that leaves most."""
    able = [found for device in devices if (found := place(shape, [device])) is not None]
    return max(able, key=lambda found: (found[0].free_mib, found[0].key), default=None)


def all_rooms(rooms: Rooms, shape: Any, closed: Any) -> Any:
    """Every device on which it may be: the rule chooses among them."""
    return [device for device in rooms.named(shape) if device not in closed]


machine.CORE_VERSION = CORE
granting.__dict__["place"] = place_widely
setattr(Rooms, "best", all_rooms)  # noqa: B010

if __name__ == "__main__":
    from gpuboss_scheduler.__main__ import main

    main()
