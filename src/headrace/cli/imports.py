"""``headrace models import``: what other tools keep models in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

import headrace
from headrace.cli import output
from headrace.cli.options import Json, Tenant, one_of, pairs, qualified
from headrace.core.errors import InvalidInput
from headrace.core.signature import Signature, TensorSpec
from headrace.registry.importers.candidate import FORMATS

if TYPE_CHECKING:
    from headrace.client.imports import Imported, ImportResult


def add_to(models: typer.Typer) -> None:
    """Add the command to ``headrace models``."""
    models.command("import")(import_)


@output.guarded
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="MLflow or Hugging Face folder, Triton repository, TorchScript, torch.export or ONNX file."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Of the model; the source's own when left out.")] = None,
    format: Annotated[
        str,
        typer.Option(
            help="auto, mlflow, triton, huggingface, gguf, torchscript, torch-export or onnx.",
            callback=one_of(*FORMATS),
        ),
    ] = "auto",
    trust: Annotated[bool, typer.Option("--trust", help="The source may run code when loaded (operators).")] = False,
    signature: Annotated[
        Path | None, typer.Option(help="JSON file of inputs and, optionally, outputs, where the source has none.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="NAME=TEXT, repeatable.")] = None,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Register what another tool keeps: one version of each model version found."""
    chosen: Any = format
    if tenant is not None and name is None:
        raise typer.BadParameter("--tenant needs --name", param_hint="--tenant")
    with headrace.Client() as client, output.upload_bar(json) as progress:
        result = client.models.import_(
            source,
            name=qualified(name, tenant) if name else None,
            format=chosen,
            trust=trust,
            signature=_signature(signature) if signature else None,
            tags=pairs(tag, "--tag"),
            description=description,
            progress=progress,
        )
    output.json(result) if json else _show(result, tenant)
    if result.refused:
        sys.exit(output.REFUSED)


def _show(result: ImportResult, tenant: str | None) -> None:
    for item in result.imported:
        _show_version(item, tenant)
    for refused in result.refused:
        output.console.print(f"refused: {refused.model}: {refused.reason}")
    for item in result.imported[-1:]:
        name = qualified(f"{item.version.model}@{item.version.version}", tenant)
        output.console.print(f"next: headrace deploy {name}", style="dim")


def _show_version(item: Imported, tenant: str | None) -> None:
    made = item.version
    name = qualified(f"{made.model}@{made.version}", tenant)
    known = "" if item.created else ", there already"
    output.console.print(f"{name}  {made.engine}, {output.size(made.size_bytes)}{known}")
    for kind, specs in (("takes", made.signature.inputs), ("gives", made.signature.outputs)):
        for spec in specs:
            output.console.print(f"  {kind} {spec.name} {spec.datatype} {list(spec.shape)}")
    for note in item.notes:
        output.console.print(f"  note: {note}")


class _SignatureFile(msgspec.Struct, forbid_unknown_fields=True):
    """A signature whose outputs may be left to the model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...] = ()


def _signature(path: Path) -> Signature:
    try:
        given = msgspec.json.decode(path.read_bytes(), type=_SignatureFile)
    except OSError as error:
        raise InvalidInput(f"signature: {path} cannot be read: {error.strerror}", field="signature") from None
    except msgspec.DecodeError as error:
        raise InvalidInput(
            f"signature: {path.name}: {error}",
            field="signature",
            hint='for example {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 30]}]}',
        ) from None
    return Signature(given.inputs, given.outputs)
