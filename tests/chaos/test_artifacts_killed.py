"""Artifacts on their way in, and into a node's cache, killed -9 at any line of ours."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

MEMORY = "/dev/shm"


@pytest.mark.parametrize("scenario", ["upload", "pull"])
def test_killed_at_any_line_it_is_finished_by_the_next(scenario: str, tmp_path: Path) -> None:
    # In memory where there is such a folder: hundreds of deaths, each with its syncs to the disk.
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else tmp_path) as folder:
        command = [sys.executable, "-m", "tests.chaos.killed_at_any_line", scenario, folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > 50  # lines that it was killed at
