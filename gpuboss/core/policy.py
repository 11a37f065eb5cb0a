"""The rules that are settings, and the order of the queue that follows from them (policy, rules 2 and 8).

A request's key is the time at which it counts as submitted: its submission less the head start of its priority.
Linear ageing with one slope for all is the same as a constant head start, so a key never changes.
"""

from __future__ import annotations

from gpuboss.events import LeaseRequested, PolicySet
from gpuboss.fields import HeadStart, Priority

# How many requests of one service may wait. More than any service can mean: at one grant a second the last of them
# waits for three hours. And few enough to bear: they cost the scheduler 10 MB, and each is explained and shown.
MAX_WAITING = 10_000

DEFAULT_POLICY = PolicySet(
    head_start_ms=HeadStart(),
    margin_mib=None,
    session_ttl_ms=15_000,
    lock_delay_ms=60_000,
    max_waiting=MAX_WAITING,
)

RANK: dict[Priority, int] = {"low": 0, "normal": 1, "high": 2}


def preempts_after_ms(policy: PolicySet, priority: Priority) -> int | None:
    """How long a request of this class waits before held leases of lower ones may be asked back for it; None: for
    ever."""
    if policy.preemption != "lower" or priority == "low":
        return None
    return policy.preempt_after_ms.high if priority == "high" else policy.preempt_after_ms.normal


def lingers_ms(policy: PolicySet, *, clean: bool) -> int:
    """How long the memory of a lease that has ended counts as being there if nobody sees it gone. `clean`: its holder
    gave it back, and is trusted no less than one who did not."""
    return min(policy.settle_ms, policy.lock_delay_ms) if clean else policy.lock_delay_ms


def max_waiting_of(policy: PolicySet, service: str) -> int | None:
    """How many requests of a service may wait at one time; None: any number."""
    rules = policy.services.get(service)
    return policy.max_waiting if rules is None else rules.max_waiting


def limits_of(policy: PolicySet) -> dict[str, int]:
    """How many MiB each service that has a limit may hold."""
    return {name: rules.limit_mib for name, rules in policy.services.items() if rules.limit_mib is not None}


def priority_of(policy: PolicySet, request: LeaseRequested) -> Priority:
    """What a request that comes now counts as: what it claims, or the most that its service may."""
    rules = policy.services.get(request.service)
    if rules is None or RANK[request.priority] <= RANK[rules.max_priority]:
        return request.priority
    return rules.max_priority


def queue_key(policy: PolicySet, priority: Priority, now_ms: int) -> int:
    """When a request of this priority, submitted now, counts as submitted (ms; may be below zero)."""
    head_start = policy.head_start_ms
    if priority == "normal":
        return now_ms - head_start.normal
    return now_ms - (head_start.high if priority == "high" else head_start.low)
