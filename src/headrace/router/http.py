"""One client's HTTP/1.1 connection: keep-alive, pipelining, answers in the order of the questions.

The request path is `on_message_complete`: URL -> key -> tenant -> admission -> deadline -> decision -> replica ->
frame, each a look-up or a comparison; the body is not read. What is no inference request goes to `oip.answer`.

A connection is `ordinary` while nothing about it needs care: it is not closing, few of its requests are unanswered and
none of them is large. One that is not, or whose client does not read its answers, is not read from: what a client can
make us hold is bounded.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final, cast

import httptools

from headrace.core import frames, meta
from headrace.router import oip, replies
from headrace.router.core import Router
from headrace.router.link import LARGE, choose

log = logging.getLogger("headrace.router")
monotonic = time.monotonic
HEADER_MAX = 32 << 10
PIPELINE_MAX = 256
"""Unanswered requests of a connection; while there are more it is not read from."""
TIMEOUT_MAX_S = 3600.0
DIGITS_MAX = 15
"""Longest number in a header."""

_AUTHORIZATION, _TRACEPARENT, _TIMEOUT, _UNIT, _JSON_LENGTH, _EXPECT, _ENCODING, _ACCEPT = range(1, 9)
_UPGRADE, _LENGTH, _TRANSFER = range(9, 12)
_SLOT_OF: Final = {
    b"authorization": _AUTHORIZATION,
    b"traceparent": _TRACEPARENT,
    b"x-request-timeout-ms": _TIMEOUT,
    b"x-unit": _UNIT,
    b"inference-header-content-length": _JSON_LENGTH,
    b"expect": _EXPECT,
    b"content-encoding": _ENCODING,
    b"accept-encoding": _ACCEPT,
    b"upgrade": _UPGRADE,
    b"content-length": _LENGTH,
    b"transfer-encoding": _TRANSFER,
}
_FIELDS: Final[list[bytes | None]] = [None] * 12
_ENCODINGS: Final = {b"gzip": frames.GZIP, b"deflate": frames.DEFLATE, b"identity": 0, b"": 0}


class _Slots(dict[bytes, int]):
    """Header name, in whatever case a client writes it -> place in the fields; 0 for those nobody asks for."""

    def __missing__(self, name: bytes) -> int:
        slot = _SLOT_OF.get(name.lower(), 0)
        if len(self) < 4096:
            self[name] = slot
        return slot


class _Accepts(dict[bytes, int]):
    """Accept-Encoding -> flags."""

    def __missing__(self, value: bytes) -> int:
        names = {part.split(b";")[0].strip().lower() for part in value.split(b",")}
        flags = (frames.ACCEPT_GZIP if b"gzip" in names else 0) | (frames.ACCEPT_DEFLATE if b"deflate" in names else 0)
        if len(self) < 4096:
            self[value] = flags
        return flags


_SLOTS: Final = _Slots()
_ACCEPTS: Final = _Accepts()


class Http(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "active",
        "body_size",
        "chunks",
        "fields",
        "full",
        "gone",
        "head_size",
        "held",
        "in_head",
        "last",
        "lingers",
        "next",
        "now",
        "ordinary",
        "parser",
        "paused",
        "router",
        "seq",
        "transport",
        "url",
    )

    def __init__(self, router: Router) -> None:
        self.router = router
        self.gone = False
        self.seq = self.next = 0  # of the next request to come, and of the next answer to leave
        self.held: dict[int, bytes] = {}  # answers that wait for an earlier one
        self.last = -1  # the request after whose answer the connection closes
        self.ordinary = True
        self.paused = False  # we do not read from it
        self.full = False  # it does not read our answers
        self.lingers = False  # it is not read to its end: closed at once, its answer would be lost to a reset
        self.fields = _FIELDS.copy()
        self.chunks: list[bytes] = []
        self.url = b""
        self.body_size = self.head_size = 0
        self.in_head = False
        self.active = self.now = monotonic()

    # ------------------------------------------------------------------------------------------------ connection
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpRequestParser(self)
        connections = self.router.connections
        connections.add(self)
        if len(connections) > self.router.spec.max_connections:
            self._close_after(0)
            self.reply(0, replies.CONNECTIONS)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self.ordinary = False
        self.router.connections.discard(self)

    def _close_after(self, seq: int) -> None:
        self.last = seq
        self.ordinary = False

    def pause_writing(self) -> None:
        self.full = True
        self._pause()

    def resume_writing(self) -> None:
        self.full = False
        self.active = monotonic()
        if self.ordinary:  # else it is resumed with the last answer
            self._resume()

    def _pause(self) -> None:
        if not self.paused and not self.gone:
            self.paused = True
            self.transport.pause_reading()

    def _resume(self) -> None:
        if self.paused and not self.full and not self.gone:
            self.paused = False
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if not self.ordinary:
            if self.last >= 0:
                return  # the connection is closing; whatever else comes is not read
            self._pause()  # only now: one that is not read from does not show that its client has gone
        self.now, seq = monotonic(), self.seq
        if not self.in_head:  # a head has its time as a whole: bytes that drip do not put the time-out off
            self.active = self.now
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            return self._decline(data[offer.args[0] :])
        except httptools.HttpParserCallbackError:
            if self.last < 0:  # else a request was refused while it came
                log.exception("a request was not handled")
                self.seq -= self.seq > seq
                self._refuse_rest(replies.INTERNAL)
        except httptools.HttpParserError:
            if self.last < 0:
                self._refuse_rest(replies.MALFORMED)
        if self.in_head and self.seq == seq:  # else it began somewhere in `data`, behind other requests
            self.head_size += len(data)
            if self.head_size > HEADER_MAX:
                self._refuse_rest(replies.HEADERS_TOO_LARGE)

    def _decline(self, rest: bytes) -> None:
        """Go on as if no other protocol had been offered. The parser takes such a request to end with its headers;
        so a new one gets what says how long the body is, and the body; the other headers are there already."""
        fields, method = self.fields, self.parser.get_method()
        if self.last >= 0:
            return
        if fields[_UPGRADE] is None:
            return self._refuse_rest(replies.MALFORMED)  # CONNECT
        length, transfer = fields[_LENGTH], fields[_TRANSFER]
        lines = [b"%b %b HTTP/1.1" % (method, self.url)]
        lines += [b"content-length: " + length] if length is not None else []
        lines += [b"transfer-encoding: " + transfer] if transfer is not None else []
        self.parser = httptools.HttpRequestParser(self)
        self.url, fields[_UPGRADE] = b"", None
        self.data_received(b"\r\n".join([*lines, b"", rest]))

    def _refuse_rest(self, response: bytes) -> None:
        """Answer the request at hand with an error and close."""
        self._close_after(self.seq)
        self.lingers = True
        self.in_head, self.url = False, b""
        self.chunks.clear()
        self.refuse(self.seq, response)

    def sweep(self, now: float) -> None:
        """Close when half a request or nothing at all has come for too long."""
        spec = self.router.spec
        quiet = now - self.active
        if self.gone:
            if quiet > spec.header_timeout_s or self.router.draining:
                self.transport.close()
        elif self.full:
            if quiet > spec.idle_timeout_s:
                self.transport.abort()  # closing would wait until it has read our answers
        elif self.paused:
            pass  # it is us that it waits for
        elif self.in_head or self.chunks or self.url:
            if quiet > spec.header_timeout_s:
                self._refuse_rest(replies.TOO_SLOW)
        elif self.seq == self.next and (quiet > spec.idle_timeout_s or self.router.draining):
            self.transport.close()

    # ------------------------------------------------------------------------------------------------ httptools
    def on_url(self, url: bytes) -> None:
        self.url += url  # it comes in pieces when the network cuts it
        if not self.in_head:
            self.in_head = True
            self.active = self.now

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields[_SLOTS[name]] = value

    def on_headers_complete(self) -> None:
        self.in_head = False
        self.head_size = 0
        if self.fields[_EXPECT] is not None and not self.gone:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, chunk: bytes) -> None:
        self.body_size += len(chunk)
        if self.body_size > self.router.table.body_max:
            message = f"the body is larger than {self.router.table.body_max} bytes"
            self._refuse_rest(replies.error(413, message, close=True))
            raise ValueError(message)  # stops the parser
        self.chunks.append(chunk)

    def on_message_complete(self) -> None:
        """The request path."""
        router, fields, chunks, now = self.router, self.fields, self.chunks, self.now
        table = router.table
        seq = self.seq
        if self.last >= 0 or (fields[_UPGRADE] is not None and self.parser.should_upgrade()):
            return
        self.seq = seq + 1
        size = self.body_size
        self.fields, self.chunks, self.body_size = _FIELDS.copy(), [], 0
        if router.draining or not self.parser.should_keep_alive():
            self._close_after(seq)
        if size > LARGE or seq - self.next > PIPELINE_MAX:
            self.ordinary = False
        url, self.url = self.url, b""

        authorization = fields[_AUTHORIZATION]
        tenant = table.seen.get(authorization) or table.tenant_of(authorization)
        route = table.routes.get(url)
        if route is None or self.parser.get_method() != b"POST":
            return oip.answer(self, seq, self.parser.get_method(), url, b"".join(chunks), tenant, authorization)
        if tenant is None:
            return self.refuse(seq, replies.UNAUTHENTICATED)
        target = route.get(tenant.index)
        if target is None:
            return self.refuse(seq, replies.error(403, "the model belongs to another tenant"), tenant.index)
        if tenant.in_flight >= tenant.max_in_flight:
            return self.refuse(seq, replies.IN_FLIGHT, tenant.index)
        if not router.admit(tenant, now):
            status, message, wait_s = router.refusal(tenant, now)
            return self.refuse(seq, replies.error(status, message, retry_after_s=wait_s), tenant.index)
        model = target.model
        if size > model.body_max_bytes:
            message = f"the body has {size} bytes, the model takes at most {model.body_max_bytes}"
            return self.refuse(seq, replies.error(413, message), tenant.index)
        timeout_s = model.timeout_s
        timeout = fields[_TIMEOUT]
        if timeout is not None:
            if not timeout.isdigit() or timeout == b"0" or len(timeout) > DIGITS_MAX:
                message = f"x-request-timeout-ms: {timeout[:40].decode('latin-1')!r} is no positive whole number"
                return self.refuse(seq, replies.error(400, message), tenant.index)
            timeout_s = min(int(timeout) / 1000, TIMEOUT_MAX_S)
        traceparent = fields[_TRACEPARENT]
        arm = target.decide(tenant.index, fields[_UNIT] or traceparent or b"%d.%d" % (id(self), seq))
        # `choose_any`, without the call
        endpoint = choose(arm.endpoints, now) or choose(arm.spares, now) if arm is not None else None
        if arm is None or endpoint is None:
            return self.refuse(seq, oip.not_ready(target), tenant.index)

        flags, json_length = 0, -1
        length = fields[_JSON_LENGTH]
        if length is not None:
            if not length.isdigit() or len(length) > DIGITS_MAX:
                return self.refuse(seq, replies.error(400, "Inference-Header-Content-Length: no number"), tenant.index)
            json_length, flags = int(length), frames.BINARY
        encoding = fields[_ENCODING]
        if encoding is not None:
            coding = _ENCODINGS.get(encoding.lower())
            if coding is None:
                message = f"content-encoding: {encoding.decode('latin-1')!r}, expected gzip or deflate"
                return self.refuse(seq, replies.error(415, message), tenant.index)
            flags |= coding
        accept = fields[_ACCEPT]
        if accept is not None:
            flags |= _ACCEPTS[accept]
        cell = arm.cells.get(tenant.index)
        if cell is None:
            cell = arm.cell(tenant.index)
        tenant.in_flight += 1
        deadline, context = now + timeout_s, meta.encode((table.snapshot.epoch, json_length, traceparent or b""))
        if arm.guard is not None and arm.guard.stops(
            (self, seq, cell, tenant, now, deadline, arm, context, chunks, flags, 0)
        ):
            return
        endpoint[0].send(
            self,
            seq,
            cell,
            tenant,
            now,
            deadline,
            arm,
            endpoint[1],
            context,
            chunks,
            size,
            flags,
        )

    # ------------------------------------------------------------------------------------------------ answers
    def refuse(self, seq: int, response: bytes, tenant: int = -1) -> None:
        """Answer with an error that no version gave; counted."""
        self.router.count(tenant, int(response[9:12]))
        self.reply(seq, response)

    def answer(self, seq: int, kind: int, flags: int, status: int, meta: bytes, body: bytes) -> None:
        """A replica's frame, as the response."""
        if kind != frames.REPLY:
            response = replies.error(status, body.decode("utf-8", "replace"))
        elif not flags:
            length = len(body)
            response = (replies.HEADS[length] if length < 4096 else replies.head(length)) + body
        else:
            lines = [b"HTTP/1.1 200 OK"]
            if flags & frames.BINARY:
                lines.append(b"content-type: application/octet-stream")
                lines.append(b"inference-header-content-length: %d" % int.from_bytes(meta, "little"))
            else:
                lines.append(b"content-type: application/json")
            if flags & (frames.GZIP | frames.DEFLATE):
                lines.append(b"content-encoding: gzip" if flags & frames.GZIP else b"content-encoding: deflate")
            response = b"\r\n".join([*lines, b"content-length: %d\r\n\r\n" % len(body)]) + body
        if seq == self.next and self.ordinary and not self.held:
            self.next = seq + 1  # `reply`, without the call
            self.transport.write(response)
        else:
            self.reply(seq, response)

    def fail(self, seq: int, status: int, reason: str) -> None:
        """No replica will answer."""
        self.reply(seq, replies.error(status, reason, retry_after_s=1 if status == 503 else None))

    def reply(self, seq: int, response: bytes) -> None:
        """Write now if it is this answer's turn, keep it otherwise."""
        if self.gone:
            return
        if seq != self.next:
            self.held[seq] = response
            return
        self.next = seq + 1
        self.transport.write(response)
        if self.held:
            while (held := self.held.pop(self.next, None)) is not None:
                self.next += 1
                self.transport.write(held)
        if 0 <= self.last < self.next:
            self.gone = True
            if self.lingers:
                self.transport.write_eof()
            else:
                self.transport.close()
        elif self.last < 0 and self.next == self.seq:
            self.ordinary = True
            self._resume()
