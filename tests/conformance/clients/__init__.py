"""Where other people's clients lie that `make clients` fetches."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / ".clients"


def fetched(name: str) -> Path:
    """The client's folder; the test is skipped by name where it was not fetched, but never in CI."""
    folder = FOLDER / name
    if not (folder / "installed").exists():
        message = f"client {name} is not there: make clients"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder
