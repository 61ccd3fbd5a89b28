"""Artifacts on their way in, and into a node's cache, killed -9 at any line of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("scenario", ["upload", "pull"])
def test_killed_at_any_line_it_is_finished_by_the_next(scenario: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos.killed_at_any_line", scenario, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > 50  # lines that it was killed at
