"""Found in the index of the rooms is what a look at every device would find, however many devices there are."""

from __future__ import annotations

import random

import pytest

from gpuboss.core import rooms
from gpuboss.core.placement import candidates, place
from gpuboss.core.reservations import ClosedTo
from gpuboss.core.waitlist import shape_of
from scripts.bench_size import Farm, fill, observations, refills, renewals, ticks

DEVICES, WAITING, ROUNDS, ASKED = 64, 300, 25, 40
SMALL = rooms.FEW


@pytest.mark.parametrize("seed", range(4))
def test_the_index_finds_what_a_look_at_every_device_finds(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(rooms, "FEW", 0)
    farm = Farm(DEVICES, seed)
    state, draw = farm.state, random.Random(seed)
    for _ in range(DEVICES):
        farm.says(farm.request())
    found = 0
    for happens in (refills, observations, renewals, ticks) * 2:
        happens(farm, ROUNDS)
        for _ in range(ASKED):
            request = farm.request()
            shape = shape_of(request, request.priority, {})._replace(vram_mib=draw.randint(1, 40_000))
            closed = ClosedTo(state.reservations, shape, state.now_ms, state.policy)
            looked_at = [device for device in candidates(state.ledger, shape) if device not in closed]
            by_index = place(shape, state.rooms.best(shape, closed))
            assert by_index == place(shape, looked_at), (seed, shape)
            found += by_index is not None
        fill(farm, min(WAITING, len(state.waitlist.by_id) + ROUNDS))
    assert found > ASKED  # else nothing was compared


def test_a_small_farm_and_a_large_one_decide_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for few in (0, SMALL):
        monkeypatch.setattr(rooms, "FEW", few)
        farm = Farm(SMALL)
        fill(farm, WAITING)
        refills(farm, ROUNDS)
        told.append([(lease.granted, lease.expires_at_ms) for lease in farm.state.ledger.leases.values()])
    assert told[0] == told[1]
