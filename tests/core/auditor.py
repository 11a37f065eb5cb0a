"""Looks at a finished log from outside and says what is wrong with it: the contract's guarantees, entry by entry.

    problems = audit(log)      # [(id, [field, value, ...]), ...], the whole log from its first entry

It shares no code with the scheduler: it reads JSON, keeps its own account of every device, and asks of every
decision who had the right to cause it. Checked are S1 (never more promised than there is), S2 (one grant), one
answer a request and one end a grant, S6 (only its owner, an operator or a fact ends a lease), S7 (odd entries are
rejected and stop nothing), the order within a shape, and that nothing which was due was left out. Where entries of
the log were lost, a lease may begin without a grant: its holder says so, before the recovery ends. Until then nothing
is granted, or denied as impossible.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.core.audited_log import AskingBack, Audited, Caps, read_log

DAY_MS = 24 * 60 * 60 * 1000
SHAPE = ("vram_mib", "gpus", "exclusive", "device", "node", "ttl_ms")
# What makes two requests with one lease_id the same request.
ESSENCE = (*SHAPE, "service", "priority", "wait_ms", "reclaimable", "preemptible", "instance", "session")
DEFAULTS: dict[str, Any] = {
    "gpus": 1,
    "exclusive": False,
    "priority": "normal",
    "reclaimable": False,
    "preemptible": True,
}


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
    session_ttl_ms: int = 15_000
    ended_by: str = ""  # the tick that ended the last one

    def until_ms(self, lock_delay_ms: int) -> int | None:
        """When it ends; None if there is none."""
        return None if self.since_ms is None else self.since_ms + self.session_ttl_ms + lock_delay_ms

    def end_if_due(self, tick: Audited, now_ms: int, lock_delay_ms: int) -> None:
        """A tick: the only entry that ends it."""
        until_ms = self.until_ms(lock_delay_ms)
        if until_ms is not None and now_ms >= until_ms:
            self.since_ms, self.ended_by = None, tick.id

    def shift(self, from_ms: int, delta_ms: int) -> None:
        """The clock jumped."""
        if self.since_ms is not None and self.since_ms < from_ms:
            self.since_ms = max(0, self.since_ms + delta_ms)


def request_behind(reasserted: dict[str, Any], caps: Caps) -> dict[str, Any]:
    """What a holder must have asked for, to hold what it says it holds."""
    names = ("lease_id", "service", "vram_mib", "priority", "node", "session", "instance")
    asked = {name: reasserted.get(name) for name in names} | {"gpus": len(reasserted["devices"])}
    asked |= {name: reasserted[name] for name in ("exclusive", "reclaimable", "preemptible") if name in reasserted}
    if reasserted["state"] == "idle":
        asked["reclaimable"] = True
    return DEFAULTS | asked | {"counts_as": caps.counts_as(asked)}


def audit(entries: Iterable[tuple[str, list[bytes]]]) -> list[str]:
    """What is wrong with a log; nothing, one hopes. Inputs at its end that are not decided yet are left alone."""
    return Audit(entries).problems


class Audit:
    """One look at one log. `accounts` are the requests at its end, `problems` what is wrong."""

    def __init__(self, entries: Iterable[tuple[str, list[bytes]]]) -> None:
        log = read_log(entries)
        self.problems = log.problems
        self.accounts: dict[str, Account] = {}
        self._devices: dict[str, dict[str, Any]] = {}
        self._lost: dict[tuple[str, str], int] = {}
        self._recovery = Recovery()
        self._lock_delay_ms = 60_000
        self._settle_ms = 5_000
        self._head_start_ms = {"low": 0, "normal": 900_000, "high": 3_600_000}
        self._caps = Caps()
        self._asking_back = AskingBack()
        self._asked_for: dict[str, None] = {}  # for whom leases were asked back
        self._now_ms = 0
        self._fence = 0
        self._holders = 0  # how many began to hold anything
        self._was_deferred = False  # whether the entry before left it to the next to look who may have a place
        for entry in log.inputs:
            if entry.at > log.decided_through:
                break
            self._walk(entry)

    def _walk(self, entry: Audited) -> None:
        self._now_ms = max(self._now_ms, entry.at[0])
        rejections = [each for each in entry.led_to if each.type == "EventRejected"]
        deferred, self._was_deferred = self._was_deferred, not rejections and bool(entry.data.get("inputs_follow"))
        if rejections:
            others = [each for each in entry.led_to if each.type != "EventRejected"]
            if len(rejections) > 1 or (others and not deferred):
                self._blame(entry, "is rejected, and yet led to something else")
            self._check_rejected(entry, rejections)
            for decision in others:
                self._judge(entry, decision, [])
        elif entry.odd is not None:
            self._blame(entry, f"is {entry.odd}, and was not rejected")
        else:
            self._apply_fact(entry)
            if entry.type == "LeaseRequested":
                self._open_account(entry)
            elif entry.type == "LeaseReasserted":
                self._take_over(entry)
            must_end = self._must_end(entry)
            for decision in entry.led_to:
                self._judge(entry, decision, must_end)
            for lease_id in must_end:
                if self.accounts[lease_id].standing == "waiting" or self.accounts[lease_id].alive:
                    self._blame(entry, f"should have ended {lease_id}, and did not")

    def _blame(self, entry: Audited, what: str) -> None:
        self.problems.append(f"{entry.id} {entry.type or '?'}: {what}")

    def _check_rejected(self, entry: Audited, rejections: list[Audited]) -> None:
        data = rejections[0].data
        if data.get("event_id") != entry.id or not data.get("detail"):
            self._blame(entry, "is rejected without its id or a detail")
        if (entry.odd == "forged") != (data.get("reason") == "forged"):
            self._blame(entry, f"is rejected as {data.get('reason')}")

    # ------------------------------------------------------------ the inputs

    def _open_account(self, entry: Audited) -> None:
        asked: dict[str, Any] = DEFAULTS | entry.data
        known = self.accounts.get(asked["lease_id"])
        if known is not None and (known.standing != "over" or known.over_ms + DAY_MS > self._now_ms):
            if any(known.asked.get(name) != asked.get(name) for name in ESSENCE):
                self._blame(entry, "repeats a lease_id with other fields, and was not rejected")
            return
        asked["counts_as"] = self._caps.counts_as(asked)
        key = self._now_ms - self._head_start_ms[asked["counts_as"]]
        wait_ms = asked.get("wait_ms")
        wait_until_ms = None if wait_ms is None else self._now_ms + wait_ms
        self.accounts[asked["lease_id"]] = Account(
            asked, (key, entry.at), self._now_ms, wait_until_ms, since_ms=self._now_ms
        )

    def _take_over(self, entry: Audited) -> None:
        """A holder said what it holds, and was not rejected: the log held it already, or it lost it."""
        data = entry.data
        lease_id, service = data["lease_id"], data["service"]
        known = self.accounts.get(lease_id)
        if known is not None and known.standing == "over" and known.over_ms + DAY_MS <= self._now_ms:
            known = None
        if known is not None and known.alive and known.asked["service"] == service:
            said_ms = self._end_said(data) if self._recovery.since_ms is not None else None
            if known.expires_ms is not None and said_ms is not None and said_ms > known.expires_ms:
                known.expires_ms, known.expiry_set_ms = said_ms, self._now_ms  # renewed in what is gone
            return
        devices = [f"{data['node']}/{device}" for device in data["devices"]]
        if self._recovery.since_ms is None:
            self._blame(entry, f"is believed to hold {lease_id}, though nothing was lost")
        if known is not None and (known.standing != "waiting" or known.asked["service"] != service):
            self._blame(entry, f"is believed to hold {lease_id}, which is {known.standing}")
        if data["state"] == "reclaiming" or (service, data.get("session")) in self._lost:
            self._blame(entry, f"is believed to hold {lease_id}, though nobody lives who holds it")
        if not devices or len(set(devices)) != len(devices) or not self._devices.keys() >= set(devices):
            self._blame(entry, f"is believed to hold {data['devices']}, which cannot be")
        # That its devices have the room is not asked: a lease that ended may still stand in what is left of the log.
        asked = request_behind(data, self._caps) if known is None else known.asked
        account = Account(asked, (0, entry.at), self._now_ms, None, data["state"].replace("yielding", "held"), devices)
        account.expires_ms, account.expiry_set_ms = self._end_said(data), self._now_ms
        account.number = self._holders = self._holders + 1
        self.accounts[lease_id] = account
        self._fence = max(self._fence, data["fence"])

    def _end_said(self, reasserted: dict[str, Any]) -> int | None:
        """When a lease ends that its holder describes: nothing was granted later than it is now."""
        ends_ms: int | None = reasserted.get("expires_at_ms")
        early_ms = reasserted["granted_at_ms"] - self._now_ms
        return ends_ms - early_ms if ends_ms is not None and early_ms > 0 else ends_ms

    def _apply_fact(self, entry: Audited) -> None:
        data = entry.data
        self._lost = {who: ms for who, ms in self._lost.items() if ms + DAY_MS > self._now_ms}
        match entry.type:
            case "SchedulerElected" if data.get("lost") is not None:
                self._now_ms = max(self._now_ms, int(data["lost"]["last_id"].split("-")[0]))
                self._recovery.since_ms = self._now_ms
                self._fence = max(self._fence, data["lost"]["fence"])
            case "ClockTicked":
                self._now_ms = max(self._now_ms, data["now_ms"])
                self._wait_longer()
                self._recovery.end_if_due(entry, self._now_ms, self._lock_delay_ms)
            case "ClockJumped":
                self._shift(int(data["from_id"].split("-")[0]), data["delta_ms"])
            case "PolicySet":
                self._head_start_ms, self._lock_delay_ms = data["head_start_ms"], data["lock_delay_ms"]
                self._settle_ms = data.get("settle_ms", 5_000)
                self._recovery.session_ttl_ms = data["session_ttl_ms"]
                self._asking_back = AskingBack.of(data)
                self._caps = Caps(data.get("max_waiting"), data.get("services", {}))
            case "DeviceObserved":
                self._devices[f"{data['node']}/{data['device']}"] = data
            case "SessionLost":
                self._lost.setdefault((data["service"], data["session"]), self._now_ms)
            case "VramReclaimed":
                account = self.accounts.get(data["lease_id"])
                if account is not None and account.standing == "reclaiming":
                    account.standing, account.devices = "over", []

    def _shift(self, from_ms: int, delta_ms: int) -> None:
        self._recovery.shift(from_ms, delta_ms)
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
        until_ms = self._recovery.until_ms(self._lock_delay_ms)
        for each in self.accounts.values():
            if until_ms is None or each.wait_until_ms is None or each.wait_until_ms > min(self._now_ms, until_ms):
                continue
            each.wait_until_ms = until_ms + 1

    def _must_end(self, entry: Audited) -> list[str]:
        """Whose waiting or holding this entry ends."""
        data = entry.data
        if entry.type == "DeviceLost":
            key = f"{data['node']}/{data['device']}"
            on_it = [lease_id for lease_id, each in self.accounts.items() if key in each.devices]
            self._devices.pop(key, None)
            for lease_id in on_it:
                account = self.accounts[lease_id]
                account.devices.remove(key)
                if account.standing == "reclaiming" and not account.devices:
                    account.standing = "over"
            return on_it
        return [i for i, each in self.accounts.items() if self._ends(entry, i, each)]

    def _ends(self, entry: Audited, lease_id: str, account: Account) -> bool:
        """Whether this entry ends that account, if it is waiting or alive."""
        data = entry.data
        match entry.type:
            case "LeaseRequested":  # beyond the cap; a repetition is of an older account
                return account.order[1] == entry.at and (self._is_beyond_cap(account) or self._is_beyond_limit(account))
            case "PolicySet":
                return account.standing == "waiting" and self._is_beyond_limit(account)
            case "LeaseReleased":
                return bool(lease_id == data["lease_id"] and account.asked["service"] == data["service"])
            case "LeaseRevoked":
                at_once = account.standing == "waiting" or not data.get("grace_ms")
                return bool(lease_id == data["lease_id"] and at_once)
            case "SessionLost":
                return (account.asked["service"], account.asked.get("session")) == (data["service"], data["session"])
            case "ClockTicked":
                if account.standing == "waiting":
                    return account.wait_until_ms is not None and account.wait_until_ms <= self._now_ms
                deadlines = (account.expires_ms, account.yield_by_ms)
                return account.alive and any(ms is not None and ms <= self._now_ms for ms in deadlines)
        return False

    def _is_beyond_cap(self, new: Account) -> bool:
        """Whether as many others of its service wait as may. While a lost log recovers any number may."""
        waiting = [each.asked["service"] for each in self.accounts.values() if each.standing == "waiting"]
        most = self._caps.of(new.asked["service"])
        return most is not None and self._recovery.since_ms is None and waiting.count(new.asked["service"]) > most

    def _is_beyond_limit(self, account: Account) -> bool:
        """Whether it alone is more than its service may hold."""
        limit_mib = self._caps.limit_mib(account.asked["service"])
        size_mib = account.asked["vram_mib"] * account.asked["gpus"]
        return limit_mib is not None and size_mib > limit_mib and self._recovery.since_ms is None

    # ------------------------------------------------------------ the decisions

    def _judge(self, entry: Audited, decision: Audited, must_end: list[str]) -> None:
        data = decision.data
        account = self.accounts.get(data["lease_id"])
        if account is None or data["service"] != account.asked["service"]:
            self._blame(decision, f"answers {data['lease_id']} of {data['service']}, who never asked")
            return
        if data.get("session") != account.asked.get("session"):
            self._blame(decision, "names another session than the request")
        match decision.type:
            case "LeaseGranted":
                self._judge_grant(decision, account)
            case "LeaseDenied":
                self._judge_denial(entry, decision, account, data["lease_id"] in must_end)
            case "LeaseEnded":
                self._judge_end(entry, decision, account, data["lease_id"] in must_end)
            case _:
                self._judge_change(entry, decision, account)

    def _judge_grant(self, decision: Audited, account: Account) -> None:
        data, asked = decision.data, account.asked
        if account.standing != "waiting":
            self._blame(decision, f"grants {asked['lease_id']}, which is {account.standing}")
            return
        if self._recovery.since_ms is not None:
            self._blame(decision, "grants while holders of what was lost still have the word")
        before = [each for each in self.accounts.values() if each.standing == "waiting" and each.shape == account.shape]
        if self._caps.limit_mib(asked["service"]) is not None:
            before = [each for each in before if each.asked["service"] == asked["service"]]
        else:
            before = [each for each in before if self._caps.limit_mib(each.asked["service"]) is None]
        held = asked["lease_id"] in self._asked_for  # then it may have room that the others may not
        if any(each.order < account.order for each in before) and not held:
            self._blame(decision, "overtakes a request of the same shape")
        if (asked["service"], asked.get("session")) in self._lost:
            self._blame(decision, "grants to a session that is lost")
        devices = [f"{data['node']}/{device}" for device in data["devices"]]
        if len(set(devices)) != asked["gpus"] or data["device"] != data["devices"][0]:
            self._blame(decision, f"grants {data['devices']}, asked were {asked['gpus']}")
        if data["vram_mib"] != asked["vram_mib"] or asked.get("node") not in (None, data["node"]):
            self._blame(decision, "grants another size or node than was asked for")
        if asked.get("device") not in (None, data["device"], data["uuids"][0]):
            self._blame(decision, f"grants {data['device']}, asked was {asked['device']}")
        if data["fence"] <= self._fence or data["granted_at_ms"] != self._now_ms:
            self._blame(decision, "has a fence or a time that does not grow")
        if data.get("priority", asked["priority"]) != asked["counts_as"]:
            self._blame(decision, f"counts as {data.get('priority')}, and should as {asked['counts_as']}")
        if data["waited_ms"] != self._now_ms - account.asked_ms:
            self._blame(decision, f"says it waited {data['waited_ms']} ms")
        ttl_ms = asked.get("ttl_ms")
        if data["expires_at_ms"] != (None if ttl_ms is None else self._now_ms + ttl_ms):
            self._blame(decision, f"expires at {data['expires_at_ms']}")
        self._fence = data["fence"]
        account.standing, account.devices = "held", devices
        account.expires_ms, account.expiry_set_ms = data["expires_at_ms"], self._now_ms
        account.since_ms = self._now_ms
        account.number = self._holders = self._holders + 1
        for key in devices:
            self._check_device(decision, key)
        self._check_limit(decision, asked["service"])

    def _check_limit(self, decision: Audited, service: str) -> None:
        """At a grant: what its service is charged for, this grant among it, is within its limit."""
        mine = [each for each in self.accounts.values() if each.asked["service"] == service]
        held_mib = sum(each.asked["vram_mib"] * len(each.devices) for each in mine)
        limit_mib = self._caps.limit_mib(service)
        if limit_mib is not None and held_mib > limit_mib:
            self._blame(decision, f"takes {service} to {held_mib} MiB, it may hold {limit_mib}")

    def _check_device(self, decision: Audited, key: str) -> None:
        """S1, at a grant: what is promised on the device, this grant among it, is there."""
        about = self._devices.get(key)
        if about is None or not about.get("healthy", True):
            self._blame(decision, f"grants {key}, which is not there or out of order")
            return
        there_mib = about["total_mib"] - sum(about.get(f"{name}_mib", 0) for name in ("reserved", "margin", "foreign"))
        on_it = [each for each in self.accounts.values() if key in each.devices]
        promised_mib = sum(each.asked["vram_mib"] for each in on_it)
        if promised_mib > there_mib:
            self._blame(decision, f"promises {promised_mib} MiB on {key}, which has {there_mib}")
        if len(on_it) > 1 and any(each.asked["exclusive"] for each in on_it):
            self._blame(decision, f"shares {key}, which is exclusive")

    def _judge_denial(self, entry: Audited, decision: Audited, account: Account, due: bool) -> None:
        reason, lease_id = decision.data["reason"], account.asked["lease_id"]
        if account.standing != "waiting":
            self._blame(decision, f"denies {lease_id}, which is {account.standing}")
            return
        its_own = entry.type == "LeaseRequested" and entry.data["lease_id"] == lease_id
        lost = (account.asked["service"], account.asked.get("session")) in self._lost
        looked = its_own or entry.type in ("DeviceObserved", "DeviceLost") or entry.id == self._recovery.ended_by
        hopeless = self._is_beyond_limit(account) and (due or entry.id == self._recovery.ended_by)
        right = {
            "impossible": looked and self._recovery.since_ms is None,
            "timeout": entry.type == "ClockTicked" and due,
            "cancelled": entry.type in ("LeaseReleased", "LeaseRevoked") and due,
            "session_lost": (entry.type == "SessionLost" and due) or (its_own and lost),
            "quota": (its_own and due) or hopeless,
        }
        if not right.get(reason, False) or not decision.data["detail"]:
            self._blame(decision, f"denies as {reason}, because of {entry.type}")
        account.standing, account.over_ms = "over", self._now_ms

    def _judge_end(self, entry: Audited, decision: Audited, account: Account, due: bool) -> None:
        reason, freed = decision.data["reason"], decision.data["freed"]
        lease_id = account.asked["lease_id"]
        if not account.alive:
            self._blame(decision, f"ends {lease_id}, which is {account.standing}")
            return
        yielding = account.standing == "yielding"
        expired = account.expires_ms is not None and account.expires_ms <= self._now_ms
        right = {
            "released": entry.type == "LeaseReleased" and not yielding,
            "yielded": entry.type == "LeaseReleased" and yielding,
            "expired": entry.type == "ClockTicked" and expired,
            "revoked": entry.type == "LeaseRevoked" or (entry.type == "ClockTicked" and yielding),
            "session_lost": entry.type == "SessionLost",
            "device_lost": entry.type == "DeviceLost",
        }
        if not due or not right.get(reason, False):
            self._blame(decision, f"ends {lease_id} as {reason}, because of {entry.type}")
        real = [key for key in account.devices if not self._devices[key].get("simulated")]
        lingers = account.devices if self._lock_delay_ms else real
        if reason in ("released", "yielded"):  # its holder gave it back
            lingers = real if min(self._lock_delay_ms, self._settle_ms) else []
        if freed == bool(lingers):
            self._blame(decision, f"says freed={freed}, with memory left on {lingers}")
        account.standing, account.over_ms = ("over" if freed else "reclaiming"), self._now_ms
        if freed:
            account.devices = []

    def _judge_asking(self, entry: Audited, decision: Audited, account: Account) -> None:
        """Who is asked, is asked by an operator or for somebody who waits, and may be."""
        if decision.data["for"] is None:
            if entry.type != "LeaseRevoked":
                self._blame(decision, f"asks for nobody, because of {entry.type}")
            return
        waiting = self.accounts.get(decision.data["for"])
        if waiting is None or waiting.standing != "waiting":
            self._blame(decision, f"asks for {decision.data['for']}, which does not wait")
            return
        self._asked_for[decision.data["for"]] = None
        ran_ms = None if account.standing == "idle" else self._now_ms - account.since_ms
        wrong = self._asking_back.why_not(account.asked, ran_ms, waiting.asked, self._now_ms - waiting.since_ms)
        if ran_ms is not None and self._is_guaranteed(account):
            wrong = "it is held, and inside its service's guarantee"
        if wrong is not None:
            self._blame(decision, f"asks for {account.asked['lease_id']}: {wrong}")

    def _is_guaranteed(self, account: Account) -> bool:
        """Whether it is not preemptible, and among the oldest such that the guarantee of its service covers whole."""
        service = account.asked["service"]
        left_mib = self._caps.guarantee_mib(service)
        firm = [each for each in self.accounts.values() if each.standing == "held"]
        firm = [each for each in firm if each.asked["service"] == service and not each.asked["preemptible"]]
        for each in sorted(firm, key=lambda each: each.number):
            size_mib = each.asked["vram_mib"] * len(each.devices)
            if size_mib <= left_mib:
                left_mib -= size_mib
                if each is account:
                    return True
        return False

    def _judge_change(self, entry: Audited, decision: Audited, account: Account) -> None:
        data = decision.data
        owners = entry.data.get("lease_id") == data["lease_id"] and entry.data.get("service") == data["service"]
        match decision.type:
            case "LeaseExtended" if entry.type == "LeaseRenewed" and owners and account.standing in ("held", "idle"):
                account.expires_ms, account.expiry_set_ms = data["expires_at_ms"], self._now_ms
            case "LeaseStateChanged" if owners and account.standing in ("held", "idle"):
                wanted = {"LeaseIdled": "idle", "LeaseResumed": "held"}.get(entry.type)
                if data["state"] != wanted or (wanted == "idle" and not account.asked["reclaimable"]):
                    self._blame(decision, f"says {data['state']}, because of {entry.type}")
                account.standing = data["state"]
            case "YieldRequested" if account.standing in ("held", "idle"):
                self._judge_asking(entry, decision, account)
                account.standing = "yielding"
                account.yield_by_ms, account.yield_set_ms = data["deadline_ms"], self._now_ms
            case "PromiseMoved" if account.standing == "waiting":
                if data["starts_by_ms"] is not None and data["starts_by_ms"] <= data["was_ms"]:
                    self._blame(decision, f"moves a promise from {data['was_ms']} to {data['starts_by_ms']}")
            case _:
                self._blame(
                    decision, f"changes {data['lease_id']}, which is {account.standing}, because of {entry.type}"
                )
