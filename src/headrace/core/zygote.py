"""What a node and its zygotes say to each other: one message a packet over a socket pair, descriptors beside it."""

from __future__ import annotations

import socket
from collections.abc import Collection
from typing import Literal

import msgspec

PACKET_MAX = 16 << 10
DESCRIPTORS = 3
"""Standard input, output and error of the process to be."""

Runtime = Literal["python", "onnx", "xgboost", "lightgbm", "sklearn", "torch"]
"""What a process has imported: Python, NumPy and ours for `python`, and on top of it one engine's library."""
RUNTIMES: tuple[Runtime, ...] = ("python", "onnx", "xgboost", "lightgbm", "sklearn", "torch")


class ZygoteSpec(msgspec.Struct, frozen=True):
    """A zygote to run: the first packet that it gets."""

    runtime: Runtime


class Fork(msgspec.Struct, frozen=True):
    """Node -> zygote: fork. Its `DESCRIPTORS` come with the packet."""


class ZygoteReply(msgspec.Struct, frozen=True):
    """Zygote -> node: once when everything is imported, then one for each `Fork`."""

    pid: int = 0
    """Of the process that was forked; 0: `fault` says why there is none."""
    fault: str = ""


class Handover(msgspec.Struct, frozen=True):
    """First line of the standard input of a process that has imported its runtime and waits; the spec follows."""

    log: str
    """File that standard error goes to from here on."""
    environment: dict[str, str]


def runtime_of(engines: Collection[str], threads: int) -> Runtime | None:
    """The runtime whose zygote a replica with these engines may be forked from; None: it needs a process of its own
    from the start."""
    only = next(iter(engines)) if len(set(engines)) == 1 else ""
    if "sklearn" in engines and threads != 1:
        return None  # its OpenMP has read the number of threads when it was imported, for good
    found: dict[str, Runtime] = {name: name for name in RUNTIMES}
    return found.get(only, "python")


def send(end: socket.socket, message: msgspec.Struct, descriptors: tuple[int, ...] = ()) -> None:
    """Send one message. Raises OSError when nobody listens."""
    socket.send_fds(end, [msgspec.json.encode(message)], list(descriptors))


def receive(end: socket.socket) -> tuple[bytes, list[int]]:
    """The next message and the descriptors with it; empty at the end. Raises OSError."""
    data, descriptors, _, _ = socket.recv_fds(end, PACKET_MAX, DESCRIPTORS)
    return data, list(descriptors)
