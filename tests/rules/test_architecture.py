"""Who may import whom, what the core may not do, and what a start may not load."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.rules.sources import CLIENT, CORE, SCHEDULER, python_files, shown

CORE_MAY_IMPORT = frozenset(
    {
        "gpuboss.core",
        "gpuboss.events",
        "gpuboss.fields",
        "msgspec",
        "__future__",
        "bisect",
        "collections",
        "dataclasses",
        "enum",
        "functools",
        "hashlib",
        "heapq",
        "itertools",
        "operator",
        "re",
        "typing",
    }
)

# `hash` and `id` differ from process to process; the others reach outside, or past this very test.
CORE_MAY_NOT_CALL = frozenset(
    {"__import__", "compile", "eval", "exec", "float", "hash", "id", "input", "open", "print"}
)

# Slow to load, or not there on a laptop that only runs `gpuboss`: imported inside the commands that use them.
NOT_AT_START = ("redis", "pynvml", "starlette", "torch", "uvicorn", "gpuboss_scheduler")


class Import(NamedTuple):
    """One imported name: `from a.b import c` is ("a.b", "c"), `import a.b` is ("a.b", "")."""

    module: str
    name: str
    line: int

    def reaches(self, packages: Iterable[str]) -> bool:
        """Whether it is one of `packages`, lies in one, or takes one out of its parent."""
        dotted = f"{self.module}.{self.name}" if self.name else self.module
        return any(f"{path}.".startswith(f"{package}.") for path in (self.module, dotted) for package in packages)


def imports_of(source: str, package: str) -> Iterator[Import]:
    """Every import in a module of `package`, wherever it stands, relative ones spelled out."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parents = package.split(".")
                kept = parents[: len(parents) - node.level + 1]
                module = ".".join([*kept, module] if module else kept)
            yield from (Import(module, alias.name, node.lineno) for alias in node.names)


def package_of(path: Path, root: Path) -> str:
    """The dotted package that a module's relative imports start from; `root` is the folder of its top package."""
    return ".".join(path.relative_to(root.parent).parent.parts)


def impurities_of(source: str, _package: str = "") -> Iterator[tuple[int, str]]:
    """What would let two runs over one log differ: floats, and calls that reach outside."""
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, float | complex):
            yield line, f"the float {node.value}"
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
            yield line, "a division that gives a float (use //)"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CORE_MAY_NOT_CALL:
            yield line, f"a call of {node.func.id}()"


def scheduler_in_client(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Imports of the scheduler, in a module of the client's distribution."""
    for entry in imports_of(source, package):
        if entry.reaches(["gpuboss_scheduler"]):
            yield entry.line, f"imports {entry.module}"


def strangers_in_core(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Imports that are not on the core's list."""
    for entry in imports_of(source, package):
        if not entry.reaches(CORE_MAY_IMPORT):
            yield entry.line, f"imports {entry.module} {entry.name}".rstrip()


def nvml_elsewhere(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Imports of NVML's binding: one module is its door."""
    for entry in imports_of(source, package):
        if entry.reaches(["pynvml"]):
            yield entry.line, f"imports {entry.module}"


Rule = Callable[[str, str], Iterator[tuple[int, str]]]


def broken_in(rule: Rule, files: Iterable[Path], root: Path) -> list[str]:
    """Each breach of `rule`, as FILE:LINE and what is wrong."""
    return [
        f"{shown(path)}:{line}: {what}"
        for path in files
        for line, what in rule(path.read_text(encoding="utf-8"), package_of(path, root))
    ]


def test_the_client_never_imports_the_scheduler() -> None:
    assert broken_in(scheduler_in_client, python_files(CLIENT), CLIENT) == []


def test_the_core_imports_itself_the_events_and_little_else() -> None:
    assert broken_in(strangers_in_core, python_files(CORE), CLIENT) == []


def test_the_core_has_no_floats_and_reaches_nothing_outside() -> None:
    assert broken_in(impurities_of, python_files(CORE), CLIENT) == []


def test_one_module_is_the_door_to_nvml() -> None:
    files = [path for path in python_files(CLIENT, SCHEDULER) if path.name != "nvml.py"]
    client = [path for path in files if CLIENT in path.parents]
    assert broken_in(nvml_elsewhere, client, CLIENT) == []
    assert broken_in(nvml_elsewhere, (path for path in files if path not in client), SCHEDULER) == []


@pytest.mark.parametrize(
    "source",
    [
        "import gpuboss_scheduler",
        "import gpuboss_scheduler.loop as loop",
        "from gpuboss_scheduler.loop import run",
        "def later():\n    from gpuboss_scheduler import loop",
    ],
)
def test_the_clients_rule_is_seen_to_fail(source: str) -> None:
    assert list(scheduler_in_client(source, "gpuboss"))


def test_the_clients_rule_takes_names_whole() -> None:
    assert not list(scheduler_in_client("import gpuboss_scheduler_docs\nfrom gpuboss import core", "gpuboss"))


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import random",
        "import os.path",
        "import datetime",
        "import redis",
        "import gpuboss",
        "import gpuboss.keys",
        "from gpuboss import keys",
        "from gpuboss.errors import GPUBossError",
        "from .. import keys",
        "from ..client import GPUBoss",
        "if False:\n    import time",
        "import collectionsx",
    ],
)
def test_the_cores_rule_is_seen_to_fail(source: str) -> None:
    assert list(strangers_in_core(source, "gpuboss.core"))


@pytest.mark.parametrize(
    "source",
    [
        "from __future__ import annotations",
        "from collections.abc import Iterator",
        "import heapq, hashlib",
        "from gpuboss import events",
        "from gpuboss.events import LeaseRequested",
        "from gpuboss.core.ledger import Ledger",
        "from gpuboss import core",
        "from .ledger import Ledger",
        "from . import ledger",
        "from ..events import LeaseRequested",
    ],
)
def test_the_cores_rule_lets_pass_what_it_should(source: str) -> None:
    assert not list(strangers_in_core(source, "gpuboss.core"))


@pytest.mark.parametrize(
    "source",
    ["share = 0.5", "half = vram_mib / 2", "total /= 2", "key = hash(name)", "open('log')", "float('1')"],
)
def test_the_rule_against_impurity_is_seen_to_fail(source: str) -> None:
    assert list(impurities_of(source))


def test_the_rule_against_impurity_lets_integers_pass() -> None:
    assert not list(impurities_of("half = vram_mib // 2\nname = 'a/b'\nledger.open(device)"))


def test_the_rule_about_nvml_is_seen_to_fail() -> None:
    assert list(nvml_elsewhere("def probe():\n    import pynvml", "gpuboss_scheduler"))


def loaded_at_start(code: str) -> list[str]:
    """Which of NOT_AT_START a fresh interpreter has loaded once it ran `code`."""
    report = f"import sys\nprint('loaded', *(name for name in {NOT_AT_START!r} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


HELP = """
import sys
from gpuboss.cli import main
sys.argv = ["gpuboss", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""


def test_importing_gpuboss_loads_no_redis() -> None:
    assert loaded_at_start("import gpuboss") == []


def test_the_help_of_the_command_line_loads_no_redis() -> None:
    assert loaded_at_start(HELP) == []


def test_the_look_at_loaded_modules_is_seen_to_fail() -> None:
    assert loaded_at_start("import redis") == ["redis"]
