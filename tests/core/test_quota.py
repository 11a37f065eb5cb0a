"""How many requests of one service may wait: what is beyond is denied, what waits keeps its place."""

from gpuboss.core.policy import MAX_WAITING
from gpuboss.events import LeaseRequested, LogLost, SchedulerElected
from tests.core.auditor import audit
from tests.core.scenario import Log, Scenario, in_words, padded, policy

CARD_MIB = 24_576


def full_card(**caps: object) -> Scenario:
    """A card that is wholly held by another service."""
    given = Scenario(CARD_MIB)
    given.happens(policy(**caps))  # type: ignore[arg-type]
    assert given.request("holder", CARD_MIB, service="ollama") == ["granted holder on cuda:0"]
    return given


def test_what_is_beyond_the_cap_is_denied_and_told_the_numbers():
    given = full_card(max_waiting=2)
    assert given.request("a", 1) == given.request("b", 1) == []
    assert given.request("c", 1) == ["denied c: quota"]
    assert given.last.detail.startswith("2 requests of imajin wait already, and max_waiting is 2; ")


def test_another_service_may_wait_all_the_same():
    given = full_card(max_waiting=1)
    given.request("a", 1)
    assert given.request("b", 1) == ["denied b: quota"]
    assert given.request("c", 1, service="whisper") == []


def test_a_service_has_the_cap_that_names_it():
    given = full_card(max_waiting=1, services={"imajin": 3})
    assert [given.request(name, 1) for name in "abcd"] == [[], [], [], ["denied d: quota"]]
    assert [given.request(name, 1, service="whisper") for name in "ef"] == [[], ["denied f: quota"]]


def test_whoever_is_served_or_gives_up_makes_room_for_the_next():
    given = full_card(max_waiting=1)
    given.request("a", 1)
    assert given.release("a") == ["denied a: cancelled"]
    assert given.request("b", 1) == []
    assert given.release("holder", service="ollama") == ["ended holder: released, freed", "granted b on cuda:0"]
    assert given.request("c", CARD_MIB) == []
    assert given.request("d", 1) == ["denied d: quota"]


def test_what_has_a_place_at_once_never_waited():
    given = Scenario(CARD_MIB)
    given.happens(policy(max_waiting=1))
    assert [given.request(f"lease-{number}", 1) for number in range(3)] == [
        [f"granted lease-{number} on cuda:0"] for number in range(3)
    ]


def test_a_repetition_is_no_further_request():
    given = full_card(max_waiting=1)
    given.request("a", 1)
    given.request("b", 1)
    assert given.request("a", 1) == []
    assert given.request("b", 1) == ["again denied b: quota"]


def test_a_smaller_cap_takes_no_place_away():
    given = full_card(max_waiting=3)
    for name in "abc":
        given.request(name, 8_192)
    assert given.happens(policy(max_waiting=1)) == []
    assert given.request("d", 8_192) == ["denied d: quota"]
    assert given.release("holder", service="ollama")[1:] == [f"granted {name} on cuda:0" for name in "abc"]


def test_the_count_survives_a_restart():
    given = full_card(max_waiting=2)
    given.request("a", 1)
    given.request("b", 1)
    given.restart()
    assert given.request("c", 1) == ["denied c: quota"]


def test_while_a_lost_log_recovers_any_number_may_wait():
    given = full_card(max_waiting=1)
    lost = LogLost(given.entries[-1].id, 7)
    given.happens(SchedulerElected("second", "0", 1, "log-2", lost))
    assert [given.request(name, 1) for name in "abc"] == [[], [], []]
    assert audit(given.entries) == []


def test_there_is_a_cap_before_anybody_sets_one():
    given = Log()
    given.stamp(SchedulerElected("first", "0", 1, "log-1"))
    for number in range(MAX_WAITING + 1):
        given.write(LeaseRequested(f"lease-{number:05}", "imajin", 1))
    told = given.settle()
    assert [in_words(each, given.now_ms) for each in told] == [f"denied lease-{MAX_WAITING}: quota"]


def test_the_auditor_sees_who_was_let_in_or_turned_away_without_reason():
    given = full_card(max_waiting=1)
    given.request("a", 1)
    given.request("b", 1)
    assert audit(given.entries) == []
    lowered = [replace_policy(entry, b'"max_waiting":1', b'"max_waiting":2') for entry in given.entries]
    assert any("denies as quota" in problem for problem in audit(lowered))
    given = full_card(max_waiting=2)
    given.request("a", 1)
    given.request("b", 1)
    given.release("a")
    raised = [replace_policy(entry, b'"max_waiting":2', b'"max_waiting":1') for entry in given.entries]
    assert any(f"should have ended {padded('b')}" in problem for problem in audit(raised))


def replace_policy(entry: tuple[str, list[bytes]], old: bytes, new: bytes) -> tuple[str, list[bytes]]:
    """The entry with a part of its data replaced."""
    entry_id, fields = entry
    return entry_id, [field.replace(old, new) for field in fields]


def test_impossible_requests_are_no_way_around_it():
    given = full_card(max_waiting=1)
    given.request("a", 1)
    assert given.request("b", CARD_MIB + 1) == ["denied b: quota"]
