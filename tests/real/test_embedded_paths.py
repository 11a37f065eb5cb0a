"""Where the embedded server keeps its data and its socket, and what is passed over or refused."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from gpuboss_scheduler.embedded import (
    EmbeddedServer,
    EmbeddedServerError,
    default_data_dir,
    start_embedded,
)
from tests.real.embedded_servers import answers, client_of

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("short_runtime_folder")]


def socket_of(server: EmbeddedServer) -> Path:
    return Path(server.url.removeprefix("unix://"))


def test_a_long_data_path_with_odd_letters_works(tmp_path, binary) -> None:
    folder = tmp_path / ("x" * 120) / "a b \"c' é"
    with start_embedded(folder, binary=binary) as server, client_of(server) as client:
        assert len(os.fsencode(socket_of(server))) < 104
        assert client.ping()
        assert start_embedded(folder).stop() is False
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(not path.stat().st_mode & 0o077 for path in folder.rglob("*.aof"))


def test_too_long_a_temp_path_is_passed_over(tmp_path, binary, monkeypatch) -> None:
    long = tmp_path / ("y" * 120)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with start_embedded(tmp_path / "data", binary=binary) as server:
        assert socket_of(server).parent == Path(f"/tmp/gpuboss-{os.getuid()}")
        assert answers(server)


def test_a_socket_folder_that_others_can_enter_is_passed_over(tmp_path, binary, monkeypatch) -> None:
    shared = Path(os.environ["XDG_RUNTIME_DIR"])
    (shared / "gpuboss").mkdir(mode=0o700)
    (shared / "gpuboss").chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    with start_embedded(tmp_path, binary=binary) as server:
        assert socket_of(server).parent == shared / f"gpuboss-{os.getuid()}"
        assert socket_of(server).parent.stat().st_mode & 0o777 == 0o700


def test_two_folders_have_two_sockets(tmp_path, binary) -> None:
    with (
        start_embedded(tmp_path / "a", binary=binary) as a,
        start_embedded(tmp_path / "b", binary=binary) as b,
    ):
        assert a.url != b.url
        assert a.pid != b.pid


def test_a_file_in_place_of_the_data_folder_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedServerError, match=f"cannot use {tmp_path}/file"):
        start_embedded(tmp_path / "file")


def test_the_default_folder_follows_xdg(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert default_data_dir() == Path("/var/state/gpuboss")
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", unset)
        assert default_data_dir() == Path("/home/someone/.local/state/gpuboss")
