"""Models of other tools, imported: read on this machine, sent as artifacts, registered as versions."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path

import msgspec

from headrace.client import artifacts, calls, flows, uploads
from headrace.client.steps import Flow, Memory, Progress, request
from headrace.core import resources as r
from headrace.core.errors import HeadraceError, InvalidInput, NotFound
from headrace.core.names import parse_reference
from headrace.core.signature import Signature
from headrace.registry.importers.candidate import Asked, Candidate, Format, Found


class Imported(msgspec.Struct):
    """A version that a source held."""

    version: r.Version
    created: bool
    """False where the model had it already."""
    notes: list[str]
    """What of the source was changed or has no place here."""


class Refused(msgspec.Struct):
    """A model of the source that was not imported."""

    model: str
    reason: str
    field: str | None = None
    hint: str | None = None


class ImportResult(msgspec.Struct):
    """What became of a source."""

    format: str
    imported: list[Imported]
    refused: list[Refused]


def import_(
    memory: Memory,
    source: str | PathLike[str],
    *,
    name: str | None = None,
    format: Format = "auto",
    trust: bool = False,
    signature: Signature | None = None,
    tags: dict[str, str] | None = None,
    description: str = "",
    progress: Progress | None = None,
) -> Flow[ImportResult]:
    """Register what another tool keeps: an MLflow directory, a Triton repository, a Hugging Face directory, a PyTorch
    program, or ONNX with its weights in other files. A version that the model has already is not made again.

    Args:
        source: file or folder on this machine.
        name: of the model, ``churn`` or ``tenant/churn``; the source's own when left out.
        format: ``auto`` to tell it by content.
        trust: the source may execute code when it is loaded; needs the role operator.
        signature: what the model takes and gives, for formats that do not say it; outputs may be left empty.
        tags: added to those that the source gives.
        description: for people.
        progress: is told of bytes sent, and bytes in all, of each version.

    Raises:
        InvalidInput: there is no such source or format, or several models and one name.
        Unprocessable: nothing of the source can be served; the reason is said.
    """
    from headrace.registry.importers.read import read  # YAML and a scanner, which nothing else here needs

    with tempfile.TemporaryDirectory(prefix="headrace-import-") as scratch:
        asked = Asked(Path(scratch), trust, signature)
        found = _named(read(Path(fspath(source)), asked, format), name)
        result = ImportResult(found.format, [], [_refused(item.name, item.error) for item in found.refusals])
        for candidate in found.candidates:
            mixed = replace(candidate, tags={**candidate.tags, **(tags or {})}, description=description)
            result.imported.append((yield from _register(memory, mixed, progress)))
        return result


def _named(found: Found, name: str | None) -> Found:
    """The candidates under the name that was asked for. Raises what was refused where nothing else was found."""
    if not found.candidates:
        raise found.refusals[0].error
    if name is None:
        return found
    models = sorted({item.name for item in found.candidates} | {item.name for item in found.refusals})
    if len(models) > 1:
        raise InvalidInput(
            f"name: {name!r} for {len(models)} models: {', '.join(models)}",
            field="name",
            hint="leave the name out, or import one model's folder",
        )
    parse_reference(name, "name")
    return replace(found, candidates=tuple(replace(item, name=name) for item in found.candidates))


def _register(memory: Memory, found: Candidate, progress: Progress | None) -> Flow[Imported]:
    digest = artifacts.digest_of(found.path)
    known = yield from _known(memory, found, digest)
    if known is not None:
        return Imported(known, False, list(found.notes))
    packed = artifacts.Packed(found.path, found.file_name, digest)
    yield from uploads.upload(memory, packed.path, packed.digest, progress)
    options = flows.options_of(found.engine, list(found.outputs), None, found.batch_max, found.trust)
    call = calls.register(
        found.name,
        digest,
        found.file_name,
        found.engine,
        found.signature,
        options,
        dict(found.metrics),
        dict(found.tags),
        found.description,
    )
    outcome = yield from request(memory, call)
    return Imported(outcome.result, True, list(found.notes))


def _known(memory: Memory, found: Candidate, digest: str) -> Flow[r.Version | None]:
    """The version that an import before this one, perhaps cut short, made of the same artifact."""
    try:
        versions = yield from request(memory, calls.list_versions(found.name))
    except NotFound:
        return None
    for version in versions.items:
        options = version.options
        same = (version.digest, version.engine, options.trust) == (digest, found.engine, found.trust)
        same = same and options.outputs == found.outputs and found.batch_max in (None, options.batch_max)
        same = same and _agrees(found.signature, version.signature)
        if same and all(version.tags.get(tag) == text for tag, text in found.tags.items()):
            return version
    return None


def _agrees(given: Signature | None, registered: Signature) -> bool:
    """Whether a signature that may leave its outputs out, or all of itself, says nothing else."""
    if given is None:
        return True
    return given.inputs == registered.inputs and given.outputs in ((), registered.outputs)


def _refused(model: str, error: HeadraceError) -> Refused:
    return Refused(model, error.message, error.field, error.hint)
