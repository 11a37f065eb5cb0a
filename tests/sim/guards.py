"""The guards of the promise, each of which can be switched off to see that the simulator misses it."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha1
from typing import TYPE_CHECKING, Any

from gpuboss.client import leadership
from gpuboss.core import leases, plans, requests
from gpuboss.core.granting import grant_at_once
from gpuboss.core.state import State, Turn
from gpuboss.core.waitlist import shape_of
from gpuboss.events import LeaseRequested
from gpuboss.log import LogReader
from gpuboss_scheduler import commit, reign, snapshots
from gpuboss_scheduler import projections as shown
from gpuboss_scheduler import sessions as watched
from gpuboss_scheduler.scripts import Script
from tests.sim.network import NO_FAULTS
from tests.sim.server import SYNCED_AFTER_US, SimulatedServer
from tests.sim.settings import DELETION, Settings

if TYPE_CHECKING:
    from tests.sim.bindings import Bindings


class Guards:
    """All of them on, but maybe one."""

    def __init__(self, without: str | None = None) -> None:
        """Raises `ValueError` for what is no guard."""
        if without is not None and without not in SWITCHES:
            raise ValueError(f"{without} is no guard; there are {', '.join(SWITCHES)}")
        self.without = without
        self.is_sharing = without in (None, "hold")  # others are missed sooner where nothing is asked back

    def scenario(self, settings: Settings) -> Settings:
        """A seed's settings, made such that a guard which others mask is what it comes down to."""
        faults_s = SCENARIOS.get(self.without or "")
        if faults_s is None:
            return settings
        return settings._replace(faults_s=faults_s, network=NO_FAULTS, failpoints=0.0, stir_us=60_000_000)

    def lock_delay_ms(self, settings: Settings) -> int:
        """What the scheduler is told to wait for memory that may still be on a card."""
        return 0 if self.without == "reclaiming" else settings.lock_delay_ms

    def switch_off(self, bindings: Bindings) -> None:
        """Take the guard away, until the bindings are undone."""
        if self.without is not None:
            SWITCHES[self.without](bindings)


def _without_epoch(bindings: Bindings) -> None:
    """No script looks who leads, nor what was written or decided meanwhile."""
    scripts: list[Script] = [commit.commit_script, reign._append, reign._beat, shown._project, snapshots._snapshot]
    scripts += [watched._sessions, watched._lose_sessions]
    for script in scripts:
        lines = script.text.splitlines()
        kept = [line for line in lines if "return {'FENCED'" not in line and "return {'STALE'" not in line]
        assert len(kept) < len(lines), "the check is there, and is gone now"
        text = "\n".join(kept)
        bindings.put(script, "text", text)
        bindings.put(script, "sha", sha1(text.encode(), usedforsecurity=False).hexdigest())


def _without_self_fence(bindings: Bindings) -> None:
    """A client relies on its leases however long it hears nothing."""
    bindings.put(leadership.Trust, "is_over", lambda trust, now_s: False)


def _without_tombstones(bindings: Bindings) -> None:
    """What ended is believed to be held, if somebody says so."""

    def known(turn: Turn, lease_id: str) -> LeaseRequested | None:
        state = turn.state
        found: Any = state.waitlist.by_id.get(lease_id) or state.ledger.leases.get(lease_id)
        return None if found is None else found.request

    bindings.put(leases, "_known", known)


def _without_quarantine(bindings: Bindings) -> None:
    """After a loss grants go on as soon as the clock ticks."""
    bindings.put(State, "recovering_until_ms", property(lambda state: state.recovering_since_ms))


def _without_deduplication(bindings: Bindings) -> None:
    """A request that is over may be made again."""
    ask_again = requests._ask_again

    def ask(turn: Turn, request: LeaseRequested) -> None:
        state = turn.state
        if request.lease_id in state.waitlist.by_id or request.lease_id in state.ledger.leases:
            ask_again(turn, request)
            return
        shape = shape_of(request, request.priority, state.limits)
        if not grant_at_once(turn, request, shape):
            state.arrivals += 1
            state.join_session(request)
            requests._wait(turn, request, shape)

    bindings.put(requests, "_ask_again", ask)


def _without_fsync(bindings: Bindings) -> None:
    """The server answers before what it answers is stored, whatever it says of itself."""

    def sync(server: Any) -> None:
        server._journal.sync(server._elapsed_us() - SYNCED_AFTER_US)

    bindings.put(SimulatedServer, "_sync", sync)


def _without_hold(bindings: Bindings) -> None:
    """What is given back for one request is for all."""
    bindings.put(plans.Plan, "hold_mib", lambda plan, device: 0)


def _without_deletions(bindings: Bindings) -> None:
    """Nobody asks what was deleted."""
    beat = reign.Reign.beat
    bindings.put(reign.Reign, "beat", lambda leader: (beat(leader)[0], "0-0"))
    gone = LogReader.gone
    bindings.put(LogReader, "gone", lambda log: gone(log)._replace(deleted_through="0-0"))


SCENARIOS = {
    "deletions": {DELETION: 1.0, "scheduler killed": 4.0},
    "self-fence": {"process cut off": 3.0},
    "tombstones": {"failed over": 8.0, "entry repeated": 0.5},
}

SWITCHES: dict[str, Callable[[Bindings], None]] = {
    "epoch": _without_epoch,
    "reclaiming": lambda bindings: None,  # a setting does it: see `Guards.lock_delay_ms`
    "self-fence": _without_self_fence,
    "tombstones": _without_tombstones,
    "quarantine": _without_quarantine,
    "de-duplication": _without_deduplication,
    "fsync": _without_fsync,
    "hold": _without_hold,
    "deletions": _without_deletions,
}
