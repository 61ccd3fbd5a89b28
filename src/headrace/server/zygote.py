"""The zygote: a process that has imported a runtime, and forks a replica from itself whenever its node asks.

``python -m headrace.server.zygote``, a socket pair's end as standard input (`core.zygote` has what is said over it);
with the argument ``idle`` it is such a replica itself, waiting for its handover, for runtimes that cannot be forked.

A fork copies one thread of many, and locks that the others held stay locked for ever. So nothing here starts a thread
before the fork, and the kernel is asked whether that is so: with more than one thread the node is told, and starts
processes of their own. A replica is forked twice, so that its parent is gone at once and its node, which is the
subreaper of its descendants, becomes its parent: the node sees how it ends as if it had started it, and the zygote's
own end means nothing to it.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import sys
from pathlib import Path

import msgspec
import numpy as np

from headrace.core import zygote
from headrace.core.process import Events
from headrace.core.zygote import DESCRIPTORS, Fork, Handover, ZygoteReply, ZygoteSpec
from headrace.server.engines.load import preload
from headrace.server.main import run


def threads() -> list[str]:
    """The names of this process's threads, the first included."""
    return [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")]


def unforkable() -> str:
    """Why this process may not be forked; empty when it may."""
    found = threads()
    return "" if len(found) == 1 else f"{len(found)} threads: {', '.join(found)}"


def fork_orphan() -> int:
    """Fork a process that this one is no parent of. Its id; 0 in the new process. Raises OSError."""
    told, tell = os.pipe()
    between = os.fork()
    if between:
        os.close(tell)
        os.waitpid(between, 0)
        with os.fdopen(told, "rb") as pipe:
            if (text := pipe.read()) == b"":
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return int(text)
    try:
        os.close(told)
        if pid := os.fork():
            os.write(tell, b"%d" % pid)
    except OSError:
        os._exit(1)
    if pid:
        os._exit(0)
    os.close(tell)
    return 0


def serve(node: socket.socket) -> list[int] | None:
    """Fork for the node until it has gone: None. In each process that was forked: its standard descriptors."""
    while True:
        data, descriptors = zygote.receive(node)
        if not data:
            return None
        msgspec.json.decode(data, type=Fork)
        fault = unforkable()
        if len(descriptors) != DESCRIPTORS:
            fault = f"{len(descriptors)} descriptors, expected {DESCRIPTORS}"
        pid = -1
        if not fault:
            try:
                pid = fork_orphan()
            except OSError as error:
                fault = f"cannot fork: {error.strerror}"
        if pid == 0:
            return descriptors
        for descriptor in descriptors:
            os.close(descriptor)
        zygote.send(node, ZygoteReply(max(pid, 0), fault))


def settle(descriptors: list[int]) -> None:
    """Make a forked process one of its own: session, standard descriptors, random numbers."""
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    np.random.seed()  # Python's own generator does so by itself
    if (torch := sys.modules.get("torch")) is not None:
        torch.seed()


def take_over() -> int:
    """Wait for the handover, and be that replica; 0 when the node went away first."""
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return 0
    handover = msgspec.json.decode(line, type=Handover)
    log = os.open(handover.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 2)
    os.close(log)
    os.environ.update(handover.environment)
    if (count := int(handover.environment.get("OPENBLAS_NUM_THREADS", 1))) != 1:
        # NumPy's BLAS has read another number when it was imported.
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        threadpool_limits(count)
    return run(sys.stdin.buffer, Events())


def be_zygote() -> int:
    """Import, and fork on demand until the node has gone."""
    node = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    data, _ = zygote.receive(node)
    if not data:
        return 0
    preload(msgspec.json.decode(data, type=ZygoteSpec).runtime, shared=True)
    gc.collect()
    gc.freeze()  # a collection in a child then leaves these pages alone, and shared
    fault = unforkable()
    zygote.send(node, ZygoteReply(os.getpid(), fault))
    if fault:
        return 3
    descriptors = serve(node)
    if descriptors is None:
        return 0
    node.close()
    settle(descriptors)
    return take_over()


def main(arguments: list[str]) -> int:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if arguments[:1] == ["idle"]:
        preload(arguments[1])
        return take_over()
    return be_zygote()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
