"""``headrace predict``."""

from __future__ import annotations

import contextlib
import csv
import io
import json as json_module
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import headrace
from headrace.cli import output
from headrace.cli.options import Json, Reference, Tenant, qualified
from headrace.core.errors import HeadraceError, InvalidInput, NotFound
from headrace.core.names import did_you_mean, parse_reference


def predict(
    reference: Reference,
    row: Annotated[str | None, typer.Option(help="One row: 1.5,2,3")] = None,
    file: Annotated[str | None, typer.Option("--input", help="Rows as .json or .csv; - for JSON from stdin.")] = None,
    unit: Annotated[str | None, typer.Option(help="User or session: always meets the same version.")] = None,
    outputs: Annotated[str | None, typer.Option(help="Outputs wanted, comma separated.")] = None,
    timeout_s: Annotated[float | None, typer.Option(help="Deadline in seconds.")] = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Run a model on a row or a file of rows."""
    rows = read_rows(row, file)
    wanted = outputs.split(",") if outputs else None
    name = qualified(reference, tenant)
    with headrace.Client() as client:
        try:
            found = client.predict(name, rows, unit=unit, outputs=wanted, timeout_s=timeout_s)
        except NotFound as error:
            error.hint = error.hint or _hint(client, reference, tenant)
            raise
    plain = {name: _plain(array.tolist()) for name, array in found.outputs.items()}
    if json:
        return output.json({"model": found.model, "version": found.version, "id": found.id, "outputs": plain})
    output.console.print(f"{found.model}@{found.version}", style="dim")
    output.table(plain, zip(*plain.values(), strict=False), "no outputs")


def _hint(client: headrace.Client, reference: str, tenant: str | None) -> str | None:
    """What to type when the inference API knows no such model or version: it does not tell what others there are."""
    wanted = parse_reference(reference)
    with contextlib.suppress(HeadraceError):  # the first error is the one to tell
        names = [model.name for model in client.models.list(tenant or wanted.tenant)]
        if wanted.model in names:
            return f"headrace deploy {reference}"
        return did_you_mean(wanted.model, names) or "headrace models list"
    return None


def _plain(value: Any) -> Any:
    """Nested lists of JSON's types."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def read_rows(row: str | None, file: str | None) -> Any:
    """Rows from the command line: numbers where all values of a table are, else text. Raises InvalidInput for a
    file that cannot be read as rows, typer.BadParameter where both or neither are given."""
    if (row is None) == (file is None):
        raise typer.BadParameter("give either --row or --input, as in --row 1,2,3", param_hint="--row")
    if row is not None:
        return _table([row.split(",")])
    assert file is not None
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        if file.endswith(".csv"):
            return _table([line for line in csv.reader(io.StringIO(text)) if line])
        return json_module.loads(text)
    except OSError as error:
        raise InvalidInput(f"input: {file}: {error.strerror}", field="input") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"input: {file} is not UTF-8 text", field="input") from None
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"input: {file} is not JSON: {error}", field="input") from None
    except csv.Error as error:
        raise InvalidInput(f"input: {file} is not CSV: {error}", field="input") from None


def _table(lines: list[list[str]]) -> list[list[float]] | list[list[str]]:
    """A table of numbers or of text; its first line is a header where it alone is not numbers."""
    body = lines[1:] if len(lines) > 1 and not _numbers(lines[0]) and all(map(_numbers, lines[1:])) else lines
    if all(map(_numbers, body)):
        return [[float(value) for value in line] for line in body]
    return body


def _numbers(line: list[str]) -> bool:
    try:
        return all(float(value) is not None for value in line)
    except ValueError:
        return False


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(output.guarded(predict))
