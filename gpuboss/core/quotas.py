"""What a service may hold (policy, rule 8): its limit, always; and what of it nobody may take, inside its guarantee.

A service is charged for a lease as long as a device is: also idle, yielding, and while its memory is being reclaimed.
A request that would take its service above its limit is parked. What is kept for a request, or was asked back for it,
counts as held for those of its service that come later, and so does what the first who starves asks for: small requests
of a service that are within its limit pass a large one, but not for ever, and not where that would break a promise.
"""

from __future__ import annotations

from gpuboss.core.ledger import Lease
from gpuboss.core.outlook import end_ms
from gpuboss.core.state import State
from gpuboss.core.waitlist import Shape, Waiting


def is_beyond(state: State, shape: Shape) -> bool:
    """Whether a shape is larger than all that its service may ever hold."""
    return shape.service is not None and shape.size_mib > state.limits[shape.service]


def left_mib(state: State, service: str) -> int:
    """What a service with a limit may hold beyond what it holds; below zero, it holds more than it may."""
    return state.limits[service] - state.ledger.holdings.mib(service)


def may_begin(state: State, waiting: Waiting) -> bool:
    """Whether a request could begin now, as far as its service's limit goes, and those of that service could still
    begin that come before it and count on it. Asked of each in its turn: reserved is for those who come before."""
    service = waiting.shape.service
    if service is None:
        return True
    before = sum(each.shape.size_mib for each in ahead_of(state, waiting))
    return before + waiting.shape.size_mib <= left_mib(state, service)


def ahead_of(state: State, waiting: Waiting) -> list[Waiting]:
    """Those of the same service, which has a limit, who come before a request and count on what is left of it."""
    service = waiting.shape.service
    assert service is not None
    kept = [each.waiting for each in state.reservations.in_order]
    kept += [each for each in state.planned.values() if each not in kept]
    starving = state.waitlist.parking.first_starving(service)
    if starving is not None and starving not in kept:
        kept.append(starving)
    return [each for each in kept if each.shape.service == service and each < waiting]


def within_limit_ms(state: State, shape: Shape) -> int | None:
    """When a shape is within its service's limit, going by the ends of that service's leases: 0 if it is now, None if
    no end of leases brings it there."""
    if shape.service is None:
        return 0
    lacking_mib = shape.size_mib - left_mib(state, shape.service)
    if lacking_mib <= 0:
        return 0
    leases = state.ledger.holdings.leases(shape.service)
    ends = [(ms, lease) for lease in leases if (ms := end_ms(lease, state.policy)) is not None]
    for ms, lease in sorted(ends, key=lambda each: each[0]):
        lacking_mib -= lease.charged_mib
        if lacking_mib <= 0:
            return ms
    return None


def park(state: State) -> None:
    """Park and unpark the requests of the services that hold more, or less, than when this was last done."""
    for service in state.ledger.holdings.take_touched():
        if service in state.limits:
            state.waitlist.park(service, left_mib(state, service))


def protects(state: State, lease: Lease) -> bool:
    """Whether nobody may be given the room of a lease before it ends: it is not preemptible, and lies inside its
    service's guarantee. The guarantee goes to the oldest that are held first; what it does not cover whole, it passes
    over. What is idle may be asked back all the same, and takes nothing of it: else one plan could take both."""
    request = lease.request
    rules = state.policy.services.get(request.service)
    if request.preemptible or rules is None or not rules.guarantee_mib:
        return False
    covered_mib = 0
    for other in state.ledger.holdings.leases(request.service):
        if other.request.preemptible or other.state != "held":
            continue
        if covered_mib + other.charged_mib <= rules.guarantee_mib:
            covered_mib += other.charged_mib
            if other is lease:
                return True
    return False
