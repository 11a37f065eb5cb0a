"""What is decided and told, said a second time: a decision changes its case, and is an answer to who asked for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.core.model_plan import lingers_ms
from tests.core.model_room import ALIVE, Case, Room


class Answer(NamedTuple):
    """One expected decision: its type, its data without `detail`, its reply stream, and whether it is new."""

    type: str
    data: dict[str, Any]
    address: str | None
    is_new: bool


class Rejection(NamedTuple):
    """What is expected of an entry that is no event: the reason, and whom the entry names."""

    reason: str
    lease_id: str | None = None
    service: str | None = None
    session: str | None = None
    address: str | None = None


@dataclass
class Clock:
    """The time of the log, and the time of its last tick."""

    now_ms: int = 0
    ticked_ms: int = 0


class Decisions:
    """What one entry after the other leads to. `answers`: what has been told because of the last one."""

    def __init__(self, room: Room, rules: dict[str, Any], clock: Clock) -> None:
        self.room = room
        self.rules = rules
        self.clock = clock
        self.fence = 0
        self.answers: list[Answer] = []
        self._cause = ""

    def begin(self, cause: str) -> None:
        """The next entry; nothing was told because of it yet."""
        self._cause, self.answers = cause, []

    def grant(self, case: Case, devices: list[str]) -> None:
        """Who waits gets these devices."""
        self.fence += 1
        asked, now_ms = case.asked, self.clock.now_ms
        case.is_, case.devices, case.want, case.since_ms = "held", devices, None, now_ms
        case.expires_ms = None if asked["ttl_ms"] is None else now_ms + asked["ttl_ms"]
        case.expiry_set_ms = now_ms
        abouts = [self.room.devices[key] for key in devices]
        answer = self.say(
            "LeaseGranted",
            case,
            node=abouts[0]["node"],
            device=abouts[0]["device"],
            devices=[about["device"] for about in abouts],
            uuids=[about["uuid"] for about in abouts],
            vram_mib=asked["vram_mib"],
            granted_at_ms=now_ms,
            expires_at_ms=case.expires_ms,
            waited_ms=now_ms - case.submitted_ms,
            fence=self.fence,
            **({} if case.counts_as == asked["priority"] else {"priority": case.counts_as}),
        )
        case.granted = answer.data

    def deny(self, case: Case, reason: str) -> None:
        """Who waits is told that it waits in vain."""
        case.is_, case.over_ms, case.want = "over", self.clock.now_ms, None
        case.final = self.say("LeaseDenied", case, reason=reason)

    def end(self, case: Case, reason: str) -> None:
        """A lease is over; its memory may still be there."""
        case.settles = reason in ("released", "yielded")
        real = [key for key in case.devices if not self.room.devices[key]["simulated"]]
        lingers = real or (case.devices if self.rules["lock_delay_ms"] > 0 else [])
        if case.settles:
            lingers = real if lingers_ms(self.rules, case) > 0 else []
        freed = not lingers
        case.is_, case.over_ms = "over" if freed else "reclaiming", self.clock.now_ms
        case.reclaiming_ms = self.clock.now_ms
        case.final = self.say("LeaseEnded", case, reason=reason, freed=freed)

    def ask_back(self, lease: Case, grace_ms: int, wanted_by: str | None) -> None:
        """A lease is asked back, for somebody who waits or for an operator."""
        lease.is_, lease.yield_by_ms, lease.yield_set_ms = "yielding", self.clock.now_ms + grace_ms, self.clock.now_ms
        self.say("YieldRequested", lease, deadline_ms=lease.yield_by_ms, **{"for": wanted_by})

    # ------------------------------------------------------------ answering

    def say(self, type_name: str, case: Case, **fields: Any) -> Answer:
        """Answer who asked for a case."""
        asked = case.asked
        data = {"cause": self._cause, "lease_id": asked["lease_id"], "service": asked["service"], **fields}
        if asked["session"] is not None:
            data["session"] = asked["session"]
        answer = Answer(type_name, data, address_of(asked), True)
        self.answers.append(answer)
        return answer

    def repeat(self, case: Case, asked: dict[str, Any]) -> None:
        """Answer a request once more, as it was answered before."""
        if case.granted is not None:
            expires_ms = case.expires_ms if case.is_ in ALIVE else case.granted["expires_at_ms"]
            granted = case.granted | {"expires_at_ms": expires_ms}
            self.answers.append(Answer("LeaseGranted", granted, address_of(asked), False))
        if case.final is not None:
            self.answers.append(case.final._replace(is_new=False))

    def refuse(self, reason: str, data: dict[str, Any], listener: dict[str, Any] | None) -> None:
        """Refuse what a service asked; `listener` says on which stream, and for which session, it listens."""
        session = None if listener is None else listener["session"]
        address = data["service"] if listener is None else address_of(listener)
        self.reject(Rejection(reason, data["lease_id"], data["service"], session, address))

    def reject(self, rejection: Rejection) -> None:
        """Answer an entry that is no event, or may not be."""
        data = {"cause": self._cause, "event_id": self._cause, "reason": rejection.reason}
        for name in ("lease_id", "service", "session"):
            if (value := getattr(rejection, name)) is not None:
                data[name] = value
        self.answers.append(Answer("EventRejected", data, rejection.address, True))


def address_of(asked: dict[str, Any]) -> str:
    """The reply stream on which who asked listens."""
    service, instance = asked["service"], asked["instance"]
    return str(service) if instance is None else f"{service}:{instance}"
