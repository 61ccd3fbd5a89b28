"""The database among the settings: by reference, checked, and never shown with its password."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli.main import app
from headrace.core.config import load
from headrace.core.errors import InvalidInput
from headrace.core.secret import redacted, reveal

URL = "postgresql+psycopg://headrace:{}@db.internal:5432/headrace"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (URL.format("hunter2"), URL.format("***")),
        (URL.format("${env:PG}"), URL.format("${env:PG}")),
        (URL.format("${file:/run/secrets/pg}"), URL.format("${file:/run/secrets/pg}")),
        ("postgresql+psycopg://u@h/d?password=hunter2&sslmode=require", "postgresql+psycopg://u@h/d?password=***&sslmode=require"),
        ("", ""),
    ],
)  # fmt: skip
def test_a_password_is_not_shown_and_a_reference_is(url: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert redacted(url) == shown
    monkeypatch.setenv("HEADRACE_DATABASE", url)
    monkeypatch.setenv("COLUMNS", "300")
    for options in ([], ["--json"]):
        said = CliRunner().invoke(app, ["config", "show", *options])
        assert said.exit_code == 0 and "hunter2" not in said.output and shown in said.output


@pytest.mark.parametrize(
    "url", ["mysql://u:hunter2@h/d", "postgresql://u:hunter2@h/d", "sqlite:///x", "postgresql+psycopg://h", "nonsense"]
)
def test_what_is_no_database_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"^database: .*expected nothing, or postgresql\+psycopg") as caught:
        load(None, {"HEADRACE_DATABASE": url})
    assert caught.value.field == "database" and "hunter2" not in caught.value.message


def test_several_control_planes_need_a_database_that_takes_them() -> None:
    with pytest.raises(InvalidInput, match="control_planes: 2") as caught:
        load(None, {}, {"control_planes": 2})
    assert caught.value.field == "control_planes"
    assert load(None, {}, {"control_planes": 2, "database": URL.format("x")}).settings.control_planes == 2


def test_a_reference_is_revealed_to_who_connects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PG", "p@ss/word")
    (tmp_path / "secret").write_text("from a file\n")
    assert reveal("${env:PG}", "database") == "p@ss/word"
    assert reveal(f"${{file:{tmp_path / 'secret'}}}", "database") == "from a file"
    assert reveal("as it is", "database") == "as it is"
    for reference in ("${env:HR_NOT_SET}", f"${{file:{tmp_path / 'missing'}}}"):
        with pytest.raises(InvalidInput) as caught:
            reveal(reference, "database")
        assert caught.value.field == "database"
