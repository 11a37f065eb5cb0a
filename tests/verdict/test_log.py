"""The judge of logs sees a grant that two schedulers wrote."""

from tests.real.redis_view import Entry
from tests.verdict.log import granted_twice


def granted(entry_id: str, lease_id: str) -> Entry:
    return Entry(entry_id, "LeaseGranted", {"lease_id": lease_id})


def elected(entry_id: str, **data: object) -> Entry:
    return Entry(entry_id, "SchedulerElected", dict(data))


def test_it_sees_a_grant_that_is_written_twice() -> None:
    entries = [granted("1-0", "a"), granted("2-0", "b"), elected("3-0"), granted("4-0", "a")]
    assert granted_twice(entries) == ["4-0: a is granted again, after 1-0"]


def test_a_log_that_forgot_the_first_grant_may_grant_again() -> None:
    assert granted_twice([granted("1-0", "a"), elected("2-0", lost={}), granted("3-0", "a")]) == []
