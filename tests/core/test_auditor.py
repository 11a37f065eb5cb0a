"""The auditor sees what is wrong: a log by an honest scheduler has no problem, and each lie in it is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gpuboss.events import (
    ClockTicked,
    EventRejected,
    LeaseDenied,
    LeaseEnded,
    LeaseExtended,
    LeaseGranted,
    LeaseIdled,
    LeaseReleased,
    LeaseRenewed,
    LeaseRequested,
    LeaseRevoked,
    LeaseStateChanged,
    PromiseMoved,
    SchedulerElected,
    YieldRequested,
)
from tests.core.auditor import Audit, audit
from tests.core.scenario import Log, device_lost, observed, padded, policy, reclaimed, session_lost


class Liar(Log):
    """A log whose decisions are written by hand; two devices of 24,576 MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.stamp(SchedulerElected("first", "0", 1, "log-1"))
        self.stamp(policy())
        self.stamp(observed(0, 24_576))
        self.stamp(observed(1, 24_576))
        self.asked: dict[str, LeaseRequested] = {}
        self.fence = 0

    def ask(self, name: str, vram_mib: int = 8_192, **fields: Any) -> str:
        """A request."""
        self.asked[name] = LeaseRequested(padded(name), "imajin", vram_mib, **fields)
        return self.write(self.asked[name])

    def grant(self, cause: str, name: str, **lies: Any) -> str:
        """A grant on cuda:0, true but for what is said otherwise."""
        asked = self.asked[name]
        self.fence += 1
        truth: dict[str, Any] = {
            "cause": cause,
            "session": asked.session,
            "lease_id": asked.lease_id,
            "service": asked.service,
            "node": "alpha",
            "device": "cuda:0",
            "devices": ("cuda:0",),
            "uuids": ("GPU-alpha-0",),
            "vram_mib": asked.vram_mib,
            "granted_at_ms": self.now_ms,
            "expires_at_ms": None if asked.ttl_ms is None else self.now_ms + asked.ttl_ms,
            "waited_ms": 0,
            "fence": self.fence,
        }
        return self.stamp(LeaseGranted(**(truth | lies)))

    def held(self, name: str, vram_mib: int = 8_192, **fields: Any) -> str:
        """A request and its grant; returns the request's id."""
        cause = self.ask(name, vram_mib, **fields)
        self.grant(cause, name)
        return cause

    def end(self, cause: str, name: str, reason: Any, freed: bool = True) -> str:
        """An end."""
        session = self.asked[name].session
        return self.stamp(LeaseEnded(padded(name), "imajin", reason, freed, cause=cause, session=session))

    def deny(self, cause: str, name: str, reason: Any) -> str:
        """A denial."""
        session = self.asked[name].session
        return self.stamp(LeaseDenied(padded(name), "imajin", reason, "so it is", cause=cause, session=session))

    def reject(self, cause: str, reason: Any, event_id: str = "", detail: str = "so it is") -> str:
        """A rejection."""
        return self.stamp(EventRejected(event_id or cause, reason, detail, cause=cause))

    def release(self, name: str, service: str = "imajin") -> str:
        """A release."""
        return self.write(LeaseReleased(padded(name), service))

    def decided(self) -> None:
        """Something that is decided, so that all before it counts as decided too."""
        cause = self.append(b"nothing", b"at all")
        self.reject(cause, "malformed")


def story(tell: Callable[[Liar], object]) -> list[str]:
    """What the auditor says of a story."""
    log = Liar()
    tell(log)
    log.decided()
    return audit(log.entries)


def ends_twice(log: Liar) -> None:
    log.held("a")
    cause = log.release("a")
    log.end(cause, "a", "released")
    log.end(cause, "a", "released")


def tick(log: Liar, after_ms: int) -> str:
    log.now_ms += after_ms
    return log.stamp(ClockTicked(log.now_ms))


def gang(log: Liar, **lies: Any) -> str:
    return log.grant(log.ask("a", gpus=2), "a", **lies)


def yielding(log: Liar) -> str:
    log.held("a", reclaimable=True)
    cause = log.write(LeaseRevoked(padded("a"), "maintenance", "root", 5))
    return log.stamp(YieldRequested(padded("a"), "imajin", log.now_ms + 5, None, cause=cause))


def change(log: Liar, event: Any, decision: Any, **fields: Any) -> str:
    cause = log.write(event)
    return log.stamp(decision(padded("a"), "imajin", cause=cause, **fields))


def moved(log: Liar, cause: str, starts_by_ms: int | None, was_ms: int) -> str:
    return log.stamp(PromiseMoved(padded("a"), "imajin", starts_by_ms, was_ms, cause=cause))


TRUTHS: dict[str, Callable[[Liar], object]] = {
    "a lease held and released": lambda log: (log.held("a"), log.end(log.release("a"), "a", "released")),
    "a request denied": lambda log: log.deny(log.ask("a", 99_999), "a", "impossible"),
    "a request that waits": lambda log: log.ask("a"),
    "a request taken back": lambda log: (log.ask("a"), log.deny(log.release("a"), "a", "cancelled")),
    "a timeout": lambda log: (log.ask("a", wait_ms=5), log.deny(tick(log, 5), "a", "timeout")),
    "an expiry": lambda log: (log.held("a", ttl_ms=5), log.end(tick(log, 5), "a", "expired")),
    "a dead session": lambda log: (
        log.held("a", session=padded("s")),
        log.end(log.stamp(session_lost("s")), "a", "session_lost"),
    ),
    "a lost device": lambda log: (log.held("a"), log.end(log.stamp(device_lost(0)), "a", "device_lost")),
    "a lease asked back": yielding,
    "two devices": lambda log: gang(log, devices=("cuda:0", "cuda:1"), uuids=("GPU-alpha-0", "GPU-alpha-1")),
    "an extension": lambda log: (
        log.held("a"),
        change(log, LeaseRenewed(padded("a"), "imajin", 5), LeaseExtended, expires_at_ms=log.now_ms + 5),
    ),
    "a lease kept idle": lambda log: (
        log.held("a", reclaimable=True),
        change(log, LeaseIdled(padded("a"), "imajin"), LeaseStateChanged, state="idle"),
    ),
    "a full device": lambda log: (log.held("a", 24_576), log.ask("b")),
    "a promise put off": lambda log: moved(log, log.ask("a"), 7, 5),
    "a promise taken back": lambda log: moved(log, log.ask("a"), None, 5),
    "a place left to an entry that is rejected": lambda log: (
        log.ask("a"),
        log.stamp(ClockTicked(log.now_ms, inputs_follow=True)),
        cause := log.append(b"x"),
        log.reject(cause, "malformed"),
        log.grant(cause, "a"),
    ),
}

LIES: dict[str, tuple[str, Callable[[Liar], object]]] = {
    "more promised than there is": ("promises 28192 MiB", lambda log: (log.held("a", 20_000), log.held("b"))),
    "foreign memory forgotten": (
        "promises 8192 MiB",
        lambda log: (log.stamp(observed(0, 24_576, foreign_mib=20_000)), log.held("a")),
    ),
    "what is being reclaimed granted again": (
        "promises 40000 MiB",
        lambda log: (
            log.stamp(policy(lock_delay_ms=5)),
            log.held("a", 20_000),
            log.end(log.write(LeaseRevoked(padded("a"), "maintenance", "root")), "a", "revoked", freed=False),
            log.held("b", 20_000),
        ),
    ),
    "an exclusive device shared": ("exclusive", lambda log: (log.held("a", 1, exclusive=True), log.held("b", 1))),
    "granted twice": ("which is held", lambda log: log.grant(log.held("a"), "a")),
    "granted after it was denied": (
        "which is over",
        lambda log: (cause := log.ask("a"), log.deny(cause, "a", "impossible"), log.grant(cause, "a")),
    ),
    "denied after it was granted": ("which is held", lambda log: log.deny(log.held("a"), "a", "impossible")),
    "granted to nobody": (
        "who never asked",
        lambda log: (log.asked.update(x=LeaseRequested(padded("x"), "imajin", 1)), log.grant(log.ask("a"), "x")),
    ),
    "granted to another service": ("who never asked", lambda log: log.grant(log.ask("a"), "a", service="other")),
    "granted to another session": ("another session", lambda log: log.grant(log.ask("a"), "a", session=padded("x"))),
    "granted another size": ("another size", lambda log: log.grant(log.ask("a"), "a", vram_mib=1)),
    "granted another node": (
        "another size or node",
        lambda log: (log.stamp(observed(0, 24_576, "beta")), log.grant(log.ask("a", node="beta"), "a")),
    ),
    "granted another device": ("asked was cuda:1", lambda log: log.grant(log.ask("a", device="cuda:1"), "a")),
    "granted a device that is not there": (
        "not there",
        lambda log: log.grant(log.ask("a"), "a", device="cuda:7", devices=("cuda:7",)),
    ),
    "granted a device that is out of order": (
        "out of order",
        lambda log: (log.stamp(observed(0, 24_576, healthy=False)), log.held("a")),
    ),
    "half a gang": ("asked were 2", gang),
    "one device twice": ("asked were 2", lambda log: gang(log, devices=("cuda:0", "cuda:0"))),
    "a fence used twice": ("fence", lambda log: (log.held("a"), log.grant(log.ask("b"), "b", fence=1))),
    "a grant in the past": ("time", lambda log: log.grant(log.ask("a"), "a", granted_at_ms=5)),
    "a wait made up": ("waited 7 ms", lambda log: log.grant(log.ask("a"), "a", waited_ms=7)),
    "an end made up": ("expires at 5", lambda log: log.grant(log.ask("a"), "a", expires_at_ms=5)),
    "overtaken within a shape": ("overtakes", lambda log: (log.ask("a"), log.grant(log.ask("b"), "b"))),
    "a lower class before a higher": (
        "overtakes",
        lambda log: (log.ask("a", priority="high"), log.grant(log.ask("b"), "b")),
    ),
    "granted to a dead session": (
        "session that is lost",
        lambda log: (log.stamp(session_lost("s")), log.held("a", session=padded("s"))),
    ),
    "ended twice": ("which is over", ends_twice),
    "ended by a stranger": (
        "as released, because of LeaseReleased",
        lambda log: (log.held("a"), log.end(log.release("a", "other"), "a", "released")),
    ),
    "ended by nothing": ("because of LeaseRequested", lambda log: log.end(log.held("a"), "a", "expired")),
    "expired before its time": (
        "as expired",
        lambda log: (log.held("a", ttl_ms=5), log.end(tick(log, 4), "a", "expired")),
    ),
    "ended for another's session": (
        "as session_lost",
        lambda log: (
            log.held("a", session=padded("s")),
            log.end(log.stamp(session_lost("t")), "a", "session_lost"),
        ),
    ),
    "ended for another device": (
        "as device_lost",
        lambda log: (log.held("a"), log.end(log.stamp(device_lost(1)), "a", "device_lost")),
    ),
    "the wrong reason for an end": (
        "as revoked, because of LeaseReleased",
        lambda log: (log.held("a"), log.end(log.release("a"), "a", "revoked")),
    ),
    "a timeout before its time": (
        "as timeout",
        lambda log: (log.ask("a", wait_ms=5), log.deny(tick(log, 4), "a", "timeout")),
    ),
    "cancelled by a stranger": (
        "as cancelled",
        lambda log: (log.ask("a"), log.deny(log.release("a", "other"), "a", "cancelled")),
    ),
    "a release without effect": ("should have ended", lambda log: (log.held("a"), log.release("a"))),
    "a cancellation without effect": ("should have ended", lambda log: (log.ask("a"), log.release("a"))),
    "a revocation without effect": (
        "should have ended",
        lambda log: (log.held("a"), log.write(LeaseRevoked(padded("a"), "maintenance", "root"))),
    ),
    "an expiry without effect": ("should have ended", lambda log: (log.held("a", ttl_ms=5), tick(log, 5))),
    "a dead session without effect": (
        "should have ended",
        lambda log: (log.ask("a", session=padded("s")), log.stamp(session_lost("s"))),
    ),
    "a lost device without effect": ("should have ended", lambda log: (log.held("a"), log.stamp(device_lost(0)))),
    "memory said to be free too early": (
        "says freed=True",
        lambda log: (
            log.stamp(policy(lock_delay_ms=5)),
            log.held("a"),
            log.end(log.write(LeaseRevoked(padded("a"), "maintenance", "root")), "a", "revoked"),
        ),
    ),
    "memory said to be kept for nothing": (
        "says freed=False",
        lambda log: (log.held("a"), log.end(log.release("a"), "a", "released", freed=False)),
    ),
    "an extension for a stranger": (
        "changes a",
        lambda log: (
            log.held("a"),
            change(log, LeaseRenewed(padded("a"), "other", 5), LeaseExtended, expires_at_ms=5),
        ),
    ),
    "kept idle though not reclaimable": (
        "says idle",
        lambda log: (log.held("a"), change(log, LeaseIdled(padded("a"), "imajin"), LeaseStateChanged, state="idle")),
    ),
    "revived after it was asked back": (
        "which is yielding",
        lambda log: (
            yielding(log),
            change(log, LeaseIdled(padded("a"), "imajin"), LeaseStateChanged, state="idle"),
        ),
    ),
    "a promise that moved ahead": ("moves a promise from 7 to 5", lambda log: moved(log, log.ask("a"), 5, 7)),
    "a promise to a holder": ("which is held", lambda log: moved(log, log.held("a"), 7, 5)),
    "an id used for something else": ("other fields", lambda log: (log.held("a"), log.ask("a", 1))),
    "an odd entry passed over": ("not rejected", lambda log: log.append(b"type", b"LeaseRequested")),
    "an unknown type passed over": ("not rejected", lambda log: log.append(b"type", b"Nonsense", b"data", b"{}")),
    "bad JSON passed over": ("not rejected", lambda log: log.append(b"type", b"LeaseReleased", b"data", b"{")),
    "a forgery passed over": ("not rejected", lambda log: log.write_stamped(ClockTicked(5), 1, 999)),
    "a forgery called something else": (
        "rejected as invalid",
        lambda log: log.reject(log.write_stamped(ClockTicked(5), 1, 999), "invalid"),
    ),
    "a rejection of another entry": (
        "without its id",
        lambda log: log.reject(log.append(b"x"), "malformed", event_id="1-1"),
    ),
    "a rejection without a word": ("or a detail", lambda log: log.reject(log.append(b"x"), "malformed", detail="")),
    "a rejection with an effect": (
        "led to something else",
        lambda log: (cause := log.ask("a"), log.reject(cause, "invalid"), log.grant(cause, "a")),
    ),
    "an effect before its cause": ("before its cause", lambda log: (log.ask("a"), log.grant("1800000000000-0", "a"))),
    "decided out of order": (
        "after a later entry was decided",
        lambda log: (
            first := log.ask("a", 1),
            second := log.ask("b", 2),
            log.grant(second, "b"),
            log.grant(first, "a"),
        ),
    ),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_it_has_nothing_against_the_truth(name):
    assert story(TRUTHS[name]) == []


@pytest.mark.parametrize("name", LIES)
def test_it_sees_each_lie(name):
    words, tell = LIES[name]
    problems = story(tell)
    assert any(words in problem for problem in problems), problems


def test_it_sees_ids_that_do_not_grow():
    log = Liar()
    log.decided()
    assert "not above" in audit([*log.entries, log.entries[-1]])[0]


def test_what_is_not_decided_yet_is_left_alone():
    log = Liar()
    log.held("a")
    log.release("a")
    log.append(b"nothing", b"at all")
    assert audit(log.entries) == []


def test_it_counts_what_is_reclaimed_as_free_again():
    def tell(log):
        log.stamp(policy(lock_delay_ms=5))
        log.held("a", 20_000)
        log.end(log.write(LeaseRevoked(padded("a"), "maintenance", "root")), "a", "revoked", freed=False)
        log.stamp(reclaimed("a"))
        log.held("b", 20_000)

    assert story(tell) == []


def test_it_shows_what_became_of_every_request():
    log = Liar()
    log.held("a")
    log.ask("b")
    log.decided()
    assert {lease_id: each.standing for lease_id, each in Audit(log.entries).accounts.items()} == {
        padded("a"): "held",
        padded("b"): "waiting",
    }
