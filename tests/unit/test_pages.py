"""The pages tell of each command and option, each setting, each operation of the SDK, and of none that is not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from headrace.cli.main import app
from headrace.client import client
from headrace.core import errors
from headrace.core.config import Settings

DOCS = Path(__file__).parents[2] / "docs"


def commands(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, inner in command.commands.items():
        yield from commands(inner, f"{name} {word}".strip())


COMMANDS = dict(commands(typer.main.get_command(app)))


def sections() -> dict[str, str]:
    """``models push`` -> its part of the page."""
    parts = re.split(r"^## `headrace ([a-z ]+?)(?: [A-Z].*)?`$", (DOCS / "cli.md").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_page_has_every_command_and_no_other() -> None:
    assert sorted(sections()) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_on_the_page(name: str) -> None:
    options = [p for p in COMMANDS[name].params if p.param_type_name == "option" and not p.hidden]
    given = {o for p in options for o in (*p.opts, *p.secondary_opts)}
    told = set(re.findall(r"`(--?[a-z0-9-]+)`", "\n".join(re.findall(r"^- .*$", sections()[name], flags=re.MULTILINE))))
    assert told == given - {"--help"}


def test_every_setting_is_on_its_page_and_an_option_of_up() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", (DOCS / "configuration.md").read_text(), flags=re.MULTILINE)
    assert rows == [(name, f"HEADRACE_{name.upper()}") for name in Settings.__struct_fields__]
    assert {p.name for p in COMMANDS["up"].params if not p.hidden} - {"file"} == set(Settings.__struct_fields__)


def test_every_operation_and_error_is_on_the_sdk_page() -> None:
    page = (DOCS / "sdk.md").read_text()
    for group in (
        client.Models,
        client.Jobs,
        client.Artifacts,
        client.Deployments,
        client.Traffic,
        client.Quarantine,
        client.Tenants,
        client.Keys,
        client.Audit,
        client.Fleet,
    ):
        row = next(line for line in page.splitlines() if line.startswith(f"| `client.{group.__name__.lower()}`"))
        assert re.findall(r"`(\w+)`", row) == [n for n, v in vars(group).items() if isinstance(v, client.operation)]
    for kind in errors.BY_CODE.values():
        assert f"`{kind.__name__}`" in page
