"""What a router tells a replica of a request beside its body."""

from __future__ import annotations

import msgspec


class Meta(msgspec.Struct, array_like=True, gc=False):
    """Stored unread by the replica until its log, or the decoder of binary tensors, wants it."""

    epoch: int
    """Of the routing snapshot that the request was decided by."""
    json_length: int
    """Bytes of the JSON part of a body with binary tensors; -1 without."""
    traceparent: bytes
    """W3C trace context as it came in; empty without."""


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Meta).decode
