"""The scheduler with its fence taken out: what no script compares any more, it does although somebody else leads.

For control runs, which show that the checks of the others would see it.
"""

from __future__ import annotations

import re
from hashlib import sha1

from gpuboss_scheduler import scripts

FENCE = re.compile(r"^if (reign|token)\b.*return \{'(FENCED|STALE)'.*$", re.MULTILINE)


class Unfenced(scripts.Script):
    """A script without the lines that compare who leads, seq and cursor."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.text = FENCE.sub("", self.text)
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


def main() -> None:
    """As the console script, without the fence."""
    scripts.Script = Unfenced  # type: ignore[misc]
    from gpuboss_scheduler.__main__ import main as run

    run()


if __name__ == "__main__":
    main()
