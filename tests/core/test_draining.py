"""The last resort: where leases have no end, devices are emptied for whoever has waited long enough."""

from tests.core.reserving import kept, with_rules
from tests.core.scenario import Scenario


def starving(devices: int = 1, **rules: int) -> Scenario:
    """Devices with a lease without an end on each, and a request for all of them that has waited for `starve_ms`."""
    scenario = with_rules(*[24_576] * devices, starve_ms=100, **rules)
    for number in range(devices):
        scenario.request(f"endless-{number}", 10_000, device=f"cuda:{number}")
    scenario.request("large", 24_576, gpus=devices)
    return scenario


def test_nothing_is_kept_for_who_has_not_waited_long_enough():
    scenario = starving()
    assert scenario.tick(after_ms=99) == []
    assert scenario.request("small", 1) == ["granted small on cuda:0"]
    assert scenario.tick(after_ms=1) == []
    assert kept(scenario) == {"large": ("cuda:0", None)}
    assert scenario.request("brief", 1, ttl_ms=1) == []


def test_a_quarter_of_the_devices_is_emptied_at_a_time():
    scenario = starving(devices=8)
    scenario.tick(after_ms=100)
    assert kept(scenario) == {"large": ("cuda:0+cuda:1", None)}
    scenario.release("endless-1")
    assert kept(scenario) == {"large": ("cuda:0+cuda:1+cuda:2", None)}
    scenario.release("endless-7")
    assert kept(scenario) == {"large": ("cuda:0+cuda:1+cuda:2+cuda:7", None)}


def test_what_is_emptied_stays_where_it_was_chosen():
    scenario = with_rules(24_576, 24_576, starve_ms=100)
    scenario.request("a", 10_000, device="cuda:0")
    scenario.request("b", 11_000, device="cuda:1")
    scenario.request("b-2", 11_000, device="cuda:1")
    scenario.request("large", 24_576)
    scenario.tick(after_ms=100)
    assert kept(scenario) == {"large": ("cuda:0", None)}
    scenario.release("b-2")
    scenario.release("b")
    assert kept(scenario) == {}, "it was granted elsewhere"
    scenario.request("large-2", 24_575)
    scenario.request("c", 1_000, device="cuda:0")
    scenario.tick(after_ms=100)
    assert kept(scenario) == {"large-2": ("cuda:0", None)}
    scenario.device(1, 24_576, foreign_mib=1)
    assert kept(scenario) == {"large-2": ("cuda:0", None)}


def test_devices_are_emptied_for_one_at_a_time_and_the_first_of_the_queue_comes_first():
    scenario = with_rules(24_576, 24_576, starve_ms=100)
    for number in (0, 1):
        scenario.request(f"endless-{number}", 10_000, device=f"cuda:{number}")
    scenario.request("on-0", 24_576, device="cuda:0")
    scenario.tick(after_ms=50)
    scenario.request("on-1", 24_576, device="cuda:1", priority="high")
    scenario.tick(after_ms=50)
    assert kept(scenario) == {}, "only the first is counted as starving"
    scenario.tick(after_ms=50)
    assert kept(scenario) == {"on-1": ("cuda:1", None)}
    assert scenario.release("endless-1")[1:] == ["granted on-1 on cuda:1"]
    assert kept(scenario) == {}
    scenario.tick()
    assert kept(scenario) == {"on-0": ("cuda:0", None)}


def test_of_two_who_starve_only_the_first_has_its_devices_emptied():
    scenario = with_rules(24_576, 24_576, starve_ms=100)
    for number in (0, 1):
        scenario.request(f"endless-{number}", 10_000, device=f"cuda:{number}")
    scenario.request("on-0", 24_576, device="cuda:0")
    scenario.tick(after_ms=100)
    scenario.request("on-1", 24_576, device="cuda:1", priority="high")
    assert kept(scenario) == {"on-0": ("cuda:0", None)}
    scenario.tick(after_ms=100)
    assert kept(scenario) == {"on-1": ("cuda:1", None)}


def test_who_starves_is_not_left_alone_by_another_that_comes_before_it_and_has_yet_to():
    scenario = starving()
    scenario.tick(after_ms=100)
    scenario.request("first", 24_575, priority="high")
    assert kept(scenario) == {"large": ("cuda:0", None)}
    scenario.tick(after_ms=100)
    assert kept(scenario) == {"first": ("cuda:0", None)}


def test_a_device_that_is_reserved_for_one_that_comes_before_is_not_emptied():
    scenario = with_rules(24_576, 24_576, starve_ms=100)
    scenario.request("endless-0", 5_000, device="cuda:0")
    scenario.request("endless-1", 10_000, device="cuda:1")
    scenario.request("bounded", 15_000, device="cuda:0", ttl_ms=1_100)
    scenario.request("gang", 24_576, gpus=2)
    scenario.tick(after_ms=100)
    assert kept(scenario) == {"gang": ("cuda:1", None)}
    scenario.request("first", 15_000, priority="high", device="cuda:0")
    assert kept(scenario) == {"first": ("cuda:0", 1_000)}
