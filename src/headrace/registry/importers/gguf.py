"""GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): what they hold, read out of the header.

No engine here runs them yet. So the header is read whole, to tell a damaged file from one that only has to wait, and
the refusal says what the model is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from headrace.core.errors import Unprocessable

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ITEMS_MAX = 1 << 20
"""Metadata entries, tensors, or items of one array; the largest vocabularies have a quarter of it."""
TEXT_MAX = 1 << 24
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip

Value = int | float | bool | str | list["Value"]


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says of itself."""

    version: int
    metadata: dict[str, Value]
    parameters: int
    """Weights in all tensors."""
    types: dict[str, int]
    """Weights by the tensors' type, ``Q4_K`` and so on."""

    @property
    def architecture(self) -> str:
        """``llama``, ``qwen3``, ..."""
        return str(self.metadata.get("general.architecture", "unknown"))

    @property
    def quantisation(self) -> str:
        """The type that most weights have."""
        return max(self.types, key=lambda name: self.types[name], default="none")

    def __str__(self) -> str:
        name = self.metadata.get("general.name")
        context = self.metadata.get(f"{self.architecture}.context_length")
        parts = [f"{self.architecture}{f' {name!r}' if name else ''}", f"{count(self.parameters)} parameters"]
        parts.append(f"mostly {self.quantisation}")
        if context is not None:
            parts.append(f"context of {context} tokens")
        return ", ".join(parts)


def refuse(path: Path) -> Unprocessable:
    """Why the file is not imported. Raises Unprocessable itself when it is damaged."""
    found = read(path)
    return Unprocessable(
        f"{path.name}: {found}: a GGUF model needs an LLM engine, and this release has none",
        field="source",
        hint="keep the file: GGUF is to be imported once the LLM engine is there; until then export it to ONNX",
    )


def read(path: Path) -> Header:
    """The header. Raises Unprocessable when it is damaged, of another version, or its weights are cut short."""
    try:
        with path.open("rb") as file:
            return _Reader(file, path.stat().st_size).header()
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        raise Unprocessable(f"{path.name}: no GGUF file, or damaged: {error}", field="source") from None
    except OSError as error:
        raise Unprocessable(f"{path.name} cannot be read: {error.strerror}", field="source") from None


def count(parameters: int) -> str:
    """A number of weights for people: ``1.1 B``."""
    for size, unit in ((10**9, " B"), (10**6, " M"), (10**3, " K")):
        if parameters >= size:
            return f"{parameters / size:.3g}{unit}"
    return str(parameters)


class _Reader:
    """Takes values off the file in order. Raises ValueError."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def header(self) -> Header:
        if self._bytes(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self._number("<I")
        if version not in VERSIONS:
            raise ValueError(f"version {version}, expected one of {', '.join(map(str, VERSIONS))}")
        tensors, entries = self._count("tensors"), self._count("metadata entries")
        metadata = {self._text(): self._value(self._number("<I"), 0) for _ in range(entries)}
        parameters, types, end = 0, dict[str, int](), 0
        for _ in range(tensors):
            self._text()
            size = 1
            for _ in range(self._count("dimensions", 8)):
                size *= self._number("<Q")
            kind = self._number("<I")
            name = _TENSOR_TYPES.get(kind, f"type {kind}")
            types[name] = types.get(name, 0) + size
            parameters += size
            end = max(end, self._number("<Q") + (1 if size else 0))
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment!r}")
        start = -(-self._file.tell() // alignment) * alignment
        if start + end > self._size:  # where the last tensor starts, at least: its size depends on its type
            raise ValueError(f"cut short: weights begin after byte {start + end}, the file has {self._size}")
        return Header(version, metadata, parameters, types)

    def _bytes(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise ValueError(f"cut short at byte {self._size}")
        return data

    def _number(self, form: str) -> int:
        found: int = struct.unpack(form, self._bytes(struct.calcsize(form)))[0]
        return found

    def _count(self, what: str, limit: int = ITEMS_MAX) -> int:
        found = self._number("<I" if what == "dimensions" else "<Q")
        if found > limit:
            raise ValueError(f"{found} {what}, at most {limit} are expected")
        return found

    def _text(self) -> str:
        size = self._number("<Q")
        if size > TEXT_MAX:
            raise ValueError(f"a text of {size} bytes")
        return self._bytes(size).decode()

    def _value(self, kind: int, depth: int) -> Value:
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY and depth < 4:
            inner = self._number("<I")
            item: Callable[[], Value] = lambda: self._value(inner, depth + 1)  # noqa: E731
            return [item() for _ in range(self._count("items"))]
        if kind not in _NUMBERS:
            raise ValueError(f"a value of type {kind}")
        return self._number(_NUMBERS[kind])
