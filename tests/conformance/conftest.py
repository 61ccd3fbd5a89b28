"""What the tests of engines share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace.server.engines.load import load
from headrace.server.engines.port import Engine
from tests.models import Artifact


@pytest.fixture
def open_engine(tmp_path: Path):
    """Loads artifacts; closes the engines afterwards."""
    engines: list[Engine] = []

    def open_(artifact: Artifact, **change: Any) -> Engine:
        options = change.get("options", artifact.options)
        signature = change.get("signature", artifact.signature)
        engines.append(load(artifact.engine, artifact.save(tmp_path), options, signature, 1).engine)
        return engines[-1]

    yield open_
    for engine in engines:
        engine.close()
