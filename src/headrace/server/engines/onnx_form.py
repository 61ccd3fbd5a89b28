"""The serving form of an ONNX model: what a node keeps beside the artifact so that replicas start quickly.

A protocol buffer with the weights in it is parsed and copied at each load. The form is the same graph, with its
weights in a file of their own that is mapped into memory: opening it costs next to nothing, and all replicas of the
machine share the pages. It is derived: made in the background from the artifact (`server.form`), kept only where its
outputs are the artifact's bit by bit, found by the artifact's digest, taken only while both its files are known by
their stamps to hold what they held when they were compared. Whoever removes it costs the next start some time, no more.

Beyond that, onnxruntime copies matrices into the order in which its kernels read them ("prepacking"): most of what a
load of large ones takes. Whether a model needs it was measured when the form was made, and is recorded in it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from headrace.core.errors import Unprocessable
from headrace.core.forms import RECORD, folder_of
from headrace.core.verified import verify

GRAPH, WEIGHTS = "graph.onnx", "weights.bin"


class Form(msgspec.Struct, frozen=True):
    """`RECORD`: what was made and measured."""

    graph: str
    """SHA-256 of `GRAPH`, hex; empty: there is no form, `refused` says why."""
    weights: str
    """SHA-256 of `WEIGHTS`, hex."""
    prepack: bool
    """Runs without prepacking are slower, or give other bits."""
    quick: bool
    """Without prepacking the outputs are the same but for rounding: a replica may begin so, and prepack meanwhile."""
    packed_ms: float
    """Median run with prepacking, on one thread."""
    unpacked_ms: float
    refused: str = ""
    place: str = ""
    """Where it was found; not recorded."""

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return Path(self.place)


def recorded(forms: Path, digest: str) -> Form | None:
    """What was recorded of an artifact's form; None: nothing that can be read."""
    place = folder_of(forms, digest)
    try:
        found = msgspec.json.decode((place / RECORD).read_bytes(), type=Form)
    except (OSError, msgspec.MsgspecError):
        return None
    return msgspec.structs.replace(found, place=str(place))


def find(forms: Path, digest: str) -> Form | None:
    """The form of an artifact, verified. One that is damaged is removed, and made anew after a next start."""
    form = recorded(forms, digest)
    if form is None or not form.graph:
        return None
    try:
        verify(form.folder / GRAPH, form.graph)
        verify(form.folder / WEIGHTS, form.weights)
    except Unprocessable:
        with contextlib.suppress(OSError):
            os.unlink(form.folder / RECORD)
        return None
    with contextlib.suppress(OSError):
        os.utime(form.folder / RECORD)  # the order of eviction
    return form
