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
from typing import Any

from tests.core.audited_books import DAY_MS, SHAPE, Account, Books
from tests.core.audited_decisions import Judge
from tests.core.audited_log import Audited, Caps, read_log

# What makes two requests with one lease_id the same request.
ESSENCE = (*SHAPE, "service", "priority", "wait_ms", "reclaimable", "preemptible", "instance", "session")
DEFAULTS: dict[str, Any] = {
    "gpus": 1,
    "exclusive": False,
    "priority": "normal",
    "reclaimable": False,
    "preemptible": True,
}


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
        self.log = log = read_log(entries)
        self.books = Books()
        self.problems = log.problems
        self.accounts = self.books.accounts
        self._judge = Judge(self.books, log)
        self._was_deferred = False  # whether the entry before left it to the next to look who may have a place
        for entry in log.inputs:
            if entry.at > log.decided_through:
                break
            self._walk(entry)

    def _walk(self, entry: Audited) -> None:
        self.books.now_ms = max(self.books.now_ms, entry.at[0])
        rejections = [each for each in entry.led_to if each.type == "EventRejected"]
        deferred, self._was_deferred = self._was_deferred, not rejections and bool(entry.data.get("inputs_follow"))
        if rejections:
            others = [each for each in entry.led_to if each.type != "EventRejected"]
            if len(rejections) > 1 or (others and not deferred):
                self.log.blame(entry, "is rejected, and yet led to something else")
            self._check_rejected(entry, rejections)
            for decision in others:
                self._judge.judge(entry, decision, [])
        elif entry.odd is not None:
            self.log.blame(entry, f"is {entry.odd}, and was not rejected")
        else:
            self.books.note(entry)
            if entry.type == "LeaseRequested":
                self._open_account(entry)
            elif entry.type == "LeaseReasserted":
                self._take_over(entry)
            must_end = self._must_end(entry)
            for decision in entry.led_to:
                self._judge.judge(entry, decision, must_end)
            for lease_id in must_end:
                if self.books.accounts[lease_id].standing == "waiting" or self.books.accounts[lease_id].alive:
                    self.log.blame(entry, f"should have ended {lease_id}, and did not")

    def _check_rejected(self, entry: Audited, rejections: list[Audited]) -> None:
        data = rejections[0].data
        if data.get("event_id") != entry.id or not data.get("detail"):
            self.log.blame(entry, "is rejected without its id or a detail")
        if (entry.odd == "forged") != (data.get("reason") == "forged"):
            self.log.blame(entry, f"is rejected as {data.get('reason')}")

    # ------------------------------------------------------------ the inputs

    def _open_account(self, entry: Audited) -> None:
        books = self.books
        asked: dict[str, Any] = DEFAULTS | entry.data
        known = books.accounts.get(asked["lease_id"])
        if known is not None and (known.standing != "over" or known.over_ms + DAY_MS > books.now_ms):
            if any(known.asked.get(name) != asked.get(name) for name in ESSENCE):
                self.log.blame(entry, "repeats a lease_id with other fields, and was not rejected")
            return
        asked["counts_as"] = books.caps.counts_as(asked)
        key = books.now_ms - books.head_start_ms[asked["counts_as"]]
        wait_ms = asked.get("wait_ms")
        wait_until_ms = None if wait_ms is None else books.now_ms + wait_ms
        account = Account(asked, (key, entry.at), books.now_ms, wait_until_ms, since_ms=books.now_ms)
        books.accounts[asked["lease_id"]] = account

    def _take_over(self, entry: Audited) -> None:
        """A holder said what it holds, and was not rejected: the log held it already, or it lost it."""
        books = self.books
        data = entry.data
        lease_id, service = data["lease_id"], data["service"]
        known = books.accounts.get(lease_id)
        if known is not None and known.standing == "over" and known.over_ms + DAY_MS <= books.now_ms:
            known = None
        if known is not None and known.alive and known.asked["service"] == service:
            said_ms = self._end_said(data) if books.recovery.since_ms is not None else None
            if known.expires_ms is not None and said_ms is not None and said_ms > known.expires_ms:
                known.expires_ms, known.expiry_set_ms = said_ms, books.now_ms  # renewed in what is gone
            return
        devices = [f"{data['node']}/{device}" for device in data["devices"]]
        if books.recovery.since_ms is None:
            self.log.blame(entry, f"is believed to hold {lease_id}, though nothing was lost")
        if known is not None and (known.standing != "waiting" or known.asked["service"] != service):
            self.log.blame(entry, f"is believed to hold {lease_id}, which is {known.standing}")
        if data["state"] == "reclaiming" or (service, data.get("session")) in books.lost:
            self.log.blame(entry, f"is believed to hold {lease_id}, though nobody lives who holds it")
        if not devices or len(set(devices)) != len(devices) or not books.devices.keys() >= set(devices):
            self.log.blame(entry, f"is believed to hold {data['devices']}, which cannot be")
        # That its devices have the room is not asked: a lease that ended may still stand in what is left of the log.
        asked = request_behind(data, books.caps) if known is None else known.asked
        account = Account(asked, (0, entry.at), books.now_ms, None, data["state"].replace("yielding", "held"), devices)
        books.hold(account, self._end_said(data))
        books.accounts[lease_id] = account
        books.fence = max(books.fence, data["fence"])

    def _end_said(self, reasserted: dict[str, Any]) -> int | None:
        """When a lease ends that its holder describes: nothing was granted later than it is now."""
        ends_ms: int | None = reasserted.get("expires_at_ms")
        early_ms = reasserted["granted_at_ms"] - self.books.now_ms
        return ends_ms - early_ms if ends_ms is not None and early_ms > 0 else ends_ms

    def _must_end(self, entry: Audited) -> list[str]:
        """Whose waiting or holding this entry ends."""
        data = entry.data
        if entry.type == "DeviceLost":
            return self.books.lose_device(f"{data['node']}/{data['device']}")
        return [i for i, each in self.books.accounts.items() if self._ends(entry, i, each)]

    def _ends(self, entry: Audited, lease_id: str, account: Account) -> bool:
        """Whether this entry ends that account, if it is waiting or alive."""
        books = self.books
        data = entry.data
        match entry.type:
            case "LeaseRequested":  # beyond the cap; a repetition is of an older account
                return account.order[1] == entry.at and (books.is_beyond_cap(account) or books.is_beyond_limit(account))
            case "PolicySet":
                return account.standing == "waiting" and books.is_beyond_limit(account)
            case "LeaseReleased":
                return bool(lease_id == data["lease_id"] and account.asked["service"] == data["service"])
            case "LeaseRevoked":
                at_once = account.standing == "waiting" or not data.get("grace_ms")
                return bool(lease_id == data["lease_id"] and at_once)
            case "SessionLost":
                return (account.asked["service"], account.asked.get("session")) == (data["service"], data["session"])
            case "ClockTicked":
                if account.standing == "waiting":
                    return account.wait_until_ms is not None and account.wait_until_ms <= books.now_ms
                deadlines = (account.expires_ms, account.yield_by_ms)
                return account.alive and any(ms is not None and ms <= books.now_ms for ms in deadlines)
        return False
