"""The database's password reaches those who connect, and no process that runs anybody's model."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from headrace.client.serve import Platform
from headrace.core.schema import Signature, TensorSpec
from headrace.core.secret import variables
from headrace.deploy.node import NodeInfo
from tests.postgres import PostgresServer

SPY = """
import os

FOUND = [name for name in ("HEADRACE_DATABASE", "HR_PG") if name in os.environ]
assert not FOUND, FOUND  # where it is examined, and where it is served


class Model:
    def predict(self, inputs):
        return {"y": inputs["x"]}
"""


def test_the_variables_that_hold_a_password() -> None:
    assert variables("") == {"HEADRACE_DATABASE"}
    url = "postgresql+psycopg://me:${env:PG}@host/db?password=${env:OTHER}&x=${file:/a}"
    assert variables(url) == {"HEADRACE_DATABASE", "PG", "OTHER"}


def test_a_model_never_sees_the_databases_password(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.new_database().replace("headrace@", "headrace:${env:HR_PG}@")
    monkeypatch.setenv("HEADRACE_DATABASE", url)
    monkeypatch.setenv("HR_PG", "hunter2")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.py").write_text(SPY)
    platform = Platform(str(tmp_path / "data"))
    try:
        client = platform.client
        spec = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
        client.push("spy", folder, signature=spec, trust=True)
        found = client.deploy("spy@1")
        assert client.predict("spy", np.ones(1, np.float32)).array.tolist() == [1.0]
        info = msgspec.json.decode((platform.folder / "node.json").read_bytes(), type=NodeInfo)
        for pid in (*(replica.pid for replica in found.instances), *info.router_pids):
            assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert b"hunter2" in Path(f"/proc/{info.control_pid}/environ").read_bytes()
    finally:
        platform.stop()
