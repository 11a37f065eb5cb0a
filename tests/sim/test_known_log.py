"""What a scheduler remembers of the log, and by what it notices that entries are gone."""

from gpuboss_scheduler.known_log import Known, KnownLog


class Log:
    """A log that holds these entries."""

    def __init__(self, *entry_ids: str) -> None:
        self._entry_ids = entry_ids

    def holds(self, entry_id: str) -> bool:
        return entry_id in self._entry_ids

    def trimmed_through(self) -> str:
        return "0-0"

    def last_id(self) -> str | None:
        return self._entry_ids[-1] if self._entry_ids else None


def remembering(*last_ids: str, incarnation: str = "log-1", epoch: int = 3) -> KnownLog:
    known_log = KnownLog()
    for last_id in last_ids:
        known_log.note(Known(incarnation, epoch, last_id, 1))
    return known_log


def missed(known_log: KnownLog, log: Log, incarnation: str = "log-1", epoch: int = 3) -> bool:
    return known_log.missed(incarnation, epoch, log) is not None  # type: ignore[arg-type]


def test_a_log_that_holds_what_was_seen_is_whole() -> None:
    assert not missed(remembering("1-0", "2-0"), Log("1-0", "2-0", "3-0"))


def test_a_cut_tail_is_noticed() -> None:
    assert missed(remembering("1-0", "2-0"), Log("1-0"))


def test_what_was_written_after_the_loss_does_not_hide_it() -> None:
    assert missed(remembering("1-0", "2-0"), Log("2-0"))
    assert missed(remembering("1-0", "2-0", "2-0"), Log("2-0")), "also if that was seen twice"


def test_another_name_means_that_another_scheduler_noticed() -> None:
    assert not missed(remembering("2-0"), Log(), incarnation="log-2", epoch=4)


def test_a_replica_that_never_heard_of_the_known_name_is_a_loss() -> None:
    assert missed(remembering("2-0"), Log("2-0"), incarnation="log-0", epoch=2)


def test_who_led_on_there_without_knowing_of_it_counts_the_known_reign_once_more() -> None:
    assert missed(remembering("2-0"), Log("2-0"), incarnation="log-0", epoch=3)


def test_who_looks_at_a_log_that_has_gone_back_remembers_more_than_it_says() -> None:
    known_log = remembering("2-0")
    known_log.note(Known("log-0", 2, "1-0", 1))
    assert missed(known_log, Log("1-0"), incarnation="log-0", epoch=2)
