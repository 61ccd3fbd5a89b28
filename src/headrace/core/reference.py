"""Reference statistics of a version: how its inputs and predictions were distributed on a sample, which drift is
measured against. Only the values; `observe.reference` computes them."""

from __future__ import annotations

from typing import Literal

import msgspec


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows of a model's inputs: a Parquet, CSV or NPZ file that was put like an artifact."""

    digest: str
    """SHA-256 of the file, hex."""
    file_name: str = ""
    """For people; the format goes by content."""
    label: str | None = None
    """Column that is no input: what the model should have answered."""


class Feature(msgspec.Struct, frozen=True):
    """One column of a tensor, or a whole tensor of images and the like, summarised. Of the same bins, two add up."""

    tensor: str
    column: int | None
    """Place in the tensor's row; null: all values of the tensor together."""
    name: str
    """As the sample calls it."""
    kind: Literal["numeric", "categorical"]
    count: int
    """Values that are neither missing nor infinite."""
    missing: int = 0
    """NaN or null."""
    infinite: int = 0
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    std: float | None = None
    """Of the population (divided by `count`)."""
    edges: tuple[float, ...] = ()
    """Upper bounds of the bins, strictly increasing: a value is in the first bin whose bound it does not exceed. The
    last is the sample's maximum. Up to 32: its quantiles, or its values where it has no more."""
    lowest: float | None = None
    """The sample's minimum: values below it are `below`."""
    categories: tuple[str, ...] = ()
    """In place of `edges`: the most frequent values."""
    counts: tuple[int, ...] = ()
    """Values per bin or category."""
    other: int = 0
    """Values in no category."""
    below: int = 0
    """Values below `lowest`, counted in the first bin too."""
    above: int = 0
    """Values above the last bound, in no bin."""


class Reference(msgspec.Struct, frozen=True):
    """Statistics of a sample."""

    rows: int
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    predicted: int = 0
    """Rows that the model was run on: those with missing values are left out where it refuses them."""
