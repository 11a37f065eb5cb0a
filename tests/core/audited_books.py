"""What an auditor has written down so far: what became of every request, the devices, the rules and the time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.core.audited_log import AskingBack, Audited, Caps

DAY_MS = 24 * 60 * 60 * 1000
SHAPE = ("vram_mib", "gpus", "exclusive", "device", "node", "ttl_ms")


@dataclass
class Account:
    """What became of one request. `standing`: waiting, held, idle, yielding, reclaiming or over."""

    asked: dict[str, Any]
    order: tuple[int, tuple[int, int]]  # its key and its id: who comes before whom
    asked_ms: int
    wait_until_ms: int | None
    standing: str = "waiting"
    devices: list[str] = field(default_factory=list)  # where it is charged
    expires_ms: int | None = None
    expiry_set_ms: int = 0
    yield_by_ms: int | None = None
    yield_set_ms: int = 0
    since_ms: int = 0  # when it began to wait, or to hold, without jumps of the clock
    over_ms: int = 0
    number: int = 0  # of those who hold, or held, anything

    @property
    def alive(self) -> bool:
        """Whether its holder may use it."""
        return self.standing in ("held", "idle", "yielding")

    @property
    def shape(self) -> tuple[Any, ...]:
        """What decides where it fits."""
        return tuple(self.asked.get(name) for name in SHAPE)


@dataclass
class Recovery:
    """Whether entries of the log were lost, and until when their holders have the word."""

    since_ms: int | None = None
    takes_ms: int = 0
    elected_ms: int = 0  # when another began to lead meanwhile; from then on it takes a session TTL at the least
    elected_takes_ms: int = 0
    session_ttl_ms: int = 15_000
    is_by_default: bool = True  # no rules were set yet
    ended_by: str = ""  # the tick that ended the last one

    @property
    def until_ms(self) -> int:
        """When it ends, if there is one."""
        return max((self.since_ms or 0) + self.takes_ms, self.elected_ms + self.elected_takes_ms)

    def begin(self, now_ms: int, lock_delay_ms: int) -> None:
        """Entries are gone, perhaps once more."""
        self.since_ms, self.takes_ms = now_ms, max(self.takes_ms, self.session_ttl_ms + lock_delay_ms)

    def elect(self, now_ms: int) -> None:
        """Another leads."""
        if self.since_ms is not None:
            self.elected_ms, self.elected_takes_ms = now_ms, max(self.elected_takes_ms, self.session_ttl_ms)

    def set_rules(self, session_ttl_ms: int, lock_delay_ms: int) -> None:
        """Other rules make it longer, and only the first make it shorter."""
        if self.since_ms is not None:
            self.takes_ms = max(0 if self.is_by_default else self.takes_ms, session_ttl_ms + lock_delay_ms)
        self.session_ttl_ms, self.is_by_default = session_ttl_ms, False

    def end_if_due(self, tick: Audited, now_ms: int) -> None:
        """A tick: the only entry that ends it."""
        if self.since_ms is not None and now_ms >= self.until_ms:
            self.since_ms, self.ended_by = None, tick.id
            self.takes_ms = self.elected_ms = self.elected_takes_ms = 0

    def shift(self, from_ms: int, delta_ms: int) -> None:
        """The clock jumped."""
        if self.since_ms is not None and self.since_ms < from_ms:
            self.since_ms = max(0, self.since_ms + delta_ms)
            if self.elected_ms < from_ms:
                self.elected_ms = max(0, self.elected_ms + delta_ms)


class Books:
    """All that facts and decisions have said so far. Nothing here is judged."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.lost: dict[tuple[str, str], int] = {}
        self.recovery = Recovery()
        self.lock_delay_ms = 60_000
        self.settle_ms = 5_000
        self.head_start_ms = {"low": 0, "normal": 900_000, "high": 3_600_000}
        self.caps = Caps()
        self.asking_back = AskingBack()
        self.now_ms = 0
        self.fence = 0
        self._holders = 0  # how many began to hold anything

    def of_service(self, service: str) -> list[Account]:
        """The accounts of one service."""
        return [each for each in self.accounts.values() if each.asked["service"] == service]

    def hold(self, account: Account, expires_ms: int | None) -> None:
        """One more begins to hold what it is charged for."""
        account.expires_ms, account.expiry_set_ms = expires_ms, self.now_ms
        account.number = self._holders = self._holders + 1

    def note(self, entry: Audited) -> None:
        """Write down what a fact says."""
        data = entry.data
        self.lost = {who: ms for who, ms in self.lost.items() if ms + DAY_MS > self.now_ms}
        match entry.type:
            case "SchedulerElected" if data.get("lost") is not None:
                self.now_ms = max(self.now_ms, int(data["lost"]["last_id"].split("-")[0]))
                self.recovery.begin(self.now_ms, self.lock_delay_ms)
                self.fence = max(self.fence, data["lost"]["fence"])
            case "SchedulerElected":
                self.recovery.elect(self.now_ms)
            case "ClockTicked":
                self.now_ms = max(self.now_ms, data["now_ms"])
                self._wait_longer()
                self.recovery.end_if_due(entry, self.now_ms)
            case "ClockJumped":
                self._shift(int(data["from_id"].split("-")[0]), data["delta_ms"])
            case "PolicySet":
                self.head_start_ms, self.lock_delay_ms = data["head_start_ms"], data["lock_delay_ms"]
                self.settle_ms = data.get("settle_ms", 5_000)
                self.recovery.set_rules(data["session_ttl_ms"], data["lock_delay_ms"])
                self.asking_back = AskingBack.of(data)
                self.caps = Caps(data.get("max_waiting"), data.get("services", {}))
            case "DeviceObserved":
                self.devices[f"{data['node']}/{data['device']}"] = data
            case "SessionLost":
                self.lost.setdefault((data["service"], data["session"]), self.now_ms)
            case "VramReclaimed":
                account = self.accounts.get(data["lease_id"])
                if account is not None and account.standing == "reclaiming":
                    account.standing, account.devices = "over", []

    def lose_device(self, key: str) -> list[str]:
        """A device is gone; returns whose leases were charged there."""
        on_it = [lease_id for lease_id, each in self.accounts.items() if key in each.devices]
        self.devices.pop(key, None)
        for lease_id in on_it:
            account = self.accounts[lease_id]
            account.devices.remove(key)
            if account.standing == "reclaiming" and not account.devices:
                account.standing = "over"
        return on_it

    def is_beyond_cap(self, new: Account) -> bool:
        """Whether as many others of its service wait as may. While a lost log recovers any number may."""
        waiting = [each.asked["service"] for each in self.accounts.values() if each.standing == "waiting"]
        most = self.caps.of(new.asked["service"])
        return most is not None and self.recovery.since_ms is None and waiting.count(new.asked["service"]) > most

    def is_beyond_limit(self, account: Account) -> bool:
        """Whether it alone is more than its service may hold."""
        limit_mib = self.caps.limit_mib(account.asked["service"])
        size_mib = account.asked["vram_mib"] * account.asked["gpus"]
        return limit_mib is not None and size_mib > limit_mib and self.recovery.since_ms is None

    def _shift(self, from_ms: int, delta_ms: int) -> None:
        self.recovery.shift(from_ms, delta_ms)
        for each in self.accounts.values():
            if each.since_ms < from_ms:
                each.since_ms = max(0, each.since_ms + delta_ms)
            if each.wait_until_ms is not None and each.asked_ms < from_ms:
                each.wait_until_ms = max(0, each.wait_until_ms + delta_ms)
            if each.expires_ms is not None and each.expiry_set_ms < from_ms:
                each.expires_ms = max(0, each.expires_ms + delta_ms)
            if each.yield_by_ms is not None and each.yield_set_ms < from_ms:
                each.yield_by_ms = max(0, each.yield_by_ms + delta_ms)

    def _wait_longer(self) -> None:
        """While a lost log recovers nobody's wait is over."""
        recovery = self.recovery
        for each in self.accounts.values() if recovery.since_ms is not None else ():
            if each.wait_until_ms is not None and each.wait_until_ms <= min(self.now_ms, recovery.until_ms):
                each.wait_until_ms = recovery.until_ms + 1
