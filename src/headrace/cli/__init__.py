"""The command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point. The commands are imported within: Ctrl-C meanwhile must not show where."""
    try:
        from headrace.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
