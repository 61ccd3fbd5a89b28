"""What this process takes of the machine's memory, as the C library sees it: a pack must know it, and give it back."""

from __future__ import annotations

import ctypes

from headrace.core.telemetry import rss_bytes

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
LARGE = 128 << 10
"""Bytes. Blocks above this come from the system one by one, and go back to it when they are freed."""


class _Info(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    ]  # fmt: skip


class Memory:
    """The C library's allocator. Where it is not glibc's, memory is measured by what is resident, and not trimmed."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self._info = getattr(library, "mallinfo2", None)
        if self._info is not None:
            self._info.restype = _Info
        self._trim = getattr(library, "malloc_trim", None)
        self._option = getattr(library, "mallopt", None)

    def tune(self) -> None:
        """Few arenas, and large blocks by themselves: what is freed can then be given back."""
        if self._option is not None:
            self._option(M_ARENA_MAX, 2)
            self._option(M_MMAP_THRESHOLD, LARGE)

    def trim(self) -> None:
        """Give back what is free."""
        if self._trim is not None:
            self._trim(0)

    def allocated_bytes(self) -> int:
        """What is in use of what was allocated."""
        if self._info is None:
            return rss_bytes()
        info = self._info()
        return int(info.uordblks + info.hblkhd)
