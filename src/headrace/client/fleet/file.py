"""Fleet files: TOML, as docs/fleet.md tells it, read into what they want the platform to be."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import msgspec

from headrace.client import artifacts
from headrace.client.fleet.plan import Desired
from headrace.client.fleet.state import (
    DEPLOYMENT,
    MODEL,
    TENANT,
    VERSION,
    Field,
    Fields,
    Key,
    Kind,
    State,
    flat,
    parent_of,
    plain,
    whole_weights,
)
from headrace.client.flows import read_golden
from headrace.core import pipeline
from headrace.core.errors import HeadraceError, InvalidInput
from headrace.core.names import NUMBER, check_alias, check_name, did_you_mean, parse_reference

TOP = ("tenant", "tenants", "models")
SECTIONS = ("grants", "aliases", "versions", "deployments", "traffic")
"""Of a model, beside its own fields."""
MADE = ("artifact", "golden", "state")
"""Of a version, beside the fields that it is registered with."""
STATES = ("approved", "retired")
Paths = str | PathLike[str] | Iterable[str | PathLike[str]]
Table = Mapping[str, Any]


def read(paths: Paths, own: str) -> Desired:
    """What files, and the ``*.toml`` of folders, say together.

    Args:
        paths: one or several.
        own: tenant of models for which no file names one.

    Raises:
        InvalidInput: names file and field, and the nearest name where one is unknown.
    """
    given = [paths] if isinstance(paths, str | PathLike) else list(paths)
    reader = _Reader(own)
    for path in _files([Path(fspath(one)) for one in given]):
        reader.file(path)
    return Desired(reader.state, frozenset(reader.managed), reader.extras, reader.parts)


def _files(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(path.glob("*.toml"))
            if not inside:
                raise InvalidInput(f"{path}: there is no .toml file in it", field="files")
            found += inside
        else:
            found.append(path)
    return list({path.resolve(): path for path in found}.values())


class _Reader:
    """Gathers what the files say; `where` is the file, `at` the path of a table in it."""

    def __init__(self, own: str) -> None:
        self.own = own
        self.state: State = {}
        self.managed: set[tuple[Kind, str]] = set()
        self.extras: dict[Key, dict[str, Any]] = {}
        self.parts: dict[Key, frozenset[Key]] = {}
        self._from: dict[Key, str] = {}

    def file(self, path: Path) -> None:
        self.where, self.folder = str(path), path.parent
        try:
            content = tomllib.loads(path.read_text())
        except OSError as error:
            raise InvalidInput(f"{path}: {error.strerror}", field="files") from None
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InvalidInput(f"{path}: not TOML: {error}", field="files") from None
        self._known(content, TOP, "")
        tenant = content.get("tenant", self.own)
        with _placed(self.where, "tenant"):
            check_name(tenant if isinstance(tenant, str) else repr(tenant), "tenant")
        for name, table in self._tables(content, "tenants", ""):
            at = f"tenants.{name}"
            with _placed(self.where, at):
                check_name(name)
            self._add(Key("tenant", "", name), self._given(table, TENANT, at))
        for name, table in self._tables(content, "models", ""):
            with _placed(self.where, f"models.{name}"):
                reference = parse_reference(name)
                if reference.version is not None:
                    raise InvalidInput(f"{name!r} names a version; versions have a table of their own", field="model")
            self._model(f"{reference.tenant or tenant}/{reference.model}", table, f"models.{name}")

    # -------------------------------------------------------------------------------------------- sections
    def _model(self, model: str, table: Table, at: str) -> None:
        self._known(table, (*MODEL, *SECTIONS), at)
        own = {name: value for name, value in table.items() if name in MODEL}
        self._add(Key("model", model), self._given(own, MODEL, at))
        if "grants" in table:
            self.managed.add(("grant", model))
            for to in self._convert(table["grants"], list[str], f"{at}.grants"):
                with _placed(self.where, f"{at}.grants"):
                    self._add(Key("grant", model, check_name(to)), {})
        if "aliases" in table:
            self.managed.add(("alias", model))
            for alias, version in self._convert(table["aliases"], dict[str, int], f"{at}.aliases").items():
                with _placed(self.where, f"{at}.aliases"):
                    self._add(Key("alias", model, check_alias(alias)), {"version": version})
        for number, one in self._tables(table, "versions", at):
            self._version(Key("version", model, self._number(number, f"{at}.versions")), one, f"{at}.versions.{number}")
        if "deployments" in table:
            self.managed.add(("deployment", model))
        for number, one in self._tables(table, "deployments", at):
            key = Key("deployment", model, self._number(number, f"{at}.deployments"))
            self._add(key, self._given(one, DEPLOYMENT, f"{at}.deployments.{number}"))
        if "traffic" in table:
            self._traffic(model, self._table(table["traffic"], f"{at}.traffic"), f"{at}.traffic")

    def _traffic(self, model: str, table: Table, at: str) -> None:
        self._known(table, ("weights", "overrides"), at)
        if "weights" in table:
            given = self._convert(table["weights"], dict[str, float], f"{at}.weights")
            numbered = {self._number(number, f"{at}.weights"): percent for number, percent in given.items()}
            with _placed(self.where, at):
                self._add(Key("traffic", model), {"weights": whole_weights(numbered)})
        if "overrides" in table:
            self.managed.add(("override", model))
            for to, version in self._convert(table["overrides"], dict[str, int], f"{at}.overrides").items():
                with _placed(self.where, f"{at}.overrides"):
                    self._add(Key("override", model, check_name(to)), {"version": version})

    def _version(self, key: Key, table: Table, at: str) -> None:
        self._known(table, (*VERSION, *MADE), at)
        fields = {name: value for name, value in table.items() if name not in MADE}
        if isinstance(fields.get("signature"), str):
            fields["signature"] = self._json(fields["signature"], f"{at}.signature")
        extras: dict[str, Any] = {}
        if "artifact" in table:
            path = self._path(table["artifact"], f"{at}.artifact")
            extras["artifact"] = str(path)
            fields = {**self._packed(key, path, at), **fields}
        if "golden" in table:
            path = self._path(table["golden"], f"{at}.golden")
            with _placed(self.where, f"{at}.golden"):
                read_golden(path)
            extras["golden"] = str(path)
        if "digest" in fields and "file_name" not in fields:
            raise InvalidInput(
                f"{self.where}: {at}: digest without file_name",
                field=f"{at}.file_name",
                hint="give artifact = PATH, or the name of the file of which this is the digest",
            )
        given = dict(self._given(fields, VERSION, at, {"outputs": []}))
        if given.get("lineage.parent") is not None:
            with _placed(self.where, f"{at}.lineage.parent"):
                parent = parent_of(key.model, given["lineage.parent"])
                self._number(parent.name, f"{at}.lineage.parent")
                given["lineage.parent"] = f"{parent.model.partition('/')[2]}@{parent.name}"
        self._add(key, given)
        self.extras[key] = extras
        if "state" in table:
            state = table["state"]
            if state not in STATES:
                hint = did_you_mean(str(state), STATES)
                text = f"{self.where}: {at}.state: {state!r}, expected approved or retired"
                raise InvalidInput(text, field=f"{at}.state", hint=hint)
            self._add(Key("state", key.model, key.name), {"state": state})

    def _packed(self, key: Key, path: Path, at: str) -> dict[str, Any]:
        """Digest, file name and engine of an artifact on this machine."""
        with _placed(self.where, f"{at}.artifact"):
            packed = artifacts.pack(path)
            try:
                found: dict[str, Any] = {"digest": packed.digest, "file_name": packed.file_name}
                if packed.engine is not None:
                    found["engine"] = packed.engine
                if packed.engine == "pipeline":
                    tenant = key.model.partition("/")[0]
                    named = [parse_reference(one) for one in pipeline.read(packed.path).references]
                    parts = {Key("version", f"{one.tenant or tenant}/{one.model}", str(one.version)) for one in named}
                    self.parts[key] = frozenset(parts)
            finally:
                if packed.temporary:
                    packed.path.unlink(missing_ok=True)
        return found

    # -------------------------------------------------------------------------------------------- values
    def _add(self, key: Key, fields: Fields) -> None:
        if key in self.state:
            other = self._from[key]
            also = f" and in {other}" if other != self.where else " twice"
            raise InvalidInput(f"{self.where}: {key} stands here{also}", field=str(key))
        self.state[key] = fields
        self._from[key] = self.where

    def _given(self, table: Table, known: Mapping[str, Field], at: str, fill: Table = {}) -> Fields:  # noqa: B006
        """Fields of a table, each checked against its type; `fill` stands in for what a nested one must have."""
        self._known(table, known, at)
        values: dict[str, Any] = {}
        nested = []
        for name, value in table.items():
            found = self._convert(
                {**fill, **value} if isinstance(value, dict) and name == "signature" else value,
                known[name].type,
                f"{at}.{name}",
            )
            values[name] = plain(found)
            if isinstance(found, msgspec.Struct):
                nested.append(name)
                values[name] = {inner: values[name][inner] for inner in value}
        return flat(values, values, nested)

    def _convert(self, value: Any, kind: Any, at: str) -> Any:
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            text, _, path = str(error).partition(" - at `$")
            at += path.rstrip("`").replace("[...]", "")
            _, _, unknown = text.partition("unknown field `")
            if unknown:
                self._unknown(unknown.rstrip("`"), _names(kind), at)
            raise InvalidInput(f"{self.where}: {at}: {text}", field=at) from None

    def _known(self, table: Table, known: Iterable[str], at: str) -> None:
        for name in table:
            if name not in (names := tuple(known)):
                self._unknown(name, names, at)

    def _unknown(self, name: str, known: Iterable[str], at: str) -> None:
        path = f"{at}.{name}" if at else name
        hint = did_you_mean(name, known) or f"known: {', '.join(known)}"
        raise InvalidInput(f"{self.where}: {at + ': ' if at else ''}no field {name!r}", field=path, hint=hint)

    def _table(self, value: Any, at: str) -> Table:
        if not isinstance(value, dict):
            raise InvalidInput(f"{self.where}: {at}: {value!r}, expected a table", field=at)
        return value

    def _tables(self, table: Table, name: str, at: str) -> list[tuple[str, Table]]:
        path = f"{at}.{name}" if at else name
        found = self._table(table.get(name, {}), path)
        return [(inner, self._table(value, f"{path}.{inner}")) for inner, value in found.items()]

    def _number(self, text: str, at: str) -> str:
        if not NUMBER.fullmatch(text) or text != text.lstrip("0"):
            raise InvalidInput(f"{self.where}: {at}: {text!r}, expected a version's number", field=at)
        return text

    def _path(self, value: Any, at: str) -> Path:
        name: str = self._convert(value, str, at)
        return self.folder / name

    def _json(self, value: str, at: str) -> Any:
        path = self._path(value, at)
        try:
            return msgspec.json.decode(path.read_bytes())
        except OSError as error:
            raise InvalidInput(f"{self.where}: {at}: {path}: {error.strerror}", field=at) from None
        except msgspec.DecodeError as error:
            raise InvalidInput(f"{self.where}: {at}: {path}: {error}", field=at) from None


def _names(kind: Any) -> tuple[str, ...]:
    """Fields of a struct, or of the one among several types."""
    options = getattr(kind, "__args__", (kind,))
    return next((one.__struct_fields__ for one in options if hasattr(one, "__struct_fields__")), ())


class _placed:
    """Says of an error in which file and table it is."""

    def __init__(self, where: str, at: str) -> None:
        self._where, self._at = where, at

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, HeadraceError):
            raise InvalidInput(f"{self._where}: {self._at}: {error.message}", field=self._at, hint=error.hint) from None
        if isinstance(error, OSError):
            raise InvalidInput(
                f"{self._where}: {self._at}: {error.filename}: {error.strerror}", field=self._at
            ) from None
