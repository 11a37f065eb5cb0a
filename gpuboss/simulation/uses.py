"""Services that load models and use them, in virtual time: what a policy is worth is when a model can be used.

A use needs its model loaded. Without idle leases each use asks for a lease of its own, loads, and gives the lease back
once the model is unloaded. With them a lease is asked for to last longer than the use, and serves the next: at once,
where one waits for the model; else it is kept idle, the model warm, and the next use resumes it. If it is asked back,
or lasts no longer and may not be renewed, the model is unloaded, and the next use asks and loads again. A lease serves
uses of its own class and above, since that is who may ask it back; of the highest class, which nobody else may ask
back, none is kept idle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from gpuboss.core.policy import RANK, queue_key
from gpuboss.events import (
    Decision,
    LeaseDenied,
    LeaseEnded,
    LeaseExtended,
    LeaseGranted,
    LeaseIdled,
    LeaseReleased,
    LeaseRenewed,
    LeaseRequested,
    LeaseResumed,
    PolicySet,
    YieldRequested,
)
from gpuboss.fields import Priority
from gpuboss.simulation.schedule import Fact
from gpuboss.simulation.virtual_time import HOLDER, SUBMISSION, Keep, VirtualTime


class Model(Struct, frozen=True):
    """What a service loads: so much VRAM, and the ms that loading and unloading take."""

    service: str
    name: str
    vram_mib: int
    load_ms: int = 0
    unload_ms: int = 0


class Use(Struct, frozen=True):
    """A model is wanted from `submit_ms` on, for `use_ms` once it is loaded; its service knows that this takes
    `limit_ms` at most, and that is what its lease is asked for."""

    model: Model
    submit_ms: int
    use_ms: int
    limit_ms: int
    priority: Priority = "normal"


@dataclass(slots=True)
class Used:
    """What became of a use. A use whose lease was denied has neither time."""

    usable_at_ms: int | None = None
    ended_at_ms: int | None = None
    loaded: bool = False


class Manner(NamedTuple):
    """How services ask. `in_turn`: a request reaches the core once the one before it was granted, so nothing passes
    anything. `warm_ms`: for how long a model that is not used is kept warm, and how much longer than its first use
    can take a lease lasts; None: no lease serves a second use."""

    in_turn: bool = False
    warm_ms: int | None = None


def use_models(
    uses: Sequence[Use],
    facts: Sequence[Fact],
    manner: Manner,
    *,
    keep: Keep | None = None,
    watched: Callable[[Iterator[int]], Iterator[int]] = iter,
) -> list[Used]:
    """What becomes of each use under these facts: the rules and the devices. Nothing else asks for a lease. `keep` is
    called with each entry of the made-up log; `watched` is handed the uses as they come, and gives them back."""
    assert not manner.in_turn or manner.warm_ms is None, "whoever resumes a lease passes those who wait"
    if manner.warm_ms is None:
        services = _Services(uses, facts, manner.in_turn, keep)
    else:
        services = _WarmServices(uses, facts, manner.warm_ms, keep)
    for index in watched(iter(sorted(range(len(uses)), key=lambda index: uses[index].submit_ms))):
        services.time.catch_up((uses[index].submit_ms, SUBMISSION))
        services.want(index, uses[index].submit_ms)
    services.time.catch_up()
    return services.used


@dataclass(slots=True, eq=False)
class _Lease:
    lease_id: str
    model: Model
    priority: Priority
    number: int  # which grant it was
    expires_at_ms: int
    use: int | None = None  # the index of the one that is on
    leaves: bool = False  # its model is being unloaded

    @property
    def is_unused(self) -> bool:
        return self.use is None and not self.leaves

    def suits(self, use: Use) -> bool:
        """Whether it may be resumed for a use."""
        return self.model == use.model and RANK[self.priority] <= RANK[use.priority]


class _Services:
    """Each use has a lease of its own."""

    def __init__(self, uses: Sequence[Use], facts: Sequence[Fact], in_turn: bool, keep: Keep | None) -> None:
        self.used = [Used() for _ in uses]
        self._uses = uses
        self._in_turn = in_turn
        self._line: deque[int] = deque()  # the uses whose turn to ask has not come
        self._asked: dict[str, int] = {}  # lease_id -> the use that waits for it
        self._leases: dict[str, _Lease] = {}
        self._requests = self._grants = 0
        starts_ms = min([*(use.submit_ms for use in uses), *(fact.at_ms for fact in facts)], default=0)
        self.time = VirtualTime(starts_ms, facts, self._hear, keep)

    def want(self, index: int, at_ms: int) -> None:
        """What a service does about a use."""
        self._line.append(index)
        if not self._in_turn or len(self._line) + len(self._asked) == 1:
            self._ask_next(at_ms)

    def _ask_next(self, at_ms: int) -> None:
        index = self._line.popleft()
        request = self._request(self._uses[index])
        self._asked[request.lease_id] = index
        self.time.say(request, at_ms)

    def _request(self, use: Use) -> LeaseRequested:
        self._requests += 1
        return LeaseRequested(
            f"request-{self._requests:08}",
            use.model.service,
            use.model.vram_mib,
            priority=use.priority,
            ttl_ms=use.model.load_ms + use.limit_ms + use.model.unload_ms,
            model=use.model.name,
        )

    def _hear(self, decision: Decision) -> None:
        now_ms = self.time.now_ms
        if isinstance(decision, LeaseGranted | LeaseDenied):
            index = self._asked.pop(decision.lease_id)
            if isinstance(decision, LeaseGranted):
                self._load(index, decision)
            if self._line:
                self.time.plan(now_ms, SUBMISSION, -1, 0, self._ask_next)
        elif isinstance(decision, YieldRequested):
            asked_back = self._leases[decision.lease_id]
            assert asked_back.use is None, "only what is idle is asked back under these rules"
            self._leave(asked_back, now_ms)
        elif isinstance(decision, LeaseExtended):
            self._leases[decision.lease_id].expires_at_ms = decision.expires_at_ms
        elif isinstance(decision, LeaseEnded):
            lost = self._leases.pop(decision.lease_id)
            if lost.use is not None:
                self.used[lost.use].ended_at_ms = now_ms

    def _load(self, index: int, granted: LeaseGranted) -> None:
        use = self._uses[index]
        self._grants += 1
        lease = _Lease(granted.lease_id, use.model, use.priority, self._grants, granted.expires_at_ms or 0)
        self._leases[lease.lease_id] = lease
        self.used[index].loaded = True
        self._begin(lease, index, granted.granted_at_ms + use.model.load_ms)

    def _begin(self, lease: _Lease, index: int, usable_at_ms: int) -> None:
        lease.use = index
        self.used[index].usable_at_ms = usable_at_ms
        ends_at_ms = usable_at_ms + self._uses[index].use_ms
        self.time.plan(ends_at_ms, HOLDER, lease.number, 0, partial(self._end, lease))

    def _end(self, lease: _Lease, at_ms: int) -> None:
        """A use is over, if its lease was not over before."""
        if lease.lease_id in self._leases:
            assert lease.use is not None
            self.used[lease.use].ended_at_ms, lease.use = at_ms, None
            self._put_down(lease, at_ms)

    def _put_down(self, lease: _Lease, at_ms: int) -> None:
        """Nothing uses this lease any more."""
        self._leave(lease, at_ms)

    def _leave(self, lease: _Lease, at_ms: int) -> None:
        """Unload the model, and then give the lease back."""
        if not lease.leaves:
            lease.leaves = True
            self.time.plan(at_ms + lease.model.unload_ms, HOLDER, lease.number, 1, partial(self._give_back, lease))

    def _give_back(self, lease: _Lease, at_ms: int) -> None:
        if lease.lease_id in self._leases:
            self.time.say(LeaseReleased(lease.lease_id, lease.model.service), at_ms)


class _WarmServices(_Services):
    """A lease whose use is over serves the next, as long as nobody asks it back."""

    def __init__(self, uses: Sequence[Use], facts: Sequence[Fact], warm_ms: int, keep: Keep | None) -> None:
        super().__init__(uses, facts, in_turn=False, keep=keep)
        self._warm_ms = warm_ms
        self._rules = next(fact.event for fact in facts if isinstance(fact.event, PolicySet))

    def want(self, index: int, at_ms: int) -> None:
        """Resume an idle lease if there is one, of several the one that was granted last; else ask for one."""
        for lease in reversed(list(self._leases.values())):
            if lease.is_unused and lease.suits(self._uses[index]) and self._lasts(lease, index, at_ms):
                self.time.say(LeaseResumed(lease.lease_id, lease.model.service), at_ms)
                self._begin(lease, index, at_ms)
                return
        super().want(index, at_ms)

    def _request(self, use: Use) -> LeaseRequested:
        request = super()._request(use)
        return replace(request, ttl_ms=(request.ttl_ms or 0) + self._warm_ms, reclaimable=True)

    def _put_down(self, lease: _Lease, at_ms: int) -> None:
        """Go on with the first use that waits for the model; where there is none, keep it warm."""
        waiting = [lease_id for lease_id, index in self._asked.items() if lease.suits(self._uses[index])]
        if waiting:
            self._go_on(lease, min(waiting, key=self._place), at_ms)
        elif RANK[lease.priority] == max(RANK.values()):
            self._leave(lease, at_ms)
        else:
            model = lease.model
            self.time.say(LeaseIdled(lease.lease_id, model.service, model.load_ms), at_ms)
            if lease.is_unused:  # where it may not be renewed, it stays for as long as it lasts
                self.time.say(LeaseRenewed(lease.lease_id, model.service, self._warm_ms), at_ms)

    def _go_on(self, lease: _Lease, lease_id: str, at_ms: int) -> None:
        """Serve the use that waits for another lease, if this one lasts, and take its request back."""
        index = self._asked[lease_id]
        if not self._lasts(lease, index, at_ms):
            return
        if self.used[index].loaded:  # it was granted meanwhile
            self._put_down(lease, at_ms)
        else:
            self._begin(lease, index, at_ms)
            self.time.say(LeaseReleased(lease_id, lease.model.service), at_ms)

    def _lasts(self, lease: _Lease, index: int, at_ms: int) -> bool:
        """Whether a lease lasts for as long as one more use can take, or can be renewed for that. If not, because a
        reservation is in the way, it is given back. A renewal may also change who is asked back, or granted one."""
        use = self._uses[index]
        life_ms = use.limit_ms + use.model.unload_ms
        if lease.expires_at_ms < at_ms + life_ms:
            self.time.say(LeaseRenewed(lease.lease_id, lease.model.service, life_ms), at_ms)
            if lease.expires_at_ms < at_ms + life_ms:
                self._leave(lease, at_ms)
        return lease.is_unused

    def _place(self, lease_id: str) -> tuple[int, str]:
        """A request's place in the queue."""
        use = self._uses[self._asked[lease_id]]
        return queue_key(self._rules, use.priority, use.submit_ms), lease_id
