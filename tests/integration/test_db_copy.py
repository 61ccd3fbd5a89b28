"""A platform moves from SQLite to PostgreSQL: everything is there, and it serves."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli.main import app
from headrace.client.serve import Platform
from tests import models
from tests.postgres import PostgresServer


def test_a_platform_moves_to_postgresql(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = str(tmp_path / "up"), postgres.new_database()
    command = ["db", "copy", "--data", folder, "--database", url]
    before = Platform(folder)
    try:
        before.client.push("echo", models.echo_onnx(1.0).content)
        before.client.deploy("echo@1", traffic=100)
        changes = before.client.changes(limit=1000).items
        refused = CliRunner().invoke(app, command)
        assert refused.exit_code == 1 and "is in use by another headrace" in refused.stderr
    finally:
        before.stop()
    copied = CliRunner().invoke(app, command)
    assert copied.exit_code == 0, copied.stderr
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1 and "has rows already" in again.stderr
    (tmp_path / "up" / "headrace.db").unlink()
    monkeypatch.setenv("HEADRACE_DATABASE", url)
    after = Platform(folder)
    try:
        assert after.client.changes(limit=1000).items == changes
        after.client.deploy("echo@1")  # it is already: waits until it is ready again
        assert after.client.predict("echo", [[1.0]]).array.tolist() == [[2.0]]
        assert not (tmp_path / "up" / "headrace.db").exists()
    finally:
        after.stop()
