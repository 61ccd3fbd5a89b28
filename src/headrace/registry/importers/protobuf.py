"""Protocol buffers on the wire, as far as ONNX files need it: found, measured and replaced without a copy of a weight.

A message is a sequence of fields, each a key (number and wire type) and a value; a value of the type `LENGTH` begins
with its size, so that what is not looked into is stepped over. A file is mapped into memory, never read whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_VARINT_BYTES_MAX = 10


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message. `raw` is all of it; `value` what a `LENGTH` field holds, else the value's own bytes."""

    number: int
    wire: int
    raw: memoryview
    value: memoryview

    def text(self) -> str:
        """The value as text. Raises ValueError."""
        return str(self.value, "utf-8")

    def integer(self) -> int:
        """The value of a `VARINT`. Raises ValueError."""
        return _varint(self.value, 0)[0]


def fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message, in order. Raises ValueError where it is cut short or no protocol buffer."""
    at = 0
    while at < len(message):
        start = at
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        begin = at
        if wire == VARINT:
            _, at = _varint(message, at)
        elif wire == LENGTH:
            size, begin = _varint(message, at)
            at = begin + size
        elif wire in (FIXED64, FIXED32):
            at += 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"byte {start} starts no field")
        if number == 0 or at > len(message):
            raise ValueError(f"cut short or no protocol buffer at byte {start}")
        yield Field(number, wire, message[start:at], message[begin:at])


def head(number: int, size: int) -> bytes:
    """What stands before the value of a `LENGTH` field of so many bytes."""
    return _encoded(number << 3 | LENGTH) + _encoded(size)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """An integer of seven bits a byte, lowest first, and where it ends."""
    value = 0
    for k in range(_VARINT_BYTES_MAX):
        if at + k >= len(data):
            raise ValueError(f"cut short at byte {at}")
        value |= (data[at + k] & 0x7F) << 7 * k
        if data[at + k] < 0x80:
            return value, at + k + 1
    raise ValueError(f"byte {at} starts no integer")


def _encoded(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
