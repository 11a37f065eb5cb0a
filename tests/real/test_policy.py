"""The policy as a file: read when a scheduler starts, and again on SIGHUP; a mistake in it changes nothing."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.real.redis_view import RedisView, Service
from tests.real.schedulers import SchedulerProcess, eventually
from tests.real.servers import RealServer

CARD_MIB = 24_576


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A policy that limits one service."""
    path = tmp_path / "policy.yaml"
    limit(path, 8_192)
    return path


def limit(path: Path, limit_mib: int) -> None:
    """Write the policy anew."""
    path.write_text(f"services:\n  worker:\n    limit_mib: {limit_mib}\n")


def policies(view: RedisView) -> list[dict[str, Any]]:
    """All that the log says of the rules."""
    return [entry.data for entry in view.of_type("PolicySet")]


def test_a_raised_limit_lets_in_who_waits(server: RealServer, view: RedisView, file: Path) -> None:
    service = Service(view, "worker")
    with SchedulerProcess(server.url, policy=str(file)) as process:
        process.wait_leading()
        service.lease(8_192)
        waiting = service.queue(8_192)
        eventually(lambda: view.rows("queue")[waiting].get("reason") == "quota", "it to be told why it waits")
        limit(file, 16_384)
        process.signal(signal.SIGHUP)
        assert service.answer(waiting).type == "LeaseGranted"
        process.wait_for("the policy was read again")
        assert [each["services"]["worker"]["limit_mib"] for each in policies(view)] == [8_192, 16_384]


def test_what_is_as_it_was_is_not_recorded_again(server: RealServer, view: RedisView, file: Path) -> None:
    with SchedulerProcess(server.url, policy=str(file)) as process:
        process.wait_leading()
        process.signal(signal.SIGHUP)
        process.wait_for("the policy was read again, and is as it was")
        assert len(policies(view)) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "services:\n  worker:\n    limit_mb: 1\n",
            ":3: unknown key 'limit_mb' in services.worker; did you mean 'limit_mib'?",
        ),
        (
            "services:\n  worker: {guarantee_mib: 49153}\n",
            ":2: the guarantee_mib of worker brings their sum to 49153 MiB",
        ),
        ("services: [\n", ": not YAML"),
        (None, ": No such file or directory"),
    ],
    ids=["misspelt", "guaranteed", "broken", "gone"],
)
def test_a_mistake_is_told_and_the_policy_stays(
    server: RealServer, view: RedisView, file: Path, text: str | None, said: str
) -> None:
    service = Service(view, "worker")
    with SchedulerProcess(server.url, policy=str(file)) as process:
        process.wait_leading()
        if text is None:
            file.unlink()
        else:
            file.write_text(text)
        process.signal(signal.SIGHUP)
        line = process.wait_for("the policy stays as it was")
        assert str(file) in line
        assert said in line
        service.lease(8_192)
        waiting = service.queue(1)
        assert len(policies(view)) == 1
        limit(file, 16_384)
        process.signal(signal.SIGHUP)
        assert service.answer(waiting).type == "LeaseGranted"


def test_a_standby_reads_it_again_too(server: RealServer, view: RedisView, file: Path) -> None:
    with SchedulerProcess(server.url, policy=str(file)) as leader:
        leader.wait_leading()
        with SchedulerProcess(server.url, policy=str(file)) as standby:
            standby.wait_for("standing by")
            limit(file, 16_384)
            standby.signal(signal.SIGHUP)
            standby.wait_for("the policy was read again")
            assert len(policies(view)) == 1
            leader.kill()
            standby.wait_leading()
            assert [each["services"]["worker"]["limit_mib"] for each in policies(view)] == [8_192, 16_384]


def test_config_yaml_is_read_again_where_the_policy_stands_in_it(
    server: RealServer, view: RedisView, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("scheduler: {policy: {margin_mib: 100}}\n")
    with SchedulerProcess(server.url, config=str(path)) as process:
        process.wait_leading()
        path.write_text("scheduler: {policy: {margin_mib: 200, reservations: 7}}\n")
        process.signal(signal.SIGHUP)
        eventually(lambda: len(policies(view)) == 2, "the new policy")
        assert policies(view)[1]["reservations"] == 7
        eventually(lambda: _free_mib(view) == [CARD_MIB - 200] * 2, "the other margin")


def test_without_a_file_there_is_nothing_to_be_read(server: RealServer, view: RedisView) -> None:
    with SchedulerProcess(server.url) as process:
        process.wait_leading()
        process.signal(signal.SIGHUP)
        process.wait_for("there is no policy to be read again; start with --policy FILE or --config FILE")
        assert Service(view, "worker").lease(8_192)


def test_who_guarantees_more_than_there_is_does_not_start(server: RealServer, view: RedisView, file: Path) -> None:
    file.write_text("services:\n  first: {guarantee_mib: 24576}\n  second: {guarantee_mib: 24577}\n")
    with SchedulerProcess(server.url, policy=str(file)) as process:
        assert process.wait() == 3
        assert f"{file}:3: the guarantee_mib of second brings their sum to 49153 MiB; expected at most 49152 MiB" in (
            process.stderr
        )


def test_the_devices_of_other_nodes_count_too(server: RealServer, view: RedisView, file: Path) -> None:
    with SchedulerProcess(server.url, node="node-b") as other:
        other.wait_leading()
        file.write_text("services:\n  first: {guarantee_mib: 98304}\n")
        with SchedulerProcess(server.url, node="node-a", policy=str(file)) as process:
            process.wait_for("standing by")
            file.write_text("services:\n  first: {guarantee_mib: 98305}\n")
            process.signal(signal.SIGHUP)
            assert "expected at most 98304 MiB" in process.wait_for("the policy stays as it was")


def _free_mib(view: RedisView) -> list[int]:
    return [row["free_mib"] for row in view.rows("devices").values()]
