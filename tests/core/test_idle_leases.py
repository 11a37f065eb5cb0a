"""Idle leases: they are kept until somebody needs their room, and then asked back at once."""

from __future__ import annotations

from tests.core.scenario import Scenario, idled, resumed


def test_an_idle_lease_is_asked_back_for_who_waits_and_its_room_is_granted_once_it_is_given_back():
    given = Scenario(24_576)
    given.request("warm", 20_000, reclaimable=True)
    given.says(idled("warm"))
    assert given.request("b", 8_192) == ["asked back warm within 15000 ms for b"]
    assert given.says(resumed("warm")) == ["rejected warm: yielding"]
    assert given.release("warm") == ["ended warm: yielded, freed", "granted b on cuda:0"]
