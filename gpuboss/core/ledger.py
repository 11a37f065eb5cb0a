"""The VRAM ledger: which device holds how much, promised to which lease. Sums are kept, never recomputed.

    free = total - reserved - margin - foreign - what its leases are charged - hold        (MiB; policy, rule 1)

`hold` is room that is kept for one request, for which leases on the device were asked back.

`free` falls below zero only when the device itself shrinks or others fill it; then nothing is granted on it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING

from msgspec import Struct

from gpuboss.core.lifecycle import State
from gpuboss.events import DeviceObserved, LeaseGranted, LeaseRequested
from gpuboss.fields import Priority

if TYPE_CHECKING:
    from gpuboss.core.plans import Plan

MOVES_REMEMBERED = 1024


def device_key(node: str, device: str) -> str:
    """How a device is called across nodes: `<node>/cuda:<n>`."""
    return f"{node}/{device}"


class Node:
    """The devices of one host."""

    __slots__ = ("changes", "devices", "name", "version")

    def __init__(self, name: str, changes: Changes) -> None:
        self.name = name
        self.changes = changes
        self.devices: list[Device] = []  # in their order
        self.version = 0  # counts changes of what is free on them, and of when it will be


class Device:
    """One GPU as the log last described it, and what is charged on it, in MiB."""

    __slots__ = (
        "charged_mib",
        "exclusive",
        "exclusive_leases",
        "free_mib",
        "healthy",
        "hold_mib",
        "index",
        "key",
        "leases",
        "mib_of_class",
        "node",
        "observed",
        "plan",
        "reclaiming_mib",
        "version",
    )

    def __init__(self, observed: DeviceObserved, node: Node) -> None:
        self.node = node
        self.version = 0  # as that of its node, of this device alone
        self.leases: dict[str, Lease] = {}  # by lease_id, in the order in which they were granted
        self.charged_mib = 0
        self.mib_of_class: dict[Priority, int] = {"low": 0, "normal": 0, "high": 0}  # the parts of charged_mib
        self.reclaiming_mib = 0  # the part of charged_mib whose leases have ended
        self.exclusive_leases = 0  # more than one, or one beside others, only where they were reasserted
        self.exclusive = False
        self.plan: Plan | None = None  # for whom leases here were asked back
        self.hold_mib = 0
        self.observe(observed)

    def observe(self, observed: DeviceObserved) -> None:
        """Take over what a new observation says; the leases on the device stay."""
        self.observed = observed
        self.key = device_key(observed.node, observed.device)
        self.healthy = observed.healthy
        self.index = int(observed.device.partition(":")[2])
        self.free_mib = self.capacity_mib - observed.foreign_mib - self.charged_mib - self.hold_mib
        self._hold()

    @property
    def capacity_mib(self) -> int:
        """What leases could ever hold: the total without the driver's part and the margin."""
        return self.observed.total_mib - self.observed.reserved_mib - self.observed.margin_mib

    def charge(self, lease: Lease) -> None:
        """Promise what one more lease was granted."""
        request = lease.request
        self.leases[request.lease_id] = lease
        self.charged_mib += request.vram_mib
        self.mib_of_class[lease.priority] += request.vram_mib
        self.free_mib -= request.vram_mib
        self.exclusive_leases += request.exclusive
        self.exclusive = self.exclusive_leases > 0
        if self.plan is not None:
            self._hold()

    def discharge(self, lease: Lease) -> None:
        """Take the promise to one lease back."""
        request = lease.request
        del self.leases[request.lease_id]
        self.charged_mib -= request.vram_mib
        self.mib_of_class[lease.priority] -= request.vram_mib
        self.free_mib += request.vram_mib
        if lease.state == "reclaiming":
            self.reclaiming_mib -= request.vram_mib
        self.exclusive_leases -= request.exclusive
        self.exclusive = self.exclusive_leases > 0
        assert self.charged_mib >= 0 and self.reclaiming_mib >= 0 and self.exclusive_leases >= 0, self.key
        if self.plan is not None:
            self._hold()

    def keep_for(self, plan: Plan | None) -> None:
        """Hold the room that a plan needs here, as it comes back; None: hold nothing any more."""
        self.plan = plan
        self._hold()
        self.node.changes.free(self)

    def _hold(self) -> None:
        hold_mib = 0 if self.plan is None else self.plan.hold_mib(self)
        self.free_mib += self.hold_mib - hold_mib
        self.hold_mib = hold_mib


class Lease(Struct, eq=False):
    """What one service holds, or held and has not been seen to let go of (`reclaiming`)."""

    request: LeaseRequested
    arrival: int  # of its request
    granted: LeaseGranted
    devices: list[Device]
    state: State
    expires_at_ms: int | None
    expiry_set_ms: int  # when expires_at_ms was set: a jump of the clock moves what was set before it
    yield_by_ms: int | None = None
    yield_set_ms: int = 0
    reclaiming_since_ms: int | None = None
    settles: bool = False  # its holder gave it back, and its memory is not seen to be back yet
    vouched: bool = False  # an operator says that its memory is back
    uses: int = 1
    reload_ms: int = 0
    since_ms: int = 0  # when it began; a jump of the clock moves that
    floor: int = 0  # of what it is worth while it is idle: the state's, as it was when it became so
    plan: Plan | None = None  # what counts on its room, once it was asked back

    @property
    def priority(self) -> Priority:
        """What it counts as: less than it claimed where its service may not claim that."""
        return self.granted.priority or self.request.priority

    @property
    def charged_mib(self) -> int:
        """What it is charged on all its devices together."""
        return self.request.vram_mib * len(self.devices)


class Holdings:
    """What each service is charged for: its leases in the order of their grants, and their sum."""

    def __init__(self) -> None:
        self._leases: dict[str, dict[str, Lease]] = {}  # by service, of those who hold anything, and by lease_id
        self._mib: dict[str, int] = {}
        self._touched: dict[str, None] = {}

    def mib(self, service: str) -> int:
        """What a service is charged on all devices together."""
        return self._mib.get(service, 0)

    def leases(self, service: str) -> Iterable[Lease]:
        """What a service is charged for, in the order of its grants."""
        return self._leases.get(service, {}).values()

    def add(self, lease: Lease) -> None:
        """A lease is charged on all its devices."""
        service = lease.request.service
        self._leases.setdefault(service, {})[lease.request.lease_id] = lease
        self._mib[service] = self._mib.get(service, 0) + lease.charged_mib
        self._touched[service] = None

    def shrink(self, lease: Lease) -> None:
        """A lease is charged on one device less."""
        self._mib[lease.request.service] -= lease.request.vram_mib
        self._touched[lease.request.service] = None

    def remove(self, lease: Lease) -> None:
        """A lease is charged no more."""
        service = lease.request.service
        self._mib[service] -= lease.charged_mib
        del self._leases[service][lease.request.lease_id]
        if not self._leases[service]:
            del self._leases[service], self._mib[service]
        self._touched[service] = None

    def touch(self, services: Iterable[str]) -> None:
        """What these services may hold is something else now."""
        self._touched |= dict.fromkeys(services)

    def take_touched(self) -> list[str]:
        """The services that hold, or may hold, something else than when this was last asked."""
        touched = list(self._touched)
        self._touched.clear()
        return touched


class Changes:
    """What changed, for those who keep what follows from the ledger: each looks at what is new to it. A change is but
    noted until one of them asks: where nobody waits nobody does."""

    def __init__(self, nodes: list[Node]) -> None:
        self.freed: dict[Device, None] = {}  # where there may be more room than when the last grant pass ended
        self.freed_all = False  # whether that may be so on all devices
        self.changed: dict[Device, None] = {}  # where something else is free than when `Rooms` last looked
        self.moves = 0  # counts changes of what is free on a node, or of when it will be
        self.noted: dict[Device, None] = {}  # where anything is free, or will be, that is not counted yet
        self._moved: deque[Node] = deque(maxlen=MOVES_REMEMBERED)  # where the last of them were
        self._nodes = nodes

    def free(self, device: Device) -> None:
        """More may be free on a device."""
        self.noted[device] = self.freed[device] = None

    def reschedule(self, lease: Lease) -> None:
        """A lease ends at another time than it did: so its devices are free at another time."""
        for device in lease.devices:
            self.noted[device] = None

    def count(self) -> None:
        """Count what was noted: whoever keeps what follows from the ledger is about to look."""
        if not self.noted:
            return
        for device in self.noted:
            device.version += 1
            device.node.version += 1
            self.moves += 1
            self._moved.append(device.node)
        self.changed |= self.noted
        self.noted.clear()

    def forget_freed(self) -> None:
        """A grant pass has looked who has a place where there is more room now."""
        self.freed.clear()
        self.freed_all = False

    def moved_since(self, moves: int) -> Iterable[Node]:
        """The nodes on which anything changed since there were so many moves; all where that is too long ago."""
        since = self.moves - moves
        if since > len(self._moved):
            return self._nodes
        return dict.fromkeys(islice(reversed(self._moved), since))


class Ledger:
    """All devices and all leases. A lease is charged on each of its devices until it is gone."""

    def __init__(self) -> None:
        self.devices: dict[str, Device] = {}
        self.nodes: list[Node] = []  # by name
        self.leases: dict[str, Lease] = {}
        self.holdings = Holdings()
        self.idle: dict[str, Lease] = {}  # by lease_id
        self.yielding: dict[str, Lease] = {}  # by lease_id
        self.settling: dict[str, Lease] = {}  # by lease_id: of those being reclaimed, which their holders gave back
        self.version = 0  # counts changes of what devices there are and what they could hold
        self.changes = Changes(self.nodes)

    def observe(self, observed: DeviceObserved) -> Device:
        """Add a device, or take over what is new about it."""
        key = device_key(observed.node, observed.device)
        device = self.devices.get(key)
        if device is None:
            node = self._node(observed.node)
            device = self.devices[key] = Device(observed, node)
            insort(node.devices, device, key=attrgetter("index"))
            self.version += 1
        else:
            could_hold = device.capacity_mib, device.observed.uuid
            device.observe(observed)
            self.version += could_hold != (device.capacity_mib, observed.uuid)
        self.changes.free(device)
        return device

    def forget(self, key: str) -> None:
        """Remove a device. Its leases must be gone."""
        device = self.devices.pop(key)
        assert not device.leases, key
        device.node.devices.remove(device)
        if not device.node.devices:
            self.nodes.remove(device.node)
        self.version += 1
        self.changes.noted[device] = None
        self.changes.freed.pop(device, None)

    def ordered_devices(self) -> list[Device]:
        """All devices by node and index: the order in which ties are broken."""
        return [device for node in self.nodes for device in node.devices]

    def open(self, lease: Lease) -> None:
        """Charge a new lease on its devices."""
        request = lease.request
        for device in lease.devices:
            # The promise of the whole project; a scheduler that is about to break it stops instead.
            assert device.free_mib >= request.vram_mib and not device.exclusive, (
                device.key,
                device.free_mib,
                request,
            )
            assert not (request.exclusive and device.leases), (device.key, device.leases, request)
            device.charge(lease)
            self.changes.noted[device] = None
        self.leases[request.lease_id] = lease
        self.holdings.add(lease)

    def reopen(self, lease: Lease) -> None:
        """Charge a lease as a snapshot holds it; its devices may have shrunk since it was granted."""
        for device in lease.devices:
            device.charge(lease)
            self.changes.noted[device] = None
            if lease.state == "reclaiming":
                device.reclaiming_mib += lease.request.vram_mib
        self.leases[lease.request.lease_id] = lease
        self.holdings.add(lease)
        self.move(lease, lease.state)

    def move(self, lease: Lease, state: State) -> None:
        """The lease is in this state now."""
        lease.state = state
        _leave_states(self, lease.request.lease_id)
        if state == "idle":
            self.idle[lease.request.lease_id] = lease
        elif state == "yielding":
            self.yielding[lease.request.lease_id] = lease
        elif lease.settles:
            self.settling[lease.request.lease_id] = lease

    def start_reclaiming(self, lease: Lease, now_ms: int, *, clean: bool) -> None:
        """The lease has ended, its memory may still be there: it stays charged. `clean`: its holder gave it back."""
        lease.settles = clean
        self.move(lease, "reclaiming")
        lease.reclaiming_since_ms = now_ms
        for device in lease.devices:
            device.reclaiming_mib += lease.request.vram_mib
        self.changes.reschedule(lease)

    def close(self, lease: Lease) -> None:
        """The lease is gone, its VRAM is free."""
        changes = self.changes
        for device in lease.devices:
            device.discharge(lease)
            changes.noted[device] = changes.freed[device] = None
        del self.leases[lease.request.lease_id]
        self.holdings.remove(lease)
        _leave_states(self, lease.request.lease_id)

    def detach(self, lease: Lease, device: Device) -> None:
        """The device is gone, and with it this lease's part on it; its other devices stay charged."""
        device.discharge(lease)
        self.changes.free(device)
        lease.devices = [other for other in lease.devices if other is not device]
        self.holdings.shrink(lease)

    def _node(self, name: str) -> Node:
        at = bisect_left(self.nodes, name, key=attrgetter("name"))
        if at == len(self.nodes) or self.nodes[at].name != name:
            self.nodes.insert(at, Node(name, self.changes))
        return self.nodes[at]


def _leave_states(ledger: Ledger, lease_id: str) -> None:
    for of_state in (ledger.idle, ledger.yielding, ledger.settling):
        of_state.pop(lease_id, None)
