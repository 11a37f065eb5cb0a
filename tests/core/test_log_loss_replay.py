"""Entries of the log are gone: snapshots, replays and whatever happens in any order lead to the same, safely."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuboss.core import snapshot
from gpuboss.core.state import State, Told
from gpuboss.core.verification import Verifier
from gpuboss.events import (
    LeaseDenied,
    LeaseGranted,
    LogLost,
    SchedulerElected,
)
from tests.core.auditor import audit
from tests.core.lossy import (
    LOST_FENCE,
    RECOVERY_MS,
    Lossy,
    lines,
    recovering,
    recovery,
    verify,
)
from tests.core.scenario import (
    START_MS,
    fold,
    jumped,
    reclaimed,
    session_lost,
)

# ---------------------------------------------------------------- restarts and replays


def test_a_snapshot_anywhere_in_it_changes_nothing():
    plain, restarting = recovery(), recovery(restarting=True)
    assert restarting.entries == plain.entries
    assert [each.decision for each in restarting.heard] == [each.decision for each in plain.heard]
    digests = {snapshot.digest(snapshot.dump(each.state)) for each in (plain, restarting)}
    assert digests == {snapshot.digest(snapshot.dump(fold(plain.entries)))}
    assert "granted pair on cuda:0+cuda:1" in lines(plain), "and the story is not a dull one"


def test_a_snapshot_in_the_middle_knows_when_it_ends():
    scenario = recovering()
    scenario.request("a", 8_192)
    scenario.tick(5_000)
    scenario.restart()
    assert scenario.state.recovering_until_ms == START_MS + RECOVERY_MS
    assert scenario.tick(RECOVERY_MS - 5_001) == []
    assert scenario.tick(1) == ["granted a on cuda:0"]


def test_being_in_recovery_is_part_of_the_digest():
    digests = set()
    for lost in (None, LogLost("1-1", 0)):
        scenario = Lossy(24_576)
        scenario.happens(SchedulerElected("another", "0", 1, "log-2", lost))
        digests.add(snapshot.digest(snapshot.dump(scenario.state)))
    assert len(digests) == 2


def test_a_replay_of_it_differs_nowhere():
    scenario = recovery()
    verifier = verify(scenario.entries)
    assert verifier.divergences == []
    assert snapshot.dump(verifier.state) == snapshot.dump(scenario.state)


def test_a_replay_finds_a_loss_that_somebody_struck_out():
    scenario = recovering()
    scenario.request("a", 1)
    scenario.tick(RECOVERY_MS)
    entries = list(scenario.entries)
    index = next(number for number, entry in enumerate(entries) if b'"lost"' in entry.fields[3])
    fields = entries[index].fields
    entries[index] = entries[index]._replace(fields=[*fields[:3], fields[3].replace(b'"lost"', b'"gone"')])
    verifier = Verifier(State(), frozenset)
    for entry in entries:
        verifier.feed(*entry)
    [found] = verifier.divergences
    assert found.problem.startswith("nothing more was to be decided")


# ---------------------------------------------------------------- whatever happens

NAMES = ("a", "b", "c")
names = st.sampled_from(NAMES)
sizes_mib = st.sampled_from((1, 4_000, 12_000, 20_000, 30_000))
sessions = st.sampled_from((None, "one", "two"))
happenings = st.one_of(
    st.tuples(st.just("ask"), names, sizes_mib, st.sampled_from((1, 2)), sessions, st.sampled_from((None, 500))),
    st.tuples(st.just("reassert"), names, sizes_mib, st.sampled_from(((0,), (1,), (0, 1), (2,))), sessions),
    st.tuples(st.just("release"), names),
    st.tuples(st.just("revoke"), names, st.sampled_from((0, 300))),
    st.tuples(st.just("session_lost"), st.sampled_from(("one", "two"))),
    st.tuples(st.just("reclaimed"), names),
    st.tuples(st.just("tick"), st.sampled_from((0, 1, 400, 4_000))),
    st.tuples(st.just("jump"), st.sampled_from((-300, 5_000))),
    st.tuples(st.just("loses")),
    st.tuples(st.just("device"), st.sampled_from((16_000, 24_576))),
    st.tuples(st.just("restart")),
)


def happen(scenario: Lossy, kind: str, *about: Any) -> None:
    """One of the `happenings`."""
    match kind:
        case "ask":
            name, vram_mib, gpus, session, wait_ms = about
            scenario.request(name, vram_mib, gpus=gpus, session=session, wait_ms=wait_ms)
        case "reassert":
            name, vram_mib, numbers, session = about
            fence = LOST_FENCE + 10 * (NAMES.index(name) + 1)
            scenario.reasserts(name, *numbers, vram_mib=vram_mib, session=session, fence=fence)
        case "release":
            scenario.release(about[0])
        case "revoke":
            scenario.revoke(about[0], grace_ms=about[1])
        case "session_lost":
            scenario.happens(session_lost(about[0]))
        case "reclaimed":
            scenario.happens(reclaimed(about[0]))
        case "tick":
            scenario.tick(about[0])
        case "jump":
            scenario.now_ms += max(1, about[0])
            scenario.happens(jumped(scenario.now_ms, about[0]))
        case "loses":
            scenario.loses()
        case "device":
            scenario.device(1, about[0])
        case "restart":
            scenario.restart()


def granted_in(told: list[Told]) -> list[str]:
    """Who was granted something, not only told so again."""
    return [each.decision.lease_id for each in told if each.is_new and isinstance(each.decision, LeaseGranted)]


def assert_sums_hold(scenario: Lossy) -> None:
    """What a device says that it is charged is what its leases are charged; below zero it is never by a grant."""
    ledger = scenario.state.ledger
    for device in ledger.devices.values():
        on_it = [lease for lease in ledger.leases.values() if device in lease.devices]
        assert device.charged_mib == sum(lease.request.vram_mib for lease in on_it)
        for name, mib in device.mib_of_class.items():
            assert mib == sum(lease.request.vram_mib for lease in on_it if lease.priority == name)
        assert device.leases == {lease.request.lease_id: lease for lease in on_it}
        assert device.free_mib == device.capacity_mib - device.charged_mib
    assert not ledger.leases.keys() & scenario.state.waitlist.by_id.keys()


@given(st.lists(happenings, min_size=8, max_size=40), st.sampled_from((0, 2_000)))
@settings(max_examples=150)
def test_nothing_is_granted_before_the_end_nor_twice_and_afterwards_all_is_well(story, lock_delay_ms):
    scenario = Lossy(24_576, 24_576, lock_delay_ms=lock_delay_ms)
    scenario.request("a", 4_000, session="one")
    scenario.loses()
    for kind, *about in story:
        was_recovering, before = scenario.state.recovering_since_ms is not None, len(scenario.heard)
        happen(scenario, kind, *about)
        told = scenario.heard[before:]
        if was_recovering and kind != "tick":
            assert scenario.state.recovering_since_ms is not None
        if scenario.state.recovering_since_ms is not None:
            assert granted_in(told) == []
            assert "impossible" not in [d.decision.reason for d in told if isinstance(d.decision, LeaseDenied)]
        assert_sums_hold(scenario)
    scenario.tick(60_000)
    for name in NAMES:
        scenario.revoke(name)
        scenario.happens(reclaimed(name))
    scenario.tick(60_000)
    assert scenario.state.recovering_since_ms is None
    assert scenario.free_mib(0) == 24_576, "all that was charged came back"
    granted = granted_in(scenario.heard)
    assert len(set(granted)) == len(granted)
    assert audit(scenario.entries) == []
    assert verify(scenario.entries).divergences == []
    assert snapshot.dump(fold(scenario.entries)) == snapshot.dump(scenario.state)
