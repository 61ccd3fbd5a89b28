"""The framed protocol between our processes: router and replica, and each of them and the control plane.

A frame is a fixed little-endian header, `meta` (msgpack) and `body`. One connection carries many requests at once;
whoever writes coalesces a loop tick's frames into one send. Rules that keep it quick and safe:

1. No quadratic buffering: a frame larger than one read is received into a buffer of its own size, in place; what is
   left of a read (less than a frame) moves to the front of the next.
2. Handlers of whole frames live in `on_data` and parse in a loop of their own: a call per frame would cost more
   than the parsing.
3. A length over `FRAME_MAX` aborts the connection: the stream has lost its step, or the peer is not ours.
"""

from __future__ import annotations

import asyncio
import struct
from typing import ClassVar, Final, cast

HEADER: Final = struct.Struct("<IIBBHIIH")
"""Length after the header (u32), request id (u32), kind (u8), flags (u8), slot or status (u16), deadline in ms left
(u32), tenant index (u32), meta length (u16).

`slot` names a version within the replica; in an answer the field is the HTTP status."""
SIZE: Final = HEADER.size
FRAME_MAX: Final = (1 << 30) + (1 << 20)
"""Bytes. A body's own limit is set per model and is far lower; this only guards the framing."""

READ_MAX: Final = 256 << 10
"""Most bytes of one read."""

# Kinds, router <-> replica
REQUEST: Final = 1
REPLY: Final = 2
CHUNK: Final = 3
END: Final = 4
ERROR: Final = 5
CANCEL: Final = 6
CREDIT: Final = 7
PING: Final = 8
GOAWAY: Final = 9
"""Replica -> router: send me nothing new; I answer what I have and leave when you close. Control plane -> replica that
has lost its node's agent: drain and leave."""
STATISTICS: Final = 10
"""Router -> replica: the statistics of a slot; the reply's body is JSON."""
TRIAL: Final = 11
"""Router -> replica: a REQUEST that is suspected of having killed a replica. It runs alone, and not before GO."""
STANDBY: Final = 12
"""Replica -> router: nothing runs, and a TRIAL is next; the body is its request id (u32), the frame's own is 0."""
GO: Final = 13
"""Router -> replica: run the TRIAL of this request id. If the connection ends before its answer, it was that one."""
# Kinds, router or replica <-> control plane
HELLO: Final = 16
SNAPSHOT: Final = 17
ACK: Final = 18
REPORT: Final = 19
COMMAND: Final = 20

# Flags of a REQUEST
BINARY: Final = 1
"""The body ends in binary tensors; `Meta.json_length` says where they start."""
GZIP: Final = 2
DEFLATE: Final = 4
ACCEPT_GZIP: Final = 8
ACCEPT_DEFLATE: Final = 16
# Flags of a REPLY: BINARY, GZIP, DEFLATE as above; a BINARY reply's meta is the u32 length of its JSON part.


def frame(
    kind: int,
    request_id: int = 0,
    *,
    flags: int = 0,
    slot: int = 0,
    deadline_ms: int = 0,
    tenant: int = 0,
    meta: bytes = b"",
    body: bytes = b"",
) -> bytes:
    """One whole frame, for whoever is not on the request path."""
    head = HEADER.pack(len(meta) + len(body), request_id, kind, flags, slot, deadline_ms, tenant, len(meta))
    return head + meta + body


class FrameProtocol(asyncio.BufferedProtocol):
    """Collects whole frames and hands them to `on_data`."""

    FRAME_MAX: ClassVar[int] = FRAME_MAX

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._read = memoryview(bytearray(READ_MAX))  # pages that no read has touched take no memory
        self._large: bytearray | None = None
        self._have = 0
        self._need = SIZE

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not subclasses
        self.reset()

    def reset(self) -> None:
        """Forget a frame that was cut off with its connection."""
        self._large = None
        self._have = 0
        self._need = SIZE

    def get_buffer(self, sizehint: int) -> memoryview:
        return (self._read if self._large is None else memoryview(self._large))[self._have :]

    def buffer_updated(self, nbytes: int) -> None:
        self._have = have = self._have + nbytes
        if have < self._need:
            return
        if self._large is not None:
            data, self._large = cast(bytes, self._large), None
            self._have, self._need = 0, SIZE
            self.on_data(data)
            return
        if self._need == SIZE and self._expect(self._read, have):
            return
        data = bytes(self._read[:have])
        used = self.on_data(data)
        self._have, self._need = have - used, SIZE
        if used < have:
            self._read[: have - used] = data[used:]
            self._expect(self._read, have - used)

    def _expect(self, data: memoryview, have: int) -> bool:
        """Look how long the first frame in `data` is; True when it is not whole yet."""
        if have < 4:
            return True
        self._need = need = SIZE + int.from_bytes(data[:4], "little")
        if need <= have:
            return False
        if need > self.FRAME_MAX:
            self.transport.abort()
        elif need > READ_MAX:
            self._large = bytearray(need)
            self._large[:have] = data[:have]
        return True

    def on_data(self, data: bytes) -> int:
        """Handle the whole frames in `data` (a bytearray where it is one large frame); return how many bytes they
        took."""
        raise NotImplementedError
