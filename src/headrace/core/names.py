"""How resources are named: ``tenant/model@version``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from headrace.core.errors import InvalidInput

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
DEVICE = re.compile(r"[!-.0-~]{1,255}/[A-Za-z0-9-]{1,64}")
ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}")
NUMBER = re.compile(r"0{0,8}[1-9][0-9]{0,17}")


def check_name(value: str, field: str = "name") -> str:
    """The name itself. Raises InvalidInput naming `field` when it is not 1-63 of ``A-Z a-z 0-9 . _ -``."""
    if not NAME.fullmatch(value):
        raise InvalidInput(
            f"{field}: {value!r} is not a name: 1 to 63 of A-Z a-z 0-9 . _ -, starting with a letter or digit",
            field=field,
        )
    return value


def did_you_mean(name: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """A hint that names the nearest of the known names; None when none is near (`likeness` 1: the same)."""
    near = difflib.get_close_matches(name, list(known), 1, likeness)
    return f"did you mean {near[0]}?" if near else None


VersionName = int | str
"""A version's number, or an alias that points at one."""


def read_version(text: str, field: str = "version") -> VersionName:
    """``4`` or ``champion``. Raises InvalidInput."""
    if NUMBER.fullmatch(text):
        return int(text)
    if not ALIAS.fullmatch(text):
        raise InvalidInput(
            f"{field}: {text[:80]!r} is no version: a whole number from 1, or an alias, which begins with a letter",
            field=field,
        )
    return text


def check_alias(text: str) -> str:
    """The alias itself. Raises InvalidInput."""
    if not ALIAS.fullmatch(text):
        expected = "1 to 63 of A-Z a-z 0-9 . _ -, starting with a letter"
        raise InvalidInput(f"alias: {text[:80]!r} is no alias: {expected}", field="alias")
    return text


@dataclass(frozen=True, slots=True)
class Reference:
    """What ``[tenant/]model[@version]`` names; parts not written are None."""

    model: str
    version: VersionName | None = None
    tenant: str | None = None

    def __str__(self) -> str:
        text = self.model if self.tenant is None else f"{self.tenant}/{self.model}"
        return text if self.version is None else f"{text}@{self.version}"


def parse_reference(text: str, field: str = "model") -> Reference:
    """``churn``, ``churn@4``, ``churn@champion`` or ``risk/churn@4``. Raises InvalidInput."""
    path, at, number = text.partition("@")
    if at and not (NUMBER.fullmatch(number) or ALIAS.fullmatch(number)):
        raise InvalidInput(
            f"{field}: {text!r}: the version after @ is a whole number from 1, or an alias",
            field=field,
            hint=f"for example {path or 'churn'}@1",
        )
    tenant, slash, model = path.rpartition("/")
    return Reference(
        check_name(model, field),
        read_version(number, field) if at else None,
        check_name(tenant, field) if slash else None,
    )
