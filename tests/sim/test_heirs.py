"""Who leads a log that has gone back to before somebody else led it: whoever knows that, if it lives."""

import json
from typing import Any

from gpuboss.config import PolicyConfig
from gpuboss_scheduler.election import RETURN_MS, Seen, Watch
from gpuboss_scheduler.reign import LEADERSHIP_MS
from tests.sim.guards import Guards
from tests.sim.network import NO_FAULTS
from tests.sim.processes import Process
from tests.sim.settings import Settings
from tests.sim.world import World

SECOND_US = 1_000_000
SEEN = Seen("4", "1000", "9", "1-0", "scheduler-a", "log-1", "0.1.0", "7", "server-1", "1")


def vacant_after(silent_ms: int, run_id: str) -> bool:
    """Whether nobody leads if the leader has been silent for so long on a server that is this one now."""
    now_s = 0.0
    watch = Watch(lambda: now_s)
    assert not watch.vacant(SEEN, lambda: run_id)
    now_s = (silent_ms + 1) / 1000
    return watch.vacant(SEEN, lambda: run_id)


def test_on_the_leaders_own_server_its_silence_is_enough() -> None:
    assert not vacant_after(LEADERSHIP_MS - 10, "server-1")
    assert vacant_after(LEADERSHIP_MS, "server-1")


def test_on_another_server_whoever_lives_is_given_the_time_to_return() -> None:
    assert not vacant_after(RETURN_MS - 10, "server-2")
    assert vacant_after(RETURN_MS, "server-2")


class Stage(Guards):
    """A world in which nothing goes wrong but what it is told."""

    def scenario(self, settings: Settings) -> Settings:
        """Two schedulers, and services that ask for more than the only device has."""
        return settings._replace(
            session_ttl_ms=3_000,
            lock_delay_ms=15_000,
            schedulers=2,
            services=(("service-0", None), ("service-1", None)),
            tasks=4,
            devices_mib=(24_576,),
            stir_us=14 * SECOND_US,
            network=NO_FAULTS,
            faults_s={},
            failpoints=0.0,
            busy=0.0,
            policy=PolicyConfig(),
            warm=0,
            residents=(),
        )


class TwoReigns(World):
    """A leader stands still, another one leads, and the server goes back to before that; then both return."""

    def __init__(self, seed: int, late_us: int) -> None:
        """`late_us`: how long after the server, and the one that led first, the one that led last returns."""
        super().__init__(seed, Stage())
        self._late_us = late_us
        self._returned_ms = 0
        self.timeline.at(int(2.5 * SECOND_US), self._stop_the_first)
        self.timeline.at(8 * SECOND_US, self._go_back)

    def elections(self) -> list[tuple[bool, int]]:
        """Those in the log: whether each knows of a loss, and when it was (ms), since all were there again."""
        entries: Any = self.host.server.execute([b"XRANGE", b"gpuboss:events", b"-", b"+"])
        told = [(entry_id, json.loads(fields[3])) for entry_id, fields in entries if fields[1] == b"SchedulerElected"]
        return [("lost" in data, int(entry_id.split(b"-")[0]) - self._returned_ms) for entry_id, data in told]

    def _leader(self) -> Process:
        [leader] = [host.process for host in self.schedulers if host.leads and host.process is not self._first]
        assert leader is not None
        return leader

    _first: Process | None = None

    def _stop_the_first(self) -> None:
        self._first = self._leader()
        self._first.stop()
        self.timeline.after(SECOND_US // 3, self._copy)  # with all that it may have seen, and before another one leads

    def _copy(self) -> None:
        self._checkpoint = self.host.server.checkpoint()

    def _go_back(self) -> None:
        first, second = self._first, self._leader()
        assert first is not None
        second.stop()
        self.host.go_down()
        self.host.server.fail_over(self._checkpoint)
        self.log_changed()
        self.host.come_up()
        first.go_on()
        self.timeline.after(self._late_us, lambda: self._return(second))

    def _return(self, second: Process) -> None:
        self._returned_ms = self.host.wall_us() // 1000
        second.go_on()


def test_who_knows_of_a_later_reign_leads_before_who_does_not() -> None:
    world = TwoReigns(1, late_us=1_200_000)
    world.run()
    assert world.problems == []
    assert [knows for knows, _ in world.elections()] == [False, True]


def test_who_knows_of_a_later_reign_and_returns_too_late_ends_the_reign_of_who_does_not() -> None:
    world = TwoReigns(1, late_us=4 * SECOND_US)
    world.run()
    assert [knows for knows, _ in world.elections()] == [False, False, True]
    _, at_ms = world.elections()[-1]
    assert at_ms < 1_000
