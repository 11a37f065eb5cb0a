"""Reading what was taken out of the log: compressed files, an archive's folder, an archive and then Redis."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import redis

from gpuboss.archive import EntriesMissing, whole_log
from gpuboss.log import PAGE, Entry, LogReader
from tests.cli.archives import keep, keep_all, trim
from tests.cli.console import Console, Ended, keep_snapshot, store
from tests.cli.stories import digest_of, hostile, story
from tests.core.scenario import Scenario, fold


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    return folder


def assert_whole(ended: Ended, given: Scenario, said: str = "") -> None:
    assert (ended.code, ended.err) == (0, said)
    assert (ended.document["events"], ended.document["divergences"]) == (len(given.entries), [])
    assert ended.document["digest"] == digest_of(given)
    assert ended.document["from"] == "beginning"


def assert_refused(ended: Ended, *words: str, code: int = 1) -> None:
    assert (ended.code, ended.out) == (code, "")
    for word in words:
        assert word in ended.err


# ---------------------------------------------------------------- files and folders


def test_a_compressed_export(console: Console, client: redis.Redis, tmp_path: Path) -> None:
    given = hostile()
    store(client, given)
    file = tmp_path / "log.jsonl.gz"
    file.write_bytes(gzip.compress(console.call("export").out.encode()))
    assert_whole(console.call("replay", str(file), "--json"), given)


@pytest.mark.parametrize("damage", ["cut", "text", "changed"])
def test_a_compressed_file_that_is_damaged(console: Console, folder: Path, damage: str) -> None:
    [file] = keep_all(folder, story(), len(story().entries))
    found = file.read_bytes()
    file.write_bytes({"cut": found[:-20], "text": b"no gzip", "changed": found[:40] + b"!" * 80}[damage])
    assert_refused(console.call("replay", str(file)), file.name, "cut off, or no gzip file", code=2)


def test_a_compressed_file_that_is_not_there(console: Console, tmp_path: Path) -> None:
    assert_refused(console.call("replay", str(tmp_path / "no.gz")), "No such file", code=2)


def test_a_folder(console: Console, folder: Path) -> None:
    given = story()
    keep_all(folder, given, 3, 4, 9, len(given.entries))
    (folder / "epoch-3.partial").write_bytes(b"half of a segm")
    assert_whole(console.call("replay", str(folder), "--json"), given)


@pytest.mark.parametrize("missing", [1, 2])
def test_a_missing_segment_is_named(console: Console, folder: Path, missing: int) -> None:
    given = story()
    files = keep_all(folder, given, 3, 5, 9, len(given.entries))
    files[missing].unlink()
    before = given.entries[[3, 5][missing - 1] - 1].id
    ended = console.call("replay", str(folder))
    assert_refused(ended, f"{files[missing + 1].name} goes on from", f"what is there before it ends at {before}")


def test_a_missing_beginning_is_named(console: Console, folder: Path) -> None:
    given = story()
    files = keep_all(folder, given, 3, len(given.entries))
    files[0].unlink()
    assert_refused(console.call("replay", str(folder)), f"{files[1].name} goes on from", "nothing is there before it")


def test_segments_that_hold_the_same_are_read_once_and_named(console: Console, folder: Path) -> None:
    given = story()
    entries = [Entry(entry.id, entry.fields) for entry in given.entries]
    keep_all(folder, given, 3, 5)
    again = keep(folder, entries[3:], entries[2].id)
    within = keep(folder, entries[4:6], entries[3].id)
    ended = console.call("replay", str(folder), "--json")
    said = [
        f"gpuboss: {again.name}: {entries[3].id}_{entries[4].id}_after_{entries[2].id}.jsonl.gz holds its entries "
        f"through {entries[4].id} too; each entry is taken once\n",
        f"gpuboss: {within.name}: {again.name} holds its entries "
        f"through {entries[5].id} too; each entry is taken once\n",
    ]
    assert_whole(ended, given, "".join(said))


def test_a_segment_that_is_not_what_its_name_says(console: Console, folder: Path) -> None:
    given = story()
    file = keep_all(folder, given, len(given.entries))[0]
    text = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    file.write_bytes(gzip.compress(b"".join(text[:-1])))
    assert_refused(console.call("replay", str(folder)), file.name, "not what its name says")


def test_a_folder_without_segments(console: Console, folder: Path) -> None:
    assert_refused(console.call("replay", str(folder)), "no archive", code=2)


# ---------------------------------------------------------------- archive and Redis


def test_the_archive_and_then_redis(console: Console, client: redis.Redis, folder: Path) -> None:
    given = story()
    store(client, given)
    keep_snapshot(client, fold(given.entries))
    keep_all(folder, given, 4, 9)
    trim(client, given, 9)
    assert_whole(console.call("replay", "--archive", str(folder), "--json"), given)
    until = given.entries[6].id
    ended = console.call("replay", "--archive", str(folder), "--until", until, "--json")
    assert ended.document["digest"] == digest_of(given, 7)
    assert console.call("replay", "--json").document["from"] == f"snapshot {given.entries[-1].id}"
    assert_refused(console.call("replay", "--from-start"), f"trimmed through {given.entries[8].id}", "--archive FOLDER")


def test_a_segment_whose_entries_redis_still_holds(console: Console, client: redis.Redis, folder: Path) -> None:
    given = story()
    store(client, given)
    keep_all(folder, given, 4, 9)
    trim(client, given, 4)
    assert_whole(console.call("replay", "--archive", str(folder), "--json"), given)


def test_an_archive_that_is_still_empty(console: Console, client: redis.Redis, folder: Path) -> None:
    given = story()
    store(client, given)
    assert_whole(console.call("replay", "--archive", str(folder), "--json"), given)


@pytest.mark.parametrize("ends", [(), (4,)])
def test_what_is_neither_archived_nor_in_redis_is_named(
    console: Console, client: redis.Redis, folder: Path, ends: tuple[int, ...]
) -> None:
    given = story()
    store(client, given)
    keep_all(folder, given, *ends)
    trim(client, given, 9)
    words = [f"trimmed through {given.entries[8].id}", f"ends at {given.entries[3].id}" if ends else "nothing was read"]
    assert_refused(console.call("replay", "--archive", str(folder)), *words)
    # What could be read was written; but nobody may take it for all of it.
    ended = console.call("export", "--archive", str(folder))
    assert ended.code == 1
    assert words[0] in ended.err


def test_an_archive_goes_with_redis_alone(console: Console, folder: Path) -> None:
    assert_refused(console.call("replay", str(folder), "--archive", str(folder)), "--archive", code=2)
    assert_refused(console.call("replay", "--archive", str(folder / "no")), "No such file", code=2)


def test_an_export_of_all_and_of_what_is_left(console: Console, client: redis.Redis, folder: Path) -> None:
    given = hostile()
    store(client, given)
    whole = console.call("export").out
    end = len(given.entries) // 2
    keep_all(folder, given, 2, end)
    trim(client, given, end)
    assert console.call("export", "--archive", str(folder)) == (0, whole, "")
    lines = whole.splitlines(keepends=True)
    ended = console.call("export")
    assert (ended.code, ended.out) == (0, "".join(lines[end:]))
    assert f"trimmed through {given.entries[end - 1].id}" in ended.err
    first = given.entries[1].id
    assert console.call("export", "--archive", str(folder), "--from", first).out == "".join(lines[1:])
    assert console.call("export", "--from", given.entries[end].id) == (0, "".join(lines[end:]), "")


# ---------------------------------------------------------------- while a scheduler trims


class Shrinking:
    """A log that is trimmed, and archived before that, while it is read: before its n-th page, `work` is done."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries, self.trimmed, self.pages = entries, 0, 0
        self.work: dict[int, int] = {}
        self.folder: Path | None = None

    def page(self, after: str, until: str) -> list[Entry]:
        end = self.work.get(self.pages)
        self.pages += 1
        if end is not None:
            if self.folder is not None:
                before = self.entries[self.trimmed - 1].id if self.trimmed else "0-0"
                keep(self.folder, self.entries[self.trimmed : end], before)
            self.trimmed = end
        return [entry for entry in self.entries[self.trimmed :] if int(entry.id[2:]) > int(after[2:])][:PAGE]

    def trimmed_through(self) -> str:
        return self.entries[self.trimmed - 1].id if self.trimmed else "0-0"


def read(log: Shrinking, folder: Path | None, after: str = "0-0") -> Iterator[Entry]:
    return whole_log(cast(LogReader, log), folder, after)


ENTRIES = [Entry(f"1-{number}", [b"type", b"x", b"data", b"{}"]) for number in range(1, 6 * PAGE)]


@pytest.mark.parametrize(
    "pages", [{0: 10}, {1: 3 * PAGE}, {2: PAGE + 7, 3: 3 * PAGE, 4: 5 * PAGE + 1}, {1: 6 * PAGE - 2}]
)
def test_no_entry_is_missed_while_the_log_is_trimmed(folder: Path, pages: dict[int, int]) -> None:
    log = Shrinking(ENTRIES)
    log.work, log.folder = pages, folder
    assert list(read(log, folder)) == ENTRIES


def test_without_an_archive_a_reader_that_is_overtaken_says_so() -> None:
    log = Shrinking(ENTRIES)
    log.work = {2: 3 * PAGE}
    with pytest.raises(EntriesMissing, match=f"trimmed through 1-{3 * PAGE}, and what was read ends at 1-{2 * PAGE}"):
        list(read(log, None))


def test_what_goes_behind_the_reader_does_not_matter() -> None:
    log = Shrinking(ENTRIES)
    log.work = {2: 2 * PAGE}
    assert list(read(log, None)) == ENTRIES
