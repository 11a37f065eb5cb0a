"""`python -m gpuboss`: the same as the command `gpuboss`."""

from __future__ import annotations

import sys

from gpuboss.cli import main

if __name__ == "__main__":
    sys.exit(main())
