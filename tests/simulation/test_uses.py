"""Services that load and use models: schedules computed by hand, under each manner of asking."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from gpuboss.config import PolicyConfig
from gpuboss.core.policy import RANK
from gpuboss.events import LeaseRequested
from gpuboss.simulation.devices import observe
from gpuboss.simulation.farm import NODE, farm
from gpuboss.simulation.schedule import Fact, Job
from gpuboss.simulation.uses import Manner, Model, Use, Used, use_models
from gpuboss.simulation.virtual_time import run
from tests.core.auditor import audit
from tests.core.scenario import Entry

ANIME = Model("imajin", "anime", 60, load_ms=10, unload_ms=3)
BEST_EFFORT = PolicyConfig(reservations=0)
EASY = PolicyConfig()
WARM = Manner(warm_ms=100)


def plain(vram_mib: int) -> Model:
    """Something that is loaded in no time."""
    return Model("batch", f"of-{vram_mib}", vram_mib)


def anime(submit_ms: int, use_ms: int = 20, **fields: Any) -> Use:
    """Usable 10 ms after the grant; its lease lasts for 38 ms, and is given back 3 ms after the use."""
    return Use(ANIME, submit_ms, use_ms, limit_ms=25, **fields)


def lived(
    uses: list[Use], manner: Manner, rules: PolicyConfig = EASY, log: list[Entry] | None = None, device_mib: int = 100
) -> list[Used]:
    """What became of uses on one device."""
    keep = None if log is None else lambda *entry: log.append(Entry(*entry))
    return use_models(uses, farm([(0, device_mib)], rules, 0), manner, keep=keep)


def usable(used: list[Used]) -> list[int | None]:
    return [each.usable_at_ms for each in used]


def types_of(log: list[Entry]) -> Counter[str]:
    return Counter(entry.fields[1].decode() for entry in log)


def test_each_use_loads_and_unloads_on_a_lease_of_its_own() -> None:
    log: list[Entry] = []
    used = lived([anime(0), anime(5)], Manner(), log=log)
    assert used == [Used(10, 30, True), Used(43, 63, True)], "the first gives its lease back at 33"
    assert types_of(log)["LeaseGranted"] == types_of(log)["LeaseReleased"] == 2


def test_a_use_that_takes_longer_than_its_service_knew_is_cut_off() -> None:
    assert lived([anime(0, use_ms=50), anime(1)], Manner()) == [Used(10, 38, True), Used(48, 68, True)]


def test_a_lease_that_ends_while_its_model_is_unloaded_is_not_given_back_any_more() -> None:
    log: list[Entry] = []
    assert lived([anime(0, use_ms=27)], Manner(), log=log) == [Used(10, 37, True)]
    assert types_of(log)["LeaseReleased"] == 0


def test_in_turn_nothing_passes_what_came_before() -> None:
    uses = [
        Use(plain(60), 0, 20, 25),
        Use(plain(100), 1, 5, 5),
        Use(plain(40), 2, 50, 50),  # has room at once, but could delay the second
        Use(plain(40), 3, 20, 20),  # could not
    ]
    assert usable(lived(uses, Manner(in_turn=True))) == [0, 20, 25, 25]
    assert usable(lived(uses, Manner(), BEST_EFFORT)) == [0, 52, 2, 20]
    assert usable(lived(uses, Manner(), EASY)) == [0, 23, 28, 3]


def test_in_turn_one_request_alone_waits_at_any_time() -> None:
    """A device comes up at the very ms at which one more is wanted: the one whose turn it is has not asked yet."""
    uses = [
        Use(plain(100), 0, 100, 100),
        Use(plain(60), 1, 10, 10),
        Use(plain(100), 2, 10, 10),
        Use(plain(40), 20, 10, 10),
    ]
    facts = [*farm([(0, 100)], BEST_EFFORT, 0), Fact(20, observe([(1, 100)], NODE, None)[0])]
    assert usable(use_models(uses, facts, Manner(in_turn=True))) == [0, 20, 30, 40]


def test_a_denied_use_has_no_times_and_the_next_in_turn_goes_on() -> None:
    uses = [Use(plain(100), 0, 10, 10), Use(plain(101), 1, 1, 1), Use(plain(100), 2, 1, 1)]
    for manner in (Manner(), Manner(in_turn=True)):
        assert lived(uses, manner) == [Used(0, 10, True), Used(), Used(10, 11, True)]


def test_a_warm_model_is_used_again_without_loading() -> None:
    log: list[Entry] = []
    assert lived([anime(0), anime(50)], WARM, log=log) == [Used(10, 30, True), Used(50, 70, False)]
    said = types_of(log)
    assert (said["LeaseRequested"], said["LeaseIdled"], said["LeaseResumed"]) == (1, 2, 1)


def test_of_several_idle_leases_the_one_that_was_granted_last_is_resumed() -> None:
    log: list[Entry] = []
    assert usable(lived([anime(0), anime(0), anime(50)], WARM, log=log, device_mib=120)) == [10, 10, 50]
    [resumed] = [entry.fields[3] for entry in log if entry.fields[1] == b"LeaseResumed"]
    assert b"request-00000002" in resumed


def test_a_model_is_kept_warm_for_so_long() -> None:
    assert usable(lived([anime(0), anime(129)], WARM)) == [10, 129], "it is over at 30, and kept until 130"
    assert usable(lived([anime(0), anime(130)], WARM)) == [10, 140]


def test_whoever_asks_a_warm_model_back_has_its_room_once_it_is_unloaded() -> None:
    uses = [anime(0), Use(plain(100), 50, 10, 10), anime(51)]
    assert lived(uses, WARM) == [Used(10, 30, True), Used(53, 63, True), Used(73, 93, True)]


def test_the_first_use_that_waits_for_the_model_has_it_next_and_takes_its_request_back() -> None:
    log: list[Entry] = []
    uses = [anime(0), anime(5, priority="low"), anime(6), anime(7, priority="high")]
    assert usable(lived(uses, WARM, log=log)) == [10, 148, 50, 30], "it lasts until 138, and `low` may not ask it back"
    assert types_of(log)["LeaseDenied"] == 2


def test_a_lease_that_does_not_last_is_given_back_to_whoever_waits() -> None:
    """It lasts until 39, and is not renewed, since the second has its device reserved from then on."""
    assert lived([anime(0), anime(5)], Manner(warm_ms=1)) == [Used(10, 30, True), Used(43, 63, True)]


def test_a_use_that_is_granted_a_lease_of_its_own_after_all_is_not_served_twice() -> None:
    """At 30 the second is cut off. That is looked at with the first input of that ms, the renewal for the third."""
    uses = [anime(0), Use(plain(60), 0, 40, 29), anime(5)]
    assert lived(uses, Manner(warm_ms=1), device_mib=120)[2] == Used(40, 60, True)


def test_a_lease_is_resumed_by_its_own_class_and_above() -> None:
    assert usable(lived([anime(0, priority="low"), anime(40, priority="high")], WARM)) == [10, 40]
    assert usable(lived([anime(0), anime(40, priority="low")], WARM)) == [10, 140], "nor may it ask it back"


def test_a_lease_that_only_the_highest_class_could_ask_back_is_kept_for_whoever_waits_alone() -> None:
    first = anime(0, priority="high")
    assert usable(lived([first, anime(5, priority="high")], WARM)) == [10, 30]
    assert usable(lived([first, anime(31, priority="high")], WARM)) == [10, 43], "given back at 33"


def test_a_warm_model_is_unloaded_where_a_reservation_is_in_the_way_of_its_next_use() -> None:
    """The device is kept for the third from 250 on, when the lease of the first ends; it is asked back at 140."""
    uses = [Use(plain(40), 0, 140, 150), Use(ANIME, 0, 20, 150), Use(plain(100), 20, 10, 10), Use(ANIME, 97, 20, 150)]
    assert usable(lived(uses, WARM)) == [0, 10, 143, 97]
    uses[-1] = Use(ANIME, 98, 20, 150)
    assert usable(lived(uses, WARM)) == [0, 10, 140, 160]


def drawn(seed: int, count: int = 200) -> list[Use]:
    """Uses of all sizes and classes; some are cut off."""
    random = Random(seed)
    at_ms, uses = 0, []
    for _ in range(count):
        at_ms += random.choice((0, 0, 1, 7, 20))
        model = Model("batch", "drawn", random.choice((1, 10, 25, 50, 100)))
        limit_ms = random.choice((1, 20, 90))
        priority = random.choice(list(RANK))
        uses.append(Use(model, at_ms, random.randint(0, limit_ms + 1), limit_ms, priority))
    return uses


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rules", [EASY, BEST_EFFORT])
def test_where_there_is_nothing_to_load_uses_are_jobs(seed: int, rules: PolicyConfig) -> None:
    uses = drawn(seed)
    jobs = [
        Job(
            LeaseRequested(f"job-{number:05}", "batch", use.model.vram_mib, priority=use.priority, ttl_ms=use.limit_ms),
            use.submit_ms,
            use.use_ms,
        )
        for number, use in enumerate(uses)
    ]
    facts = farm([(0, 100), (1, 50)], rules, 0)
    expected = [(outcome.granted_at_ms, outcome.ended_at_ms) for outcome in run(jobs, facts).outcomes]
    assert [(each.usable_at_ms, each.ended_at_ms) for each in use_models(uses, facts, Manner())] == expected


@pytest.mark.parametrize("manner", [Manner(), Manner(in_turn=True), WARM])
@pytest.mark.parametrize("seed", range(3))
def test_every_use_has_its_time_and_the_log_is_lawful(manner: Manner, seed: int) -> None:
    log: list[Entry] = []
    random = Random(seed)
    models = [Model("imajin", f"model-{size}", size, load_ms=size, unload_ms=1) for size in (10, 25, 60)]
    uses = [
        Use(random.choice(models), use.submit_ms, use.use_ms, use.limit_ms + 1, use.priority) for use in drawn(seed)
    ]
    used = lived(uses, manner, log=log)
    assert audit(log) == []
    assert b"EventRejected" not in {entry.fields[1] for entry in log if b'"reason":"reserved"' not in entry.fields[3]}
    for use, each in zip(uses, used, strict=True):
        assert each.usable_at_ms is not None
        assert each.ended_at_ms == each.usable_at_ms + use.use_ms
        assert each.usable_at_ms - use.submit_ms >= use.model.load_ms * each.loaded
    assert sum(each.loaded for each in used) == types_of(log)["LeaseGranted"]
    assert (manner == WARM) == any(not each.loaded for each in used)
