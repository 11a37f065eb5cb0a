"""Who had the right to cause a decision, and whether it says what is so: an auditor judges each as it comes."""

from __future__ import annotations

from tests.core.audited_books import Account, Books
from tests.core.audited_log import Audited, AuditedLog


class Judge:
    """Judges the decisions of one log by what is in the books, enters what they change, and blames what is wrong."""

    def __init__(self, books: Books, log: AuditedLog) -> None:
        self.books = books
        self.log = log
        self._asked_for: set[str] = set()  # for whom leases were asked back

    def judge(self, entry: Audited, decision: Audited, must_end: list[str]) -> None:
        """A decision, and what caused it. `must_end`: whose waiting or holding that ends."""
        data = decision.data
        account = self.books.accounts.get(data["lease_id"])
        if account is None or data["service"] != account.asked["service"]:
            self.log.blame(decision, f"answers {data['lease_id']} of {data['service']}, who never asked")
            return
        if data.get("session") != account.asked.get("session"):
            self.log.blame(decision, "names another session than the request")
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
        books, data, asked = self.books, decision.data, account.asked
        if account.standing != "waiting":
            self.log.blame(decision, f"grants {asked['lease_id']}, which is {account.standing}")
            return
        if books.recovery.since_ms is not None:
            self.log.blame(decision, "grants while holders of what was lost still have the word")
        waiting = [each for each in books.accounts.values() if each.standing == "waiting"]
        before = [each for each in waiting if each.shape == account.shape]
        if books.caps.limit_mib(asked["service"]) is not None:
            before = [each for each in before if each.asked["service"] == asked["service"]]
        else:
            before = [each for each in before if books.caps.limit_mib(each.asked["service"]) is None]
        held = asked["lease_id"] in self._asked_for  # then it may have room that the others may not
        if any(each.order < account.order for each in before) and not held:
            self.log.blame(decision, "overtakes a request of the same shape")
        if (asked["service"], asked.get("session")) in books.lost:
            self.log.blame(decision, "grants to a session that is lost")
        devices = [f"{data['node']}/{device}" for device in data["devices"]]
        if len(set(devices)) != asked["gpus"] or data["device"] != data["devices"][0]:
            self.log.blame(decision, f"grants {data['devices']}, asked were {asked['gpus']}")
        if data["vram_mib"] != asked["vram_mib"] or asked.get("node") not in (None, data["node"]):
            self.log.blame(decision, "grants another size or node than was asked for")
        if asked.get("device") not in (None, data["device"], data["uuids"][0]):
            self.log.blame(decision, f"grants {data['device']}, asked was {asked['device']}")
        if data["fence"] <= books.fence or data["granted_at_ms"] != books.now_ms:
            self.log.blame(decision, "has a fence or a time that does not grow")
        if data.get("priority", asked["priority"]) != asked["counts_as"]:
            self.log.blame(decision, f"counts as {data.get('priority')}, and should as {asked['counts_as']}")
        if data["waited_ms"] != books.now_ms - account.asked_ms:
            self.log.blame(decision, f"says it waited {data['waited_ms']} ms")
        ttl_ms = asked.get("ttl_ms")
        if data["expires_at_ms"] != (None if ttl_ms is None else books.now_ms + ttl_ms):
            self.log.blame(decision, f"expires at {data['expires_at_ms']}")
        account.standing, account.devices, account.since_ms = "held", devices, books.now_ms
        books.hold(account, data["expires_at_ms"])
        books.fence = data["fence"]
        for key in devices:
            self._check_device(decision, key)
        self._check_limit(decision, asked["service"])

    def _check_limit(self, decision: Audited, service: str) -> None:
        """At a grant: what its service is charged for, this grant among it, is within its limit."""
        held_mib = sum(each.asked["vram_mib"] * len(each.devices) for each in self.books.of_service(service))
        limit_mib = self.books.caps.limit_mib(service)
        if limit_mib is not None and held_mib > limit_mib:
            self.log.blame(decision, f"takes {service} to {held_mib} MiB, it may hold {limit_mib}")

    def _check_device(self, decision: Audited, key: str) -> None:
        """S1, at a grant: what is promised on the device, this grant among it, is there."""
        about = self.books.devices.get(key)
        if about is None or not about.get("healthy", True):
            self.log.blame(decision, f"grants {key}, which is not there or out of order")
            return
        there_mib = about["total_mib"] - sum(about.get(f"{name}_mib", 0) for name in ("reserved", "margin", "foreign"))
        on_it = [each for each in self.books.accounts.values() if key in each.devices]
        promised_mib = sum(each.asked["vram_mib"] for each in on_it)
        if promised_mib > there_mib:
            self.log.blame(decision, f"promises {promised_mib} MiB on {key}, which has {there_mib}")
        if len(on_it) > 1 and any(each.asked["exclusive"] for each in on_it):
            self.log.blame(decision, f"shares {key}, which is exclusive")

    def _judge_denial(self, entry: Audited, decision: Audited, account: Account, due: bool) -> None:
        books = self.books
        reason, lease_id = decision.data["reason"], account.asked["lease_id"]
        if account.standing != "waiting":
            self.log.blame(decision, f"denies {lease_id}, which is {account.standing}")
            return
        its_own = entry.type == "LeaseRequested" and entry.data["lease_id"] == lease_id
        lost = (account.asked["service"], account.asked.get("session")) in books.lost
        looked = its_own or entry.type in ("DeviceObserved", "DeviceLost") or entry.id == books.recovery.ended_by
        withdrawn = ("LeaseReleased",) if books.recovery.since_ms is not None else ("LeaseReleased", "LeaseRevoked")
        hopeless = books.is_beyond_limit(account) and (due or entry.id == books.recovery.ended_by)
        right = {
            "impossible": looked and books.recovery.since_ms is None,
            "timeout": entry.type == "ClockTicked" and due,
            "cancelled": entry.type in withdrawn and due,
            "session_lost": (entry.type == "SessionLost" and due) or (its_own and lost),
            "quota": (its_own and due) or hopeless,
        }
        if not right.get(reason, False) or not decision.data["detail"]:
            self.log.blame(decision, f"denies as {reason}, because of {entry.type}")
        account.standing, account.over_ms = "over", books.now_ms

    def _judge_end(self, entry: Audited, decision: Audited, account: Account, due: bool) -> None:
        books = self.books
        reason, freed = decision.data["reason"], decision.data["freed"]
        lease_id = account.asked["lease_id"]
        if not account.alive:
            self.log.blame(decision, f"ends {lease_id}, which is {account.standing}")
            return
        yielding = account.standing == "yielding"
        expired = account.expires_ms is not None and account.expires_ms <= books.now_ms
        right = {
            "released": entry.type == "LeaseReleased" and not yielding,
            "yielded": entry.type == "LeaseReleased" and yielding,
            "expired": entry.type == "ClockTicked" and expired,
            "revoked": entry.type == "LeaseRevoked" or (entry.type == "ClockTicked" and yielding),
            "session_lost": entry.type == "SessionLost",
            "device_lost": entry.type == "DeviceLost",
        }
        if not due or not right.get(reason, False):
            self.log.blame(decision, f"ends {lease_id} as {reason}, because of {entry.type}")
        real = [key for key in account.devices if not books.devices[key].get("simulated")]
        lingers = account.devices if books.lock_delay_ms else real
        if reason in ("released", "yielded"):  # its holder gave it back
            lingers = real if min(books.lock_delay_ms, books.settle_ms) else []
        if freed == bool(lingers):
            self.log.blame(decision, f"says freed={freed}, with memory left on {lingers}")
        account.standing, account.over_ms = ("over" if freed else "reclaiming"), books.now_ms
        if freed:
            account.devices = []

    def _judge_asking(self, entry: Audited, decision: Audited, account: Account) -> None:
        """Who is asked, is asked by an operator or for somebody who waits, and may be."""
        books = self.books
        if decision.data["for"] is None:
            if entry.type != "LeaseRevoked":
                self.log.blame(decision, f"asks for nobody, because of {entry.type}")
            return
        waiting = books.accounts.get(decision.data["for"])
        if waiting is None or waiting.standing != "waiting":
            self.log.blame(decision, f"asks for {decision.data['for']}, which does not wait")
            return
        self._asked_for.add(decision.data["for"])
        ran_ms = None if account.standing == "idle" else books.now_ms - account.since_ms
        wrong = books.asking_back.why_not(account.asked, ran_ms, waiting.asked, books.now_ms - waiting.since_ms)
        if ran_ms is not None and self._is_guaranteed(account):
            wrong = "it is held, and inside its service's guarantee"
        if wrong is not None:
            self.log.blame(decision, f"asks for {account.asked['lease_id']}: {wrong}")

    def _is_guaranteed(self, account: Account) -> bool:
        """Whether it is not preemptible, and among the oldest such that the guarantee of its service covers whole."""
        service = account.asked["service"]
        left_mib = self.books.caps.guarantee_mib(service)
        firm = [each for each in self.books.of_service(service) if each.standing == "held"]
        firm = [each for each in firm if not each.asked["preemptible"]]
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
                account.expires_ms, account.expiry_set_ms = data["expires_at_ms"], self.books.now_ms
            case "LeaseStateChanged" if owners and account.standing in ("held", "idle"):
                wanted = {"LeaseIdled": "idle", "LeaseResumed": "held"}.get(entry.type)
                if data["state"] != wanted or (wanted == "idle" and not account.asked["reclaimable"]):
                    self.log.blame(decision, f"says {data['state']}, because of {entry.type}")
                account.standing = data["state"]
            case "YieldRequested" if account.standing in ("held", "idle"):
                self._judge_asking(entry, decision, account)
                account.standing = "yielding"
                account.yield_by_ms, account.yield_set_ms = data["deadline_ms"], self.books.now_ms
            case "PromiseMoved" if account.standing == "waiting":
                if data["starts_by_ms"] is not None and data["starts_by_ms"] <= data["was_ms"]:
                    self.log.blame(decision, f"moves a promise from {data['was_ms']} to {data['starts_by_ms']}")
            case _:
                self.log.blame(
                    decision, f"changes {data['lease_id']}, which is {account.standing}, because of {entry.type}"
                )
