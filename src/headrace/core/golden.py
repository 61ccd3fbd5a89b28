"""Signature tests: inputs, and what a version must answer to them before it may take traffic. In the Open Inference
Protocol's form, so that a request and its reply can be kept as they are."""

from __future__ import annotations

from typing import Any

import msgspec

CASES_MAX = 100
"""Cases of one version."""
TOLERANCE = 1e-5


class GoldenTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor; `data` flat or nested, BYTES as strings."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any]
    parameters: dict[str, Any] | None = None
    """As a reply may carry them; not looked at."""


class GoldenCase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request and the reply to it. Outputs that are not named may be anything."""

    inputs: list[GoldenTensor]
    outputs: list[GoldenTensor]
    name: str = ""
    """For messages; its place in the list when left out."""
    tolerance: float | None = None
    """`Golden.tolerance` when left out."""


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Signature tests of a version."""

    cases: list[GoldenCase]
    tolerance: float = TOLERANCE
    """Of floating outputs: |got - expected| <= tolerance * max(1, |expected|). All else must be equal; NaN equals
    NaN."""


class GoldenFault(msgspec.Struct, frozen=True):
    """What is wrong with a case."""

    message: str
    output: str | None = None
    """The output at fault; null when the case could not be run."""
    at: list[int] = []
    """Index of the first value that is wrong."""
    expected: Any = None
    got: Any = None


class GoldenResult(msgspec.Struct, frozen=True):
    """How a case went: well where there are no faults."""

    case: str
    faults: tuple[GoldenFault, ...] = ()
