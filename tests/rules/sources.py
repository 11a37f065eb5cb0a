"""Where the sources are: what the rules about them read."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "gpuboss"
CORE = CLIENT / "core"
SCHEDULER = ROOT / "scheduler" / "gpuboss_scheduler"
TESTS = ROOT / "tests"
SCRIPTS = ROOT / "scripts"


def python_files(*folders: Path) -> Iterator[Path]:
    """Every module below `folders`, in a fixed order; a folder without one is a mistake in the rule that asked."""
    for folder in folders:
        found = sorted(folder.rglob("*.py"))
        assert found, f"{folder} holds no Python module"
        yield from found


def shown(path: Path) -> str:
    """A path as a message shows it: from the repository's root, with forward slashes."""
    return path.relative_to(ROOT).as_posix()
