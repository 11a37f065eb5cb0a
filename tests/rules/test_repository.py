"""What the repository itself promises: one version, a lock to be trusted, whole wheels, files that fit together."""

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.rules.sources import CLIENT, ROOT, SCHEDULER, shown

MAX_FILE_BYTES = 1 << 20
NOT_OURS = frozenset(
    {
        *{".git", ".venv", "__pycache__", "build", "data", "dist"},
        *{".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache"},
    }
)


def toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def project_files(folder: Path) -> Iterator[Path]:
    """Every file below `folder` that belongs to the project, and not to a tool's cache or a checkout's own."""
    for path in sorted(folder.iterdir()):
        if path.name in NOT_OURS or path.name.endswith(".egg-info") or path.is_symlink():
            continue
        if path.is_dir():
            yield from project_files(path)
        else:
            yield path


def faults_of_versions(client: Mapping[str, Any], scheduler: Mapping[str, Any]) -> list[str]:
    """Where the two distributions' metadata disagree: their versions, and the one that the scheduler asks for."""
    wanted = client["project"]["version"]
    found = scheduler["project"]["version"]
    faults = [] if found == wanted else [f"gpuboss is {wanted}, gpuboss-scheduler is {found}"]
    if f"gpuboss=={wanted}" not in scheduler["project"]["dependencies"]:
        faults.append(f"gpuboss-scheduler does not ask for gpuboss=={wanted}")
    if client["project"]["requires-python"] != scheduler["project"]["requires-python"]:
        faults.append("the two ask for different Pythons")
    return faults


def faults_of_lock(text: str) -> list[str]:
    """What a lock must not be: unpinned, without hashes, tied to an address, or holding this very project."""
    faults = [f"names an address or an index: {word}" for word in re.findall(r".*(?:://|file:|--[a-z-]*url).*", text)]
    entries = re.split(r"(?m)^(?=[A-Za-z])", text.replace("\\\n", " "))
    for entry in filter(str.strip, entries):
        name = entry.split()[0]
        if not re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[A-Za-z0-9.+!]+", name):
            faults.append(f"is not pinned: {name}")
        if not re.search(r"--hash=sha256:[0-9a-f]{64}(?![0-9a-f])", entry):
            faults.append(f"has no hash: {name}")
        if name.startswith("gpuboss"):
            faults.append(f"holds this project itself: {name}")
    return faults or ([] if len(entries) > 1 else ["is empty"])


def test_both_distributions_have_one_version() -> None:
    assert faults_of_versions(toml(ROOT / "pyproject.toml"), toml(ROOT / "scheduler" / "pyproject.toml")) == []


def test_the_rule_about_versions_is_seen_to_fail() -> None:
    client = {"project": {"version": "0.2.0", "requires-python": ">=3.11"}}
    scheduler = {
        "project": {"version": "0.1.0", "requires-python": ">=3.12", "dependencies": ["gpuboss==0.1.0"]},
    }
    assert len(faults_of_versions(client, scheduler)) == 3


def test_both_distributions_carry_the_licence() -> None:
    assert (ROOT / "scheduler" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_lock_is_pinned_hashed_and_free_of_addresses() -> None:
    assert faults_of_lock((ROOT / "requirements.lock").read_text(encoding="utf-8")) == []


def test_the_lock_holds_what_the_distributions_ask_for() -> None:
    locked = re.findall(r"(?m)^([A-Za-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(encoding="utf-8"))
    client, scheduler = toml(ROOT / "pyproject.toml"), toml(ROOT / "scheduler" / "pyproject.toml")
    asked = [
        *client["project"]["dependencies"],
        *client["dependency-groups"]["dev"],
        *scheduler["project"]["dependencies"],
    ]
    names = {re.split(r"[^A-Za-z0-9._-]", entry)[0].lower() for entry in asked} - {"gpuboss"}
    assert names - {name.lower() for name in locked} == set()


HASHED = f"redis==8.1.0 \\\n    --hash=sha256:{'a' * 64}\n    # via gpuboss (pyproject.toml)\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "redis==8.1.0\n",
        HASHED + "typer==0.29.2\n",
        HASHED.replace("==", ">="),
        HASHED.replace("a" * 64, "a" * 63),
        "--index-url somewhere\n" + HASHED,
        HASHED + "    # from file:///tmp/wheels\n",
        HASHED + "    # from http" + "://127.0.0.1/simple\n",
        HASHED.replace("redis==", "gpuboss=="),
    ],
)
def test_the_rule_about_the_lock_is_seen_to_fail(text: str) -> None:
    assert faults_of_lock(text)


def test_the_rule_about_the_lock_lets_pass_what_it_should() -> None:
    assert faults_of_lock(HASHED + HASHED.replace("8.1.0", "8.1.0 ; python_version < '3.13'")) == []


def too_large(folder: Path, max_bytes: int) -> list[Path]:
    """The files below `folder` that are over `max_bytes`."""
    return [path for path in project_files(folder) if path.stat().st_size > max_bytes]


def test_no_file_is_larger_than_a_mebibyte() -> None:
    assert [shown(path) for path in too_large(ROOT, MAX_FILE_BYTES)] == []


def test_the_rule_about_large_files_is_seen_to_fail(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "large").write_bytes(b"xxx")
    (tmp_path / "small").write_bytes(b"xx")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "large").write_bytes(b"xxx")
    assert too_large(tmp_path, 2) == [tmp_path / "inner" / "large"]


class Distribution(NamedTuple):
    """One of the two wheels, and what it should hold."""

    project: Path
    package: Path
    script: str


DISTRIBUTIONS = (
    Distribution(ROOT, CLIENT, "gpuboss = gpuboss.cli:main"),
    Distribution(ROOT / "scheduler", SCHEDULER, "gpuboss-scheduler = gpuboss_scheduler.__main__:main"),
)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda each: each.package.name)
def test_a_wheel_holds_its_package_whole_and_nothing_else(distribution: Distribution, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    done = subprocess.run(build, cwd=distribution.project, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        [scripts] = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert distribution.script in archive.read(scripts).decode()
    sources = {path.relative_to(distribution.package.parent) for path in project_files(distribution.package)}
    assert names == {path.as_posix() for path in sources}
    assert f"{distribution.package.name}/py.typed" in names


def test_the_schedulers_package_holds_its_commit_script() -> None:
    assert (SCHEDULER / "lua" / "commit.lua").is_file()


def compose() -> dict[str, Any]:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    services: dict[str, Any] = yaml.safe_load(text)["services"]
    return services


def test_compose_builds_only_what_the_dockerfile_has() -> None:
    stages = re.findall(r"(?m)^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    targets = {service["build"]["target"] for service in compose().values() if "build" in service}
    assert targets == {"client", "scheduler"}
    assert targets <= set(stages)


def test_compose_keeps_the_log_safe_and_has_a_standby() -> None:
    services = compose()
    command = " ".join(services["redis"]["command"])
    for option in ("--appendonly yes", "--appendfsync everysec", "--maxmemory-policy noeviction"):
        assert option in command
    schedulers = [service for service in services.values() if service.get("image") == "gpuboss-scheduler"]
    assert len(schedulers) == 2
    assert schedulers[0] == schedulers[1]


def test_the_images_copy_only_what_their_context_holds() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    kept = set(re.findall(r"(?m)^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8")))
    copied = {
        source
        for line in re.findall(r"(?m)^COPY (?!--from)(.+)$", dockerfile)
        for source in line.split()[:-1]
        if source != "."
    }
    assert copied <= kept
    assert [name for name in sorted(kept) if not (ROOT / name).exists()] == []
